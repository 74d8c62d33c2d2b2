//! Reads, cleans and deduplicates captions from text files.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::info;

use super::settings::Settings;
use crate::error::{Error, ErrorKind, Result};

/// Maximum length of a line; longer lines are skipped.
const MAX_LINE_BYTES: usize = 2_000;

/// Skipped lines, by reason.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Skipped {
    pub invalid_utf8: usize,
    /// Lines of a JSON Lines file without a caption.
    pub malformed: usize,
    pub too_short: usize,
    pub too_long: usize,
    pub duplicate: usize,
}

impl Skipped {
    pub fn total(&self) -> usize {
        self.invalid_utf8 + self.malformed + self.too_short + self.too_long + self.duplicate
    }
}

impl fmt::Display for Skipped {
    /// Counts and reasons, such as "2 duplicate, 1 too long".
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons = [
            (self.invalid_utf8, "not UTF-8"),
            (self.malformed, "malformed"),
            (self.too_short, "too short"),
            (self.too_long, "too long"),
            (self.duplicate, "duplicate"),
        ];
        let found: Vec<String> = reasons
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, reason)| format!("{count} {reason}"))
            .collect();
        formatter.write_str(if found.is_empty() { "none" } else { "" })?;
        formatter.write_str(&found.join(", "))
    }
}

/// A line of a JSON Lines corpus; other fields are ignored.
#[derive(Deserialize)]
struct Line {
    #[serde(alias = "text")]
    caption: String,
}

/// The training and held-out captions.
pub struct Corpus {
    pub captions: Vec<String>,
    /// The last captions, not used for training.
    pub held_out: Vec<String>,
    pub skipped: Skipped,
    /// SHA-256 of the files' uncompressed bytes, in the order given.
    pub digest: String,
}

impl Corpus {
    /// Reads `files` with one caption per line, or JSON Lines (`.jsonl`) with a `caption` or `text`;
    /// either may be compressed with Zstandard (`.zst`).
    ///
    /// # Errors
    /// `ErrorKind::Config` if a file can't be read or too few captions remain.
    pub fn read(files: &[PathBuf], settings: &Settings) -> Result<Self> {
        let mut reader = Reader { settings, captions: Vec::new(), skipped: Skipped::default() };
        let mut hasher = Sha256::new();
        for path in files {
            hasher.update(&reader.read_file(path)?);
        }
        reader.drop_duplicates();
        let Reader { mut captions, skipped, .. } = reader;
        let minimum = settings.held_out + settings.batch_size;
        if captions.len() < minimum {
            return Err(too_few_captions(captions.len(), &skipped)
                .with_context("allowed", format!("at least {minimum} (held_out + batch_size)")));
        }
        let held_out = captions.split_off(captions.len() - settings.held_out);
        Ok(Self { captions, held_out, skipped, digest: hex::encode(hasher.finalize()) })
    }

    /// All captions of `files` in their order, including duplicates.
    ///
    /// # Errors
    /// `ErrorKind::Config` if a file can't be read.
    pub fn read_in_order(files: &[PathBuf], settings: &Settings) -> Result<Vec<String>> {
        let mut reader = Reader { settings, captions: Vec::new(), skipped: Skipped::default() };
        for path in files {
            reader.read_file(path)?;
        }
        info!(
            captions = reader.captions.len(),
            skipped = %reader.skipped,
            "read the captions in order"
        );
        Ok(reader.captions)
    }

    /// The training captions, followed by the held-out captions.
    pub fn all_captions(&self) -> Vec<String> {
        self.captions.iter().chain(&self.held_out).cloned().collect()
    }

    /// Drops captions of more than `max_length` tokens, including the begin and end tokens. `tokens`
    /// are in the order of [`Self::all_captions`].
    ///
    /// # Errors
    /// `ErrorKind::Config` if no training or no held-out captions remain.
    pub fn drop_too_long(&mut self, tokens: &mut Vec<Vec<u16>>, max_length: usize) -> Result<()> {
        let before = tokens.len();
        let fits = |caption: &Vec<u16>| caption.len() <= max_length;
        let mut verdicts = tokens.iter().map(fits).collect::<Vec<_>>().into_iter();
        let mut next = |_: &String| verdicts.next().unwrap_or(true);
        self.captions.retain(&mut next);
        self.held_out.retain(&mut next);
        tokens.retain(fits);
        self.skipped.too_long += before - tokens.len();
        if self.captions.is_empty() || self.held_out.is_empty() {
            return Err(too_few_captions(tokens.len(), &self.skipped)
                .with_context("allowed", format!("captions of at most {max_length} tokens")));
        }
        Ok(())
    }
}

fn too_few_captions(captions: usize, skipped: &Skipped) -> Error {
    Error::new(ErrorKind::Config, "the corpus has too few captions")
        .with_context("captions", captions)
        .with_context("skipped", skipped)
}

/// Collects captions line by line.
struct Reader<'a> {
    settings: &'a Settings,
    captions: Vec<String>,
    skipped: Skipped,
}

impl Reader<'_> {
    /// Reads the lines of a file; returns its uncompressed bytes.
    fn read_file(&mut self, path: &Path) -> Result<Vec<u8>> {
        let bytes = read_bytes(path)?;
        let json = path.to_string_lossy().trim_end_matches(".zst").ends_with(".jsonl");
        for line in bytes.split(|byte| *byte == b'\n') {
            self.read_line(line, json);
        }
        Ok(bytes)
    }

    fn read_line(&mut self, line: &[u8], json: bool) {
        let skipped = &mut self.skipped;
        if line.len() > MAX_LINE_BYTES {
            skipped.too_long += 1;
            return;
        }
        let Ok(text) = std::str::from_utf8(line) else {
            skipped.invalid_utf8 += 1;
            return;
        };
        if text.trim().is_empty() {
            return;
        }
        let caption = if json {
            let Ok(line) = serde_json::from_str::<Line>(text) else {
                skipped.malformed += 1;
                return;
            };
            clean(&line.caption)
        } else {
            clean(text)
        };
        let words = caption.split(' ').filter(|word| !word.is_empty()).count();
        if words < self.settings.min_words {
            skipped.too_short += 1;
        } else if words > self.settings.max_words {
            skipped.too_long += 1;
        } else {
            self.captions.push(caption);
        }
    }

    /// Drops repeated captions, which would be trained on repeatedly, and could be both in the
    /// training and in the held-out part.
    fn drop_duplicates(&mut self) {
        let before = self.captions.len();
        let mut seen = HashSet::with_capacity(before);
        self.captions.retain(|caption| seen.insert(Sha256::digest(caption)));
        self.skipped.duplicate += before - self.captions.len();
    }
}

/// Converts to lower case and single spaces, and strips quotes and the final full stop.
fn clean(text: &str) -> String {
    let lower = text.to_lowercase();
    let joined = lower.split_whitespace().collect::<Vec<_>>().join(" ");
    joined.trim_end_matches(['.', '!', ' ', '"']).trim_start_matches(['"', ' ']).to_owned()
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let failed = |error| {
        Error::new(ErrorKind::Config, "can't read the corpus")
            .with_context("path", path.display())
            .with_source(error)
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

    fn read(lines: &[&[u8]], json: bool) -> (Vec<String>, Skipped) {
        let settings = Settings::load(None).unwrap();
        let mut reader =
            Reader { settings: &settings, captions: Vec::new(), skipped: Skipped::default() };
        lines.iter().for_each(|line| reader.read_line(line, json));
        reader.drop_duplicates();
        (reader.captions, reader.skipped)
    }

    #[test]
    fn captions_are_cleaned_and_skipped_lines_are_counted() {
        let long = "word ".repeat(100);
        let endless = "x".repeat(100_000);
        let lines = [
            &b"  A Dog  runs.\r"[..],
            b"",
            b"two words",
            b"\xff\xfe bad",
            long.as_bytes(),
            endless.as_bytes(),
            b"a dog runs",
        ];
        let (captions, skipped) = read(&lines, false);
        assert_eq!(captions, ["a dog runs"]);
        let expected =
            Skipped { invalid_utf8: 1, malformed: 0, too_short: 1, too_long: 2, duplicate: 1 };
        assert_eq!(skipped, expected);
        assert_eq!(skipped.to_string(), "1 not UTF-8, 1 too short, 2 too long, 1 duplicate");
    }

    #[test]
    fn json_lines_have_the_caption_in_a_field() {
        let lines = [
            &br#"{"caption": "A cat sleeps.", "image_id": 7}"#[..],
            br#"{"text": "a bus waits"}"#,
            br#"{"title": "a bus waits"}"#,
            b"a bus waits",
        ];
        let (captions, skipped) = read(&lines, true);
        assert_eq!(captions, ["a cat sleeps", "a bus waits"]);
        assert_eq!(skipped, Skipped { malformed: 2, ..Skipped::default() });
    }

    #[test]
    fn captions_longer_than_the_decoder_allows_are_dropped() {
        let mut corpus = Corpus {
            captions: ["a", "b"].map(String::from).to_vec(),
            held_out: ["c", "d"].map(String::from).to_vec(),
            skipped: Skipped::default(),
            digest: String::new(),
        };
        let mut tokens = vec![vec![1, 9, 2], vec![1, 9, 9, 2], vec![1, 9, 9, 2], vec![1, 8, 2]];
        corpus.drop_too_long(&mut tokens, 3).unwrap();
        assert_eq!((corpus.captions, corpus.held_out), (vec!["a".into()], vec!["d".into()]));
        assert_eq!(tokens, [[1, 9, 2], [1, 8, 2]]);
        assert_eq!(corpus.skipped.too_long, 2);
    }
}
