//! A bundle's directory: the input is one file after the other, each behind a line `=== name`.
//! Without a manifest among them the directory is sealed, so that what is behind it is reached.
#![no_main]

use std::fs;
use std::path::{Component, Path};

use fusioncap::bundle::{self, Bundle};
use fusioncap::image::Preprocessor;
use fusioncap::{Error, ErrorKind};
use libfuzzer_sys::fuzz_target;

const MARK: &str = "=== ";

fuzz_target!(
    // Only a panic that gets past the loader is one too many; libFuzzer would end at any.
    init: std::panic::set_hook(Box::new(|_| {})),
    |input: &[u8]| run(input)
);

fn run(input: &[u8]) {
    // In memory where there is such a place: a run opens thousands of directories a second.
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let dir = dir.expect("a directory for the bundle");
    for name in [bundle::VISION, bundle::PREFIX, bundle::DECODER] {
        write(dir.path(), name, b"");
    }
    let text = String::from_utf8_lossy(input);
    for part in text.split(MARK) {
        let (name, content) = part.split_once('\n').unwrap_or((part, ""));
        write(dir.path(), name, content.as_bytes());
    }
    if !dir.path().join(bundle::MANIFEST).exists() {
        bundle::seal(dir.path()).expect("the directory can be sealed");
    }
    if let Err(error) = open(dir.path()) {
        let named = matches!(error.kind(), ErrorKind::Bundle | ErrorKind::Io);
        assert!(named, "refused as {}", error.kind());
    }
}

fn open(dir: &Path) -> Result<(), Error> {
    let bundle = Bundle::open(dir)?;
    assert!(bundle.config.bos_token_id >= 0, "a token before the first");
    let tokenizer = bundle.tokenizer()?;
    // With any vocabulary, tokens have a text or an error.
    let _ = tokenizer.decode(&[0, 1, 2, u32::MAX], true);
    let preprocessor = Preprocessor::new(bundle.preprocessor)?;
    let (height, width) = preprocessor.input_size();
    assert!(height * width > 0, "an input of no pixels");
    let mut tensor = [0.0; 12];
    preprocessor.normalise(&[0, 128, 255, 1, 2, 3, 4, 5, 6, 7, 8, 9], &mut tensor);
    Ok(())
}

/// Only below the directory, and only where a name is one.
fn write(dir: &Path, name: &str, content: &[u8]) {
    let path = Path::new(name);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    if !inside || name.is_empty() || name.contains('\0') || name.len() > 64 {
        return;
    }
    let full = dir.join(path);
    if let Some(parent) = full.parent() {
        let _ = fs::create_dir_all(parent);
    }
    let _ = fs::write(full, content);
}
