//! The inputs of a study (`study.toml`, beside its bundles): existing bundles are reused only for
//! the same inputs.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use crate::bundle::{CONFIG, MANIFEST, PREPROCESSOR_CONFIG, TEXT, TOKENIZER, VISION};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::external;
use crate::train::settings::Settings;

const FILE: &str = "study.toml";

/// All inputs of a study's bundles.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Provenance {
    /// SHA-256 of the captions in image order, including those held out.
    pub corpus: String,
    /// SHA-256 of the encoder's files.
    pub encoder: String,
    /// Images held out.
    pub proxies: usize,
    /// [`Settings`] as TOML, so that the settings of another version differ instead of failing to
    /// parse.
    pub settings: Table,
}

impl Provenance {
    /// # Errors
    /// `ErrorKind::Bundle` with the encoder's file that can't be read.
    pub fn new(
        encoder: &Path,
        captions: &[String],
        proxies: usize,
        settings: &Settings,
    ) -> Result<Self> {
        let mut hasher = Sha256::new();
        for caption in captions {
            hasher.update(caption.as_bytes());
            hasher.update(b"\n");
        }
        Ok(Self {
            corpus: hex::encode(hasher.finalize()),
            encoder: encoder_digest(encoder)?,
            proxies,
            settings: Table::try_from(settings).map_err(unwritable)?,
        })
    }

    /// Compares this with the study in `folder`.
    ///
    /// # Errors
    /// `ErrorKind::Config` if `folder` holds bundles of another study or of unknown origin.
    pub fn check(&self, folder: &Path) -> Result<()> {
        let refusal = |message: &'static str| {
            Error::new(ErrorKind::Config, message).with_context("path", folder.display())
        };
        let Ok(text) = fs::read_to_string(folder.join(FILE)) else {
            if holds_bundles(folder) {
                return Err(
                    refusal("--out holds bundles of unknown origin").with_context("missing", FILE)
                );
            }
            return Ok(());
        };
        let found: Self = toml::from_str(&text)
            .map_err(|error| refusal("--out: study.toml can't be parsed").with_source(error))?;
        match self.difference(&found) {
            None => Ok(()),
            Some(input) => {
                Err(refusal("--out holds the bundles of another study")
                    .with_context("differs", input))
            }
        }
    }

    /// Writes this to `folder` atomically.
    ///
    /// # Errors
    /// `ErrorKind::Io` if it can't be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let staging = path.with_extension("part");
        let text = toml::to_string(self).map_err(unwritable)?;
        fs::write(&staging, text)
            .and_then(|()| fs::rename(&staging, &path))
            .map_err(|error| Error::unwritable(&path, error))
    }

    /// The first input in which `other` differs.
    fn difference(&self, other: &Self) -> Option<String> {
        if self.corpus != other.corpus {
            return Some("corpus".into());
        }
        if self.encoder != other.encoder {
            return Some("encoder".into());
        }
        if self.proxies != other.proxies {
            return Some(format!("proxies ({}, now {})", other.proxies, self.proxies));
        }
        different_field("settings", &other.settings, &self.settings)
    }
}

/// The first field below `name` that differs.
fn different_field(name: &str, before: &Table, now: &Table) -> Option<String> {
    let text = |value: Option<&Value>| value.map_or("none".into(), Value::to_string);
    before.keys().chain(now.keys()).find_map(|key| {
        let field = format!("{name}.{key}");
        match (before.get(key), now.get(key)) {
            (old, new) if old == new => None,
            (Some(Value::Table(old)), Some(Value::Table(new))) => different_field(&field, old, new),
            (old, new) => Some(format!("{field} ({}, now {})", text(old), text(new))),
        }
    })
}

fn unwritable(error: toml::ser::Error) -> Error {
    Error::new(ErrorKind::Internal, "can't write the settings").with_source(error)
}

fn holds_bundles(folder: &Path) -> bool {
    fs::read_dir(folder)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.path().join(MANIFEST).is_file()))
}

fn encoder_digest(dir: &Path) -> Result<String> {
    let graphs = [VISION, TEXT].map(|name| dir.join(name));
    let data = graphs.iter().map(|path| external::data_path(path)).filter(|path| path.is_file());
    let others = [CONFIG, PREPROCESSOR_CONFIG, TOKENIZER].map(|name| dir.join(name));
    let mut whole = Sha256::new();
    for path in others.into_iter().chain(data).chain(graphs.clone()) {
        let mut hasher = Sha256::new();
        let mut read = || io::copy(&mut File::open(&path)?, &mut hasher);
        read().map_err(|error| {
            Error::new(ErrorKind::Bundle, "can't read a file of the encoder")
                .with_context("path", path.display())
                .with_source(error)
        })?;
        whole.update(hasher.finalize());
    }
    Ok(hex::encode(whole.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance() -> Provenance {
        let settings = Settings::load(None).unwrap();
        Provenance {
            corpus: "c".into(),
            encoder: "e".into(),
            proxies: 12,
            settings: Table::try_from(settings).unwrap(),
        }
    }

    #[test]
    fn a_folder_belongs_to_one_study() {
        let folder = tempfile::tempdir().unwrap();
        let first = provenance();
        first.check(folder.path()).unwrap();
        first.write(folder.path()).unwrap();
        first.check(folder.path()).unwrap();

        let mut settings = Settings::load(None).unwrap();
        settings.noise.sigma *= 2.0;
        let settings = Table::try_from(settings).unwrap();
        let cases = [
            (Provenance { corpus: "d".into(), ..provenance() }, "differs: corpus"),
            (Provenance { encoder: "f".into(), ..provenance() }, "differs: encoder"),
            (Provenance { proxies: 13, ..provenance() }, "differs: proxies (12, now 13)"),
            (Provenance { settings, ..provenance() }, "differs: settings.noise.sigma (0.06"),
        ];
        for (other, reason) in cases {
            let refused = other.check(folder.path()).unwrap_err();
            assert_eq!(refused.exit_code(), 2);
            let (text, path) = (refused.to_string(), folder.path().display().to_string());
            assert!(text.contains(reason) && text.contains(&path), "{refused}");
        }
    }

    #[test]
    fn bundles_of_unknown_origin_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("capdec-1")).unwrap();
        fs::write(folder.path().join("capdec-1").join(MANIFEST), "{}").unwrap();
        let refused = provenance().check(folder.path()).unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        assert!(refused.to_string().contains("missing: study.toml"), "{refused}");
    }
}
