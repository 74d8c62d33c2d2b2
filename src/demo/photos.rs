//! The photos of a demonstration, and the references to them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::demo::s3::BUCKET;
use crate::error::{Error, ErrorKind, Result};

/// Extensions of the files that are taken from a folder. A file that is named itself is always
/// taken.
const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "jfif"];

/// One file to caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Photo {
    pub path: PathBuf,
    /// File name, as shown.
    pub name: String,
    /// Id of its reference and of its answer, and key of its object. Unique in a run.
    pub id: String,
}

impl Photo {
    fn new(index: usize, path: PathBuf) -> Self {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        // Characters that need no escapes in a URI and no quotes in a log.
        let is_plain =
            |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_');
        let plain = name.replace(|letter: char| !is_plain(letter), "_");
        let id = format!("{:04}-{plain}", index + 1);
        Self { path, name, id }
    }

    /// The reference that goes to the input topic.
    pub fn reference(&self) -> String {
        let uri = format!("s3://{BUCKET}/{}", self.id);
        serde_json::json!({ "id": self.id, "uri": uri }).to_string()
    }
}

/// The photos at `paths`: each file, and the images that each folder contains directly, by name.
///
/// # Errors
/// `ErrorKind::Config` if a path does not exist or nothing is found; `ErrorKind::Io` if a folder
/// can't be read.
pub fn find(paths: &[PathBuf]) -> Result<Vec<Photo>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            files.extend(images_in(path)?);
        } else if path.is_file() {
            files.push(path.clone());
        } else {
            return Err(Error::new(ErrorKind::Config, "PATH is not a file or a folder")
                .with_context("value", path.display()));
        }
    }
    if files.is_empty() {
        return Err(Error::new(ErrorKind::Config, "PATH contains no images")
            .with_context("value", format!("{paths:?}"))
            .with_context("allowed", EXTENSIONS.join(", ")));
    }
    Ok(files.into_iter().enumerate().map(|(index, path)| Photo::new(index, path)).collect())
}

fn images_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |error: std::io::Error| {
        Error::new(ErrorKind::Io, "can't read a folder")
            .with_context("path", folder.display())
            .with_source(error)
    };
    let mut images = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if path.is_file() && EXTENSIONS.contains(&extension.as_str()) {
            images.push(path);
        }
    }
    images.sort();
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_give_their_images_and_files_are_always_taken() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, "").unwrap();
            path
        };
        file("b.JPG");
        file("a.png");
        let notes = file("notes & co.txt");

        let photos = find(&[folder.path().to_owned(), notes]).unwrap();
        let ids: Vec<_> = photos.iter().map(|photo| photo.id.as_str()).collect();
        assert_eq!(ids, ["0001-a.png", "0002-b.JPG", "0003-notes___co.txt"]);
        assert_eq!(photos[2].name, "notes & co.txt");
        assert_eq!(photos[0].reference(), r#"{"id":"0001-a.png","uri":"s3://photos/0001-a.png"}"#);
    }

    #[test]
    fn a_missing_path_and_an_empty_folder_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().join("missing"), folder.path().to_owned()] {
            let error = find(&[path]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
        }
    }
}
