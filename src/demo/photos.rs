//! The photos of a demonstration: found on disk and uploaded.

use std::fs;
use std::path::{Path, PathBuf};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::demo::s3::EmbeddedS3;
use crate::error::{Error, ErrorKind, Result};

pub const BUCKET: &str = "photos";

/// Endings of the files that are taken from a folder; a file named by itself is always taken.
const ENDINGS: [&str; 9] = ["jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "jfif"];
/// Uploads under way at once.
const UPLOADS: usize = 8;

/// One file to caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Photo {
    pub path: PathBuf,
    /// File name, as shown.
    pub name: String,
    /// Id of its reference and its answer, key of its object; unique in a run.
    pub id: String,
}

impl Photo {
    fn new(index: usize, path: PathBuf) -> Self {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        // A URI needs no escapes and a log no quotes with these characters.
        let plain = |letter: char| {
            if letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_') {
                letter
            } else {
                '_'
            }
        };
        let id = format!("{:04}-{}", index + 1, name.chars().map(plain).collect::<String>());
        Self { path, name, id }
    }

    /// The reference that goes to the input topic.
    pub fn reference(&self) -> String {
        let uri = format!("s3://{BUCKET}/{}", self.id);
        serde_json::json!({ "id": self.id, "uri": uri }).to_string()
    }
}

/// The files at `paths`: each file itself, and the images right inside each folder by name.
///
/// # Errors
/// `ErrorKind::Config` if a path does not exist or nothing is found; `ErrorKind::Io` if a folder
/// can't be read.
pub fn find(paths: &[PathBuf]) -> Result<Vec<Photo>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            files.extend(images_inside(path)?);
        } else if path.is_file() {
            files.push(path.clone());
        } else {
            return Err(Error::new(ErrorKind::Config, "PATH is no file or folder")
                .with("value", path.display()));
        }
    }
    if files.is_empty() {
        return Err(Error::new(ErrorKind::Config, "PATH holds no images")
            .with("value", format!("{paths:?}"))
            .with("allowed", ENDINGS.join(", ")));
    }
    Ok(files.into_iter().enumerate().map(|(index, path)| Photo::new(index, path)).collect())
}

fn images_inside(folder: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |error: std::io::Error| {
        Error::new(ErrorKind::Io, "can't read a folder")
            .with("path", folder.display())
            .because(error)
    };
    let mut images = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if path.is_file() && ENDINGS.contains(&ending.as_str()) {
            images.push(path);
        }
    }
    images.sort();
    Ok(images)
}

/// Puts every photo into [`BUCKET`] of `server`, through the public S3 protocol.
///
/// # Errors
/// `ErrorKind::Io`, naming the file.
pub async fn upload(photos: &[Photo], server: &EmbeddedS3) -> Result<()> {
    let client = client(server);
    client.create_bucket().bucket(BUCKET).send().await.map_err(|error| {
        Error::new(ErrorKind::Io, "can't make a bucket").with("bucket", BUCKET).because(error)
    })?;
    stream::iter(photos)
        .map(|photo| put(&client, photo))
        .buffer_unordered(UPLOADS)
        .try_collect::<()>()
        .await
}

async fn put(client: &Client, photo: &Photo) -> Result<()> {
    let bytes = tokio::fs::read(&photo.path).await.map_err(|error| {
        Error::new(ErrorKind::Io, "can't read a file")
            .with("path", photo.path.display())
            .because(error)
    })?;
    let request = client.put_object().bucket(BUCKET).key(&photo.id);
    request.body(ByteStream::from(bytes)).send().await.map_err(|error| {
        Error::new(ErrorKind::Io, "can't upload a file")
            .with("path", photo.path.display())
            .because(error)
    })?;
    Ok(())
}

fn client(server: &EmbeddedS3) -> Client {
    let pair = server.credentials();
    let secret = pair.secret_access_key.reveal();
    let credentials = Credentials::new(&pair.access_key_id, secret, None, None, "demo");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(server.endpoint())
        .credentials_provider(credentials)
        .force_path_style(true)
        .retry_config(RetryConfig::standard())
        .build();
    Client::from_conf(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_give_their_images_and_files_themselves() {
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
    fn a_missing_path_and_an_empty_folder_are_wrong() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().join("missing"), folder.path().to_owned()] {
            let error = find(&[path]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
        }
    }
}
