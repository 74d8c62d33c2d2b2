//! The exported graphs compute the same as the model in burn.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use fusioncap::config::Runtime;
use fusioncap::model::local::{LocalFeatures, LocalSource};
use fusioncap::model::{FusionCap, projection};
use fusioncap::onnx::prefix::Alignment;
use fusioncap::onnx::{decoder, prefix};
use fusioncap::train::export::{self, Constants};
use fusioncap::train::settings::Settings;
use half::f16;
use ort::session::Session;
use ort::value::Tensor as OrtTensor;

use super::{settings, take_turn};

const VOCAB: usize = 50;
const DIM: usize = 24;

/// Enlarges the weights and rounds them to the 16 bits of the export.
struct Enlarge;

impl ModuleMapper for Enlarge {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let factor = if D == 2 { 6.0 } else { 1.0 };
        parameter.map(|tensor| {
            let (device, shape) = (tensor.device(), tensor.shape());
            let values: Vec<f32> = tensor
                .into_data()
                .iter::<f32>()
                .map(|value| f16::from_f32(factor * value).to_f32())
                .collect();
            Tensor::from_data(TensorData::new(values, shape), &device)
        })
    }
}

fn shape_settings() -> Settings {
    let mut settings = settings();
    settings.shape.num_hidden_layers = 2;
    settings.shape.num_attention_heads = 4;
    settings.shape.prefix_length = 3;
    settings
}

fn model(settings: &Settings, device: &Device) -> FusionCap {
    let _turn = take_turn();
    device.seed(11);
    FusionCap::new(&settings.model_spec(DIM, VOCAB), device).map(&mut Enlarge)
}

/// Embeddings that are exact in 16 bits, `[rows, DIM]`.
fn embeddings(rows: usize) -> Vec<f32> {
    (0..rows * DIM).map(|index| f16::from_f32((index as f32 * 1.7).sin()).to_f32()).collect()
}

fn session(bytes: &[u8]) -> Session {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    fusioncap::runtime::session(&Runtime::default(), file.path()).unwrap()
}

fn floats(value: &ort::value::DynValue) -> Vec<f32> {
    value.try_extract_tensor::<f32>().unwrap().1.to_vec()
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (left, right) in found.iter().zip(expected) {
        assert!((left - right).abs() < 1e-3 * right.abs().max(1.0), "{left} is not {right}");
    }
}

/// Rows of `values` as `[rows, DIM]`.
fn rows(values: &[f32], device: &Device) -> Tensor<2> {
    let shape = [values.len() / DIM, DIM];
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// The indices of the largest entries, largest first.
fn largest(values: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|left, right| values[*right].total_cmp(&values[*left]));
    order.truncate(count);
    order
}

/// The expected local embeddings of an image: the patches nearest to the image, or the nouns with the
/// largest shares over the patches.
fn local_features(settings: &Settings, image: &[f32], patches: &[f32], nouns: &[f32]) -> Vec<f32> {
    let unit = |row: &[f32]| -> Vec<f32> {
        let length = row.iter().map(|entry| entry * entry).sum::<f32>().sqrt();
        row.iter().map(|entry| entry / length).collect()
    };
    let cosine = |left: &[f32], right: &[f32]| -> f32 {
        unit(left).iter().zip(unit(right)).map(|(left, right)| left * right).sum()
    };
    let local = &settings.local;
    if local.source == LocalSource::Tokens {
        let cosines: Vec<f32> = patches.chunks(DIM).map(|patch| cosine(patch, image)).collect();
        let chosen = largest(&cosines, local.items);
        return chosen.iter().flat_map(|patch| unit(&patches[patch * DIM..][..DIM])).collect();
    }
    let mut shares = vec![0.0; nouns.len() / DIM];
    for patch in patches.chunks(DIM) {
        let weight = |noun: &[f32]| {
            let dot: f32 = unit(patch).iter().zip(noun).map(|(left, right)| left * right).sum();
            (dot / local.temperature).exp()
        };
        let weights: Vec<f32> = nouns.chunks(DIM).map(weight).collect();
        let sum: f32 = weights.iter().sum();
        shares.iter_mut().zip(weights).for_each(|(share, weight)| *share += weight / sum);
    }
    let chosen = largest(&shares, local.items);
    chosen.iter().flat_map(|noun| &nouns[noun * DIM..][..DIM]).copied().collect()
}

/// Exports a model with `settings` and compares its prefix with burn's.
fn assert_prefix_is_exported(settings: &Settings, alignment: Option<Alignment>) {
    const PATCHES: usize = 5;
    let device = Device::flex();
    let model = model(settings, &device);
    let all = embeddings(9 + 3 + 3 * PATCHES + 6);
    let (memory, rest) = all.split_at(9 * DIM);
    let (images, rest) = rest.split_at(3 * DIM);
    let (patches, nouns) = rest.split_at(3 * PATCHES * DIM);
    let expected_features: Vec<f32> = images
        .chunks(DIM)
        .zip(patches.chunks(PATCHES * DIM))
        .flat_map(|(image, patches)| local_features(settings, image, patches, nouns))
        .collect();
    let items = settings.local.items;
    let features = settings.local.enabled.then(|| LocalFeatures {
        embeddings: rows(&expected_features, &device).reshape([3, items, DIM]),
        padding_mask: Tensor::<2, Bool>::full([3, items], false, &device),
    });
    let mut moved = projection::l2_normalize(rows(images, &device));
    if let Some(alignment) = &alignment {
        moved = moved * rows(&alignment.scale, &device) + rows(&alignment.shift, &device);
    }
    let temperature = settings.projection.image_temperature;
    let spec = settings.model_spec(DIM, VOCAB);
    let expected = values(model.encode_prefix(
        &spec,
        Some(&rows(memory, &device)),
        moved,
        features,
        temperature,
    ));

    let constants = Constants { embedding_dim: DIM, patches: PATCHES, memory, alignment, nouns };
    let weights = export::prefix_weights(&model, settings, &constants).unwrap();
    let mut session = session(&prefix::write(&weights));
    let image = OrtTensor::from_array(([3, DIM], images.to_vec())).unwrap();
    let mut inputs = ort::inputs!["image_embeds" => image];
    if settings.local.enabled {
        let patches = OrtTensor::from_array(([3, PATCHES, DIM], patches.to_vec())).unwrap();
        inputs.push(("patch_embeds".into(), patches.into()));
    }
    let outputs = session.run(inputs).unwrap();
    assert_close(&floats(&outputs["prefix"]), &expected);
    for row in floats(&outputs["embedding"]).chunks(DIM) {
        let length: f32 = row.iter().map(|entry| entry * entry).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    if !settings.local.enabled {
        return assert!(outputs.get("local_attention").is_none());
    }
    for attention in floats(&outputs["local_attention"]).chunks(PATCHES) {
        let sum: f32 = attention.iter().sum();
        assert!(attention.iter().all(|share| *share >= 0.0) && sum < 1.0 + 1e-5, "{attention:?}");
    }
}

#[test]
fn the_exported_prefix_is_the_trained_one() {
    let mut settings = shape_settings();
    settings.projection.image_temperature = 0.2;
    assert_prefix_is_exported(&settings, None);
    settings.projection.keep_embedding = true;
    let shift = embeddings(1);
    let scale = shift.iter().map(|entry| 1.0 + entry * entry).collect();
    assert_prefix_is_exported(&settings, Some(Alignment { scale, shift }));
    settings.local.enabled = true;
    settings.local.items = 3;
    settings.local.temperature = 0.3;
    assert_prefix_is_exported(&settings, None);
    settings.local.source = LocalSource::Tokens;
    assert_prefix_is_exported(&settings, None);
    settings.projection.enabled = false;
    assert_prefix_is_exported(&settings, None);
}

/// The exported decoder with its cache.
struct Exported {
    session: Session,
    hidden: usize,
    past: Vec<f32>,
    past_shape: Vec<usize>,
}

/// The candidates of a step, `[images, VOCAB]` each.
struct Step {
    scores: Vec<f32>,
    tokens: Vec<i64>,
    parents: Vec<i64>,
}

impl Exported {
    fn new(model: &FusionCap) -> Self {
        let settings = shape_settings();
        let mut weights = export::decoder_weights(model, VOCAB, &settings).unwrap();
        weights.candidates = VOCAB;
        let shape = settings.shape;
        let size = shape.hidden_size / shape.num_attention_heads;
        Self {
            session: session(&decoder::write(&weights)),
            hidden: shape.hidden_size,
            past: Vec::new(),
            past_shape: vec![2 * shape.num_hidden_layers, 2, shape.num_attention_heads, 0, size],
        }
    }

    /// One step for two images; the padding token 0 is banned.
    fn step(&mut self, prefix: &[f32], ids: &[i64], parents: &[i64], scores: &[f32]) -> Step {
        let rows = ids.len();
        let length = prefix.len() / (rows * self.hidden);
        let past = (self.past_shape.clone(), self.past.clone());
        let inputs = ort::inputs![
            "prefix" =>
                OrtTensor::from_array(([rows, length, self.hidden], prefix.to_vec())).unwrap(),
            "input_ids" => OrtTensor::from_array(([rows, 1], ids.to_vec())).unwrap(),
            "past" => OrtTensor::from_array(past).unwrap(),
            "parents" => OrtTensor::from_array(([rows], parents.to_vec())).unwrap(),
            "beam_scores" => OrtTensor::from_array(([2, rows / 2], scores.to_vec())).unwrap(),
            "banned_ids" => OrtTensor::from_array(([rows, 1], vec![0_i64; rows])).unwrap(),
        ];
        let outputs = self.session.run(inputs).unwrap();
        let integers = |name: &str| outputs[name].try_extract_tensor::<i64>().unwrap().1.to_vec();
        let (shape, present) = outputs["present"].try_extract_tensor::<f32>().unwrap();
        self.past_shape = shape.iter().map(|size| *size as usize).collect();
        self.past = present.to_vec();
        Step {
            scores: floats(&outputs["scores"]),
            tokens: integers("tokens"),
            parents: integers("candidate_parents"),
        }
    }
}

/// Checks candidates against `expected[row][token]`, the score of every continuation.
fn assert_best(step: &Step, expected: &[Vec<f32>]) {
    let beams = expected.len() / 2;
    for (image, rows) in expected.chunks(beams).enumerate() {
        let mut best: Vec<f32> = rows.iter().flat_map(|row| &row[1..]).copied().collect();
        best.sort_by(|left, right| right.total_cmp(left));
        // With one beam, the banned token is the last candidate.
        let count = VOCAB.min(best.len());
        let range = image * VOCAB..image * VOCAB + count;
        assert_close(&step.scores[range.clone()], &best[..count]);
        for index in range {
            let (row, token) = (step.parents[index] as usize, step.tokens[index] as usize);
            let score = rows[row][token];
            assert!((step.scores[index] - score).abs() < 1e-3, "row {row}, token {token}");
        }
    }
}

#[test]
fn the_exported_decoder_is_the_trained_one() {
    let device = Device::flex();
    let settings = shape_settings();
    let model = model(&settings, &device);
    let (length, hidden) = (settings.shape.prefix_length, settings.shape.hidden_size);
    let prefixes: Vec<f32> = (0..2 * length * hidden).map(|index| (index as f32).cos()).collect();
    // burn's log-probabilities after `texts`, each with the prefix of its image, plus the scores.
    let expected = |texts: &[&[i64]], images: &[usize], scores: &[f32]| -> Vec<Vec<f32>> {
        let next_token_scores = |((text, image), score): ((&&[i64], &usize), &f32)| {
            let values = prefixes[image * length * hidden..(image + 1) * length * hidden].to_vec();
            let prefix =
                Tensor::<3>::from_data(TensorData::new(values, [1, length, hidden]), &device);
            let tokens = TensorData::new(text.to_vec(), [1, text.len()]);
            let logits = model
                .decoder
                .forward(prefix, Tensor::<2, Int>::from_data(tokens, &device))
                .narrow(1, text.len() - 1, 1);
            let likely = log_softmax(logits.reshape([VOCAB]), 0);
            likely.into_data().iter::<f32>().map(|entry| entry + score).collect()
        };
        texts.iter().zip(images).zip(scores).map(next_token_scores).collect()
    };
    let mut exported = Exported::new(&model);

    let step = exported.step(&prefixes, &[1, 1], &[0, 1], &[0.0, 0.0]);
    assert_best(&step, &expected(&[&[1], &[1]], &[0, 1], &[0.0, 0.0]));
    assert!(step.scores[VOCAB - 1].is_infinite() && step.tokens[VOCAB - 1] == 0);

    // Two beams per image from here on.
    let scores = [-1.0, -2.5, -0.5, -0.7];
    let step = exported.step(&[], &[5, 9, 30, 49], &[0, 0, 1, 1], &scores);
    let texts: [&[i64]; 4] = [&[1, 5], &[1, 9], &[1, 30], &[1, 49]];
    assert_best(&step, &expected(&texts, &[0, 0, 1, 1], &scores));

    // The beams are reordered, and one is dropped.
    let step = exported.step(&[], &[7, 8, 3, 4], &[1, 0, 2, 2], &scores);
    let texts: [&[i64]; 4] = [&[1, 9, 7], &[1, 5, 8], &[1, 30, 3], &[1, 30, 4]];
    assert_best(&step, &expected(&texts, &[0, 0, 1, 1], &scores));
}
