//! CLIP's tokenizer: `tokenizer.json`, or the older files `vocab.json` and `merges.txt`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::config::{Pooling, TextConfig};
use crate::bundle::TOKENIZER;
use crate::error::{Error, Result};

const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// The text of the `tokenizer.json` for the text tower that `config` describes.
///
/// # Errors
/// `ErrorKind::Config` if the files are missing or unusable, or do not fit the tower.
pub fn read(dir: &Path, config: &TextConfig) -> Result<String> {
    let path = dir.join(TOKENIZER);
    let text = if path.exists() {
        fs::read_to_string(&path).map_err(|error| {
            Error::config_at("can't read the tokenizer", &path).with_source(error)
        })?
    } else {
        convert(dir)?
    };
    check(&text, &path, config)?;
    Ok(text)
}

/// Checks that the tower has all token ids, and that texts end with the end token, whose state is
/// the text embedding.
fn check(text: &str, path: &Path, config: &TextConfig) -> Result<()> {
    let unusable = || Error::config_at("the tokenizer can't be used", path);
    let mut tokenizer: Tokenizer =
        text.parse().map_err(|error: tokenizers::Error| unusable().with_source(error))?;
    let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or_default();
    if largest as usize >= config.vocab_size {
        return Err(Error::config_at("the tokenizer has more tokens than the text tower", path)
            .with_context("largest id", largest)
            .with_context("text_config.vocab_size", config.vocab_size));
    }
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| unusable().with_source(error))?;
    let encoding =
        tokenizer.encode("a photo", true).map_err(|error| unusable().with_source(error))?;
    let last = encoding.get_ids().last().copied().unwrap_or_default();
    let expected = match config.pooling {
        Pooling::FirstOf(id) => id,
        Pooling::LargestId => {
            i64::from(encoding.get_ids().iter().copied().max().unwrap_or_default())
        }
    };
    if i64::from(last) != expected {
        return Err(Error::config_at("the tokenizer does not end a text with the end token", path)
            .with_context("last id", last)
            .with_context("expected", expected));
    }
    Ok(())
}

/// Converts the older files to `tokenizer.json`, as `transformers` does.
fn convert(dir: &Path) -> Result<String> {
    let (vocab_path, merges_path) = (dir.join(VOCAB), dir.join(MERGES));
    if !vocab_path.exists() || !merges_path.exists() {
        return Err(Error::config_at(
            "there is neither tokenizer.json, nor vocab.json and merges.txt; download it with the \
             model, or write it with transformers: \
             AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR)",
            &dir.join(TOKENIZER),
        ));
    }
    let unusable = |path| Error::config_at("can't read a file of the tokenizer", path);
    let bytes = fs::read(&vocab_path).map_err(|error| unusable(&vocab_path).with_source(error))?;
    let vocab: BTreeMap<String, u32> =
        serde_json::from_slice(&bytes).map_err(|error| unusable(&vocab_path).with_source(error))?;
    let id = |token: &'static str| {
        vocab
            .get(token)
            .copied()
            .ok_or_else(|| unusable(&vocab_path).with_context("missing", token))
    };
    let (start, end) = (id(START)?, id(END)?);
    let text = fs::read_to_string(&merges_path)
        .map_err(|error| unusable(&merges_path).with_source(error))?;
    let merges: Vec<[&str; 2]> = text
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.trim().is_empty())
        .map(|line| {
            let (left, right) = line
                .split_once(' ')
                .ok_or_else(|| unusable(&merges_path).with_context("line", line))?;
            Ok([left, right])
        })
        .collect::<Result<_>>()?;
    Ok(tokenizer_json(&vocab, &merges, (START, start), (END, end)).to_string())
}

fn tokenizer_json(
    vocab: &BTreeMap<String, u32>,
    merges: &[[&str; 2]],
    start: (&str, u32),
    end: (&str, u32),
) -> Value {
    let special = |(content, id): (&str, u32)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(start), special(end)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": words}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        ]},
        "post_processor": {
            "type": "RobertaProcessing", "sep": [end.0, end.1], "cls": [start.0, start.1],
            "trim_offsets": false, "add_prefix_space": false,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "vocab": vocab, "merges": merges,
        },
    })
}
