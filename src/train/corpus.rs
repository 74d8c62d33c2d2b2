//! Captions read from text files, one a line, cleaned and counted.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::settings::Settings;
use crate::error::{Error, ErrorKind, Result};

/// Lines left out, by reason.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Skipped {
    pub invalid_utf8: usize,
    pub too_short: usize,
    pub too_long: usize,
}

impl Skipped {
    pub fn total(&self) -> usize {
        self.invalid_utf8 + self.too_short + self.too_long
    }
}

/// The captions to learn from.
pub struct Corpus {
    pub captions: Vec<String>,
    /// The last captions, which training never sees.
    pub held_out: Vec<String>,
    pub skipped: Skipped,
    /// SHA-256 of the files' (uncompressed) bytes, in the order given.
    pub digest: String,
}

impl Corpus {
    /// Reads `files`, plain text or Zstandard (`.zst`).
    ///
    /// # Errors
    /// `ErrorKind::Config` if a file can't be read or too few captions remain.
    pub fn read(files: &[PathBuf], settings: &Settings) -> Result<Self> {
        let mut captions = Vec::new();
        let mut skipped = Skipped::default();
        let mut hasher = Sha256::new();
        for path in files {
            let bytes = read_bytes(path)?;
            hasher.update(&bytes);
            for line in bytes.split(|byte| *byte == b'\n') {
                take(line, settings, &mut captions, &mut skipped);
            }
        }
        let least = settings.held_out + settings.batch_size;
        if captions.len() < least {
            return Err(Error::new(ErrorKind::Config, "the corpus holds too few captions")
                .with("captions", captions.len())
                .with("skipped", skipped.total())
                .with("allowed", format!("at least {least} (held_out + batch_size)")));
        }
        let held_out = captions.split_off(captions.len() - settings.held_out);
        Ok(Self { captions, held_out, skipped, digest: hex::encode(hasher.finalize()) })
    }
}

fn take(line: &[u8], settings: &Settings, captions: &mut Vec<String>, skipped: &mut Skipped) {
    let Ok(text) = std::str::from_utf8(line) else {
        skipped.invalid_utf8 += 1;
        return;
    };
    let caption = clean(text);
    if caption.is_empty() {
        return;
    }
    let words = caption.split(' ').count();
    if words < settings.min_words {
        skipped.too_short += 1;
    } else if words > settings.max_words {
        skipped.too_long += 1;
    } else {
        captions.push(caption);
    }
}

/// Lower case, single spaces, no final stop.
fn clean(text: &str) -> String {
    let lower = text.to_lowercase();
    let joined = lower.split_whitespace().collect::<Vec<_>>().join(" ");
    joined.trim_end_matches(['.', '!', ' ', '"']).trim_start_matches(['"', ' ']).to_owned()
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let failed = |error| {
        Error::new(ErrorKind::Config, "can't read the corpus")
            .with("path", path.display())
            .because(error)
    };
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let mut bytes = Vec::new();
    if path.extension().is_some_and(|extension| extension == "zst") {
        zstd::stream::copy_decode(file, &mut bytes).map_err(failed)?;
    } else {
        file.read_to_end(&mut bytes).map_err(failed)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_cleaned_and_what_is_left_out_is_counted() {
        let settings = Settings::load(None).unwrap();
        let (mut captions, mut skipped) = (Vec::new(), Skipped::default());
        let long = "word ".repeat(100_000);
        for line in [&b"  A Dog  runs.\r"[..], b"", b"two words", b"\xff\xfe bad", long.as_bytes()]
        {
            take(line, &settings, &mut captions, &mut skipped);
        }
        assert_eq!(captions, ["a dog runs"]);
        assert_eq!(skipped, Skipped { invalid_utf8: 1, too_short: 1, too_long: 1 });
    }
}
