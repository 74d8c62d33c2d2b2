//! The text tower of an encoder directory or of a bundle: sentences to embeddings.

use std::path::Path;

use ort::session::Session;
use ort::value::Tensor;
use tokenizers::{Encoding, PaddingParams, Tokenizer, TruncationParams};

use crate::bundle::{Bundle, TEXT, TEXT_TOKENIZER, TOKENIZER, read_tokenizer};
use crate::config::Runtime;
use crate::error::{Error, ErrorKind, Result};

/// Sentences per run: enough to keep the cores busy, few enough to stay in the cache.
const BATCH: usize = 64;

pub struct TextTower {
    session: Session,
    tokenizer: Tokenizer,
}

impl TextTower {
    /// Opens the text tower of the encoder in `dir`. Texts are truncated to `max_length` tokens.
    ///
    /// # Errors
    /// `ErrorKind::Bundle` for the tokenizer; `Runtime` for the graph.
    pub fn open(dir: &Path, max_length: usize, runtime: &Runtime) -> Result<Self> {
        Self::load(&dir.join(TOKENIZER), &dir.join(TEXT), max_length, runtime)
    }

    /// Opens the text tower of `bundle`, if it has one.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_bundle(bundle: &Bundle, runtime: &Runtime) -> Result<Option<Self>> {
        let Some(max_length) = bundle.config.text_max_length else {
            return Ok(None);
        };
        let (tokenizer, graph) = (bundle.path(TEXT_TOKENIZER), bundle.path(TEXT));
        Self::load(&tokenizer, &graph, max_length, runtime).map(Some)
    }

    fn load(path: &Path, graph: &Path, max_length: usize, runtime: &Runtime) -> Result<Self> {
        let unusable = |error: tokenizers::Error| {
            Error::new(ErrorKind::Bundle, "the text tower's tokenizer can't be used")
                .with_context("path", path.display())
                .with_source(error)
        };
        let mut tokenizer = read_tokenizer(path)?;
        let truncation = TruncationParams { max_length, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(unusable)?;
        tokenizer.with_padding(Some(PaddingParams::default()));
        let session = crate::runtime::session(runtime, graph)?;
        Ok(Self { session, tokenizer })
    }

    /// Unit-length embeddings of `sentences`, row-major `[sentences, embedding_dim]`.
    pub fn embed(&mut self, sentences: &[String]) -> Result<Vec<f32>> {
        self.embed_with_progress(sentences, |_| {})
    }

    /// As [`Self::embed`]; `progress` is called with the number of sentences done.
    pub fn embed_with_progress(
        &mut self,
        sentences: &[String],
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<f32>> {
        // Sentences of similar length share a batch, which needs little padding.
        let mut order: Vec<usize> = (0..sentences.len()).collect();
        order.sort_by_key(|index| sentences[*index].len());
        let mut embeddings = Vec::new();
        let mut done = 0;
        for batch in order.chunks(BATCH) {
            let texts = batch.iter().map(|index| sentences[*index].as_str()).collect();
            let rows = self.embed_batch(texts)?;
            let width = rows.len() / batch.len();
            embeddings.resize(sentences.len() * width, 0.0);
            for (row, index) in batch.iter().enumerate() {
                let target = &mut embeddings[index * width..(index + 1) * width];
                target.copy_from_slice(&rows[row * width..(row + 1) * width]);
            }
            done += batch.len();
            progress(done);
        }
        Ok(embeddings)
    }

    /// Unit-length states of the tokens of each text, row-major `[tokens, embedding_dim]`, without
    /// special tokens.
    pub fn token_states(&mut self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let encodings = self.tokenize(texts.to_vec())?;
        let columns = encodings.first().map_or(0, |encoding| encoding.len());
        let mut states = self.run(&encodings, "token_embeds")?;
        let width = (states.len() / (encodings.len() * columns).max(1)).max(1);
        states.chunks_exact_mut(width).for_each(scale_to_unit);
        let rows = states.chunks_exact((columns * width).max(1));
        Ok(encodings
            .iter()
            .zip(rows)
            .map(|(encoding, row)| {
                // The mask covers padding too.
                let special = encoding.get_special_tokens_mask();
                let own =
                    row.chunks_exact(width).zip(special).filter(|(_, special)| **special == 0);
                own.flat_map(|(state, _)| state).copied().collect()
            })
            .collect())
    }

    fn embed_batch(&mut self, texts: Vec<&str>) -> Result<Vec<f32>> {
        let encodings = self.tokenize(texts)?;
        let mut unit = self.run(&encodings, "text_embeds")?;
        // The embeddings of a CLIP are not normalised.
        let width = (unit.len() / encodings.len().max(1)).max(1);
        unit.chunks_exact_mut(width).for_each(scale_to_unit);
        Ok(unit)
    }

    fn tokenize(&self, texts: Vec<&str>) -> Result<Vec<Encoding>> {
        self.tokenizer.encode_batch(texts, true).map_err(|error| {
            Error::new(ErrorKind::Runtime, "can't tokenize a sentence").with_source(error)
        })
    }

    /// The values of `output`, row-major, for texts of one padded length.
    fn run(&mut self, encodings: &[Encoding], output: &str) -> Result<Vec<f32>> {
        let rows = encodings.len();
        let columns = encodings.first().map_or(0, |encoding| encoding.len());
        let widen =
            |values: &[u32]| values.iter().map(|value| i64::from(*value)).collect::<Vec<_>>();
        let ids: Vec<i64> =
            encodings.iter().flat_map(|encoding| widen(encoding.get_ids())).collect();
        let mask: Vec<i64> =
            encodings.iter().flat_map(|encoding| widen(encoding.get_attention_mask())).collect();
        let outputs = self
            .session
            .run(ort::inputs![
                "input_ids" => Tensor::from_array(([rows, columns], ids)).map_err(runtime_error)?,
                "attention_mask" => Tensor::from_array(([rows, columns], mask)).map_err(runtime_error)?,
            ])
            .map_err(runtime_error)?;
        let (_, values) = outputs[output].try_extract_tensor::<f32>().map_err(runtime_error)?;
        Ok(values.to_vec())
    }
}

/// Scales `row` to unit length; a row of zeros does not change.
fn scale_to_unit(row: &mut [f32]) {
    let length = row.iter().map(|entry| entry * entry).sum::<f32>().sqrt();
    if length > 0.0 {
        row.iter_mut().for_each(|entry| *entry /= length);
    }
}

fn runtime_error(error: ort::Error) -> Error {
    Error::new(ErrorKind::Runtime, "the text tower failed").with_source(error)
}
