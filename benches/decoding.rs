//! Beam search in tokens per second with the key-value cache, compared with recomputing all previous
//! tokens in every step: `models/tiny`, 32 images, 4 beams, 20 tokens. Checks that both choose the
//! same tokens. `cargo bench --features train --bench decoding`.

use std::time::Instant;

use fusioncap::bundle::{Bundle, DECODER};
use fusioncap::config::Runtime;
use fusioncap::onnx::initializers;
use kit::{root, table};
use ort::session::Session;
use ort::value::{DynValue, Tensor};

const IMAGES: usize = 32;
const BEAMS: usize = 4;
const TOKENS: usize = 20;
const ROUNDS: usize = 5;

/// The inputs of both methods.
struct Decoder {
    bundle: Bundle,
    session: Session,
    /// `[vocab_size, hidden_size]`
    embeddings: Vec<f32>,
    /// `[IMAGES, prefix_length, hidden_size]`
    prefix: Vec<f32>,
}

/// The tokens of each row, starting with the begin token, and the scores.
#[derive(Clone, Debug, PartialEq)]
struct Beams {
    tokens: Vec<Vec<i64>>,
    scores: Vec<f32>,
    parents: Vec<i64>,
}

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut decoder = load();
    assert_eq!(decoder.cached().tokens, decoder.recomputed().tokens, "both choose the same tokens");
    let (mut cached, mut recomputed) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        cached.push(rate(|| drop(decoder.cached())));
        recomputed.push(rate(|| drop(decoder.recomputed())));
    }
    let (cached, recomputed) = (median(cached), median(recomputed));
    table::head("caption decoding");
    println!(
        "  with the cache     {cached:8.0} tokens/s (tokens of captions, one of {BEAMS} beams)"
    );
    println!("  without the cache  {recomputed:8.0} tokens/s");
    table::row("with the cache / without", cached / recomputed, Some(3.0));
}

fn load() -> Decoder {
    let path = root("models/tiny");
    let bundle = Bundle::open(&path).expect("models/tiny is whole");
    let session = fusioncap::runtime::session(&Runtime::default(), &bundle.path(DECODER))
        .expect("the decoder loads");
    let weights = initializers::read(&bundle.path(DECODER)).expect("the weights can be read");
    let embeddings = weights["tokens"].values.clone();
    let model = &bundle.config;
    let count = IMAGES * model.prefix_length * model.hidden_size;
    let prefix = (0..count).map(|index| ((index * 7919 % 2003) as f32 / 1001.5 - 1.0) * 0.5);
    Decoder { prefix: prefix.collect(), embeddings, session, bundle }
}

impl Decoder {
    fn cached(&mut self) -> Beams {
        let model = self.bundle.config.clone();
        let mut beams = self.start();
        let mut past = self.no_past(IMAGES);
        let mut prefix = tensor(&[IMAGES, model.prefix_length, model.hidden_size], &self.prefix);
        for step in 0..TOKENS {
            let width = if step == 0 { 1 } else { BEAMS };
            (beams, past) = self.step(prefix, past, &beams, beams.parents.clone(), width);
            prefix = tensor(&[IMAGES * BEAMS, 0, model.hidden_size], &[]);
        }
        beams
    }

    fn recomputed(&mut self) -> Beams {
        let model = self.bundle.config.clone();
        let (length, hidden) = (model.prefix_length, model.hidden_size);
        let mut beams = self.start();
        for step in 0..TOKENS {
            let width = if step == 0 { 1 } else { BEAMS };
            let rows = beams.tokens.len();
            let mut fed = Vec::with_capacity(rows * (length + step) * hidden);
            for (row, tokens) in beams.tokens.iter().enumerate() {
                let image = row / width;
                let of_image = image * length * hidden..(image + 1) * length * hidden;
                fed.extend_from_slice(&self.prefix[of_image]);
                for id in &tokens[..tokens.len() - 1] {
                    let at = *id as usize * hidden;
                    fed.extend_from_slice(&self.embeddings[at..at + hidden]);
                }
            }
            let prefix = tensor(&[rows, length + step, hidden], &fed);
            let past = self.no_past(rows);
            let own = (0..rows as i64).collect();
            (beams, _) = self.step(prefix, past, &beams, own, width);
        }
        beams
    }

    fn start(&self) -> Beams {
        Beams {
            tokens: vec![vec![self.bundle.config.bos_token_id]; IMAGES],
            scores: vec![0.0; IMAGES],
            parents: (0..IMAGES as i64).collect(),
        }
    }

    fn no_past(&self, rows: usize) -> DynValue {
        let model = &self.bundle.config;
        let heads = model.num_attention_heads;
        tensor(&[2 * model.num_hidden_layers, rows, heads, 0, model.hidden_size / heads], &[])
    }

    /// One step without end tokens and without repeated tokens.
    fn step(
        &mut self,
        prefix: DynValue,
        past: DynValue,
        beams: &Beams,
        parents: Vec<i64>,
        width: usize,
    ) -> (Beams, DynValue) {
        let model = &self.bundle.config;
        let rows = beams.tokens.len();
        let last: Vec<i64> = beams.tokens.iter().map(|tokens| tokens[tokens.len() - 1]).collect();
        let banned: Vec<i64> = beams
            .tokens
            .iter()
            .flat_map(|tokens| {
                let mut ids = vec![model.pad_token_id; TOKENS + 2];
                ids[0] = model.eos_token_id;
                ids[1..=tokens.len()].copy_from_slice(tokens);
                ids
            })
            .collect();
        let whole = |shape: Vec<usize>, values: Vec<i64>| {
            Tensor::from_array((shape, values)).expect("a tensor").into_dyn()
        };
        let mut found = self
            .session
            .run(ort::inputs![
                "prefix" => prefix,
                "past" => past,
                "input_ids" => whole(vec![rows, 1], last),
                "parents" => whole(vec![rows], parents),
                "beam_scores" => tensor(&[IMAGES, width], &beams.scores),
                "banned_ids" => whole(vec![rows, TOKENS + 2], banned),
            ])
            .expect("a step");
        let present = found.remove("present").expect("the cache");
        let read = |name: &str| found[name].try_extract_tensor::<i64>().expect("numbers").1;
        let (next_tokens, parent_beams) = (read("tokens"), read("candidate_parents"));
        let scores = found["scores"].try_extract_tensor::<f32>().expect("numbers").1;
        let count = model.num_candidates;
        let mut next = Beams { tokens: vec![], scores: vec![], parents: vec![] };
        for image in 0..IMAGES {
            for at in (image * count..(image + 1) * count).take(BEAMS) {
                let row = image * width + parent_beams[at] as usize;
                let mut tokens = beams.tokens[row].clone();
                tokens.push(next_tokens[at]);
                next.tokens.push(tokens);
                next.scores.push(scores[at]);
                next.parents.push(row as i64);
            }
        }
        (next, present)
    }
}

fn tensor(shape: &[usize], values: &[f32]) -> DynValue {
    Tensor::from_array((shape.to_vec(), values.to_vec())).expect("a tensor").into_dyn()
}

fn rate(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    (IMAGES * TOKENS) as f64 / started.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
