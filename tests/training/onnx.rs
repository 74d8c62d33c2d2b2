//! Graphs and encoders in ONNX Runtime: results, the encoder's contract, and errors for damaged
//! files.
//!
//! Needs ONNX Runtime's library (`make onnxruntime`, or `ORT_DYLIB_PATH`). With
//! `FUSIONCAP_TEST_PACKAGES=DIR`, a directory with the stand-in's packages, the stand-in is also
//! built and tested on the sample photos.

use std::fs;
use std::path::{Path, PathBuf};

use fusioncap::bundle::TEXT;
use fusioncap::bundle::{PREPROCESSOR_CONFIG, PreprocessorConfig, TOKENIZER, VISION};
use fusioncap::config::Runtime;
use fusioncap::encoder::bert::BertConfig;
use fusioncap::encoder::weights::Weights;
use fusioncap::encoder::{EncoderConfig, bert, random, standin, weights};
use fusioncap::error::{Error, ErrorKind};
use fusioncap::onnx::graph::{Attribute, Dim, Graph};
use fusioncap::onnx::proto::{DataType, ModelProto};
use fusioncap::text_tower::TextTower;
use fusioncap::train::corpus::Corpus;
use fusioncap::train::nouns::Nouns;
use fusioncap::train::settings::Settings;
use kit::root;
use ort::session::Session;
use ort::value::Tensor;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

fn open(path: &Path) -> Result<Session, Error> {
    fusioncap::runtime::session(&Runtime::default(), path)
}

/// Runs `graph`, whose one input is `x`, and returns its output `y` with its shape.
fn compute(graph: Graph, shape: &[usize], x: &[f32]) -> (Vec<i64>, Vec<f32>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph.onnx");
    fs::write(&path, graph.finish()).unwrap();
    let mut session = open(&path).unwrap();
    let input = Tensor::from_array((shape.to_vec(), x.to_vec())).unwrap();
    let outputs = session.run(ort::inputs!["x" => input]).unwrap();
    let (dims, values) = outputs["y"].try_extract_tensor::<f32>().unwrap();
    (dims.to_vec(), values.to_vec())
}

fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{found:?} {expected:?}");
    for (left, right) in found.iter().zip(expected) {
        assert!((left - right).abs() < 1e-5, "{found:?} {expected:?}");
    }
}

fn random_encoder(seed: u64) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    random::build(folder.path(), seed).unwrap();
    folder
}

#[test]
fn linear_norm_and_softmax_are_exact() {
    let mut graph = Graph::new("layer");
    let x = graph.input("x", DataType::Float, &[Dim::Free("rows"), Dim::Fixed(2)]);
    let weight = graph.weight("weight", &[2, 3], &[1.0, 0.0, 2.0, -1.0, 0.5, 0.25]);
    let bias = graph.floats(&[3], &[0.5, 0.0, -0.5]);
    let hidden = graph.linear(&x, &weight, &bias);
    let scale = graph.floats(&[3], &[1.0, 2.0, 1.0]);
    let shift = graph.floats(&[3], &[0.0, 0.0, 0.1]);
    let normed = graph.layer_norm(&hidden, &scale, &shift, 1e-5);
    let y = graph.softmax(&normed);
    graph.output("y", &y, DataType::Float, &[Dim::Free("rows"), Dim::Fixed(3)]);
    let (shape, found) = compute(graph, &[1, 2], &[2.0, 1.0]);

    let product = [1.5_f32, 0.5, 3.75];
    let mean = product.iter().sum::<f32>() / 3.0;
    let variance = product.iter().map(|entry| (entry - mean).powi(2)).sum::<f32>() / 3.0;
    let unit = product.map(|entry| (entry - mean) / (variance + 1e-5).sqrt());
    let exponentials = [unit[0], 2.0 * unit[1], unit[2] + 0.1].map(f32::exp);
    let total: f32 = exponentials.iter().sum();
    assert_eq!(shape, [1, 3]);
    assert_near(&found, &exponentials.map(|entry| entry / total));
}

#[test]
fn gelu_is_the_exact_one() {
    let mut graph = Graph::new("gelu");
    let x = graph.input("x", DataType::Float, &[Dim::Free("entries")]);
    let y = graph.gelu(&x);
    graph.output("y", &y, DataType::Float, &[Dim::Free("entries")]);
    let (_, found) = compute(graph, &[3], &[-1.0, 0.0, 2.0]);
    // x * Phi(x); the approximation by tanh differs in the fourth digit.
    assert_near(&found, &[-0.158_655_25, 0.0, 1.954_499_7]);
}

#[test]
fn shape_operators_are_exact() {
    let mut graph = Graph::new("shapes");
    let x = graph.input("x", DataType::Float, &[Dim::Fixed(2), Dim::Free("columns")]);
    let turned = graph.transpose(&x, &[1, 0]);
    let picks = graph.ints(&[2, 0]);
    let rows = graph.gather(&turned, &picks, 0);
    let count = graph.size_of(&x, 1);
    let number = graph.cast(&count, DataType::Float);
    let column = graph.unsqueeze(&number, &[0]);
    let shape = graph.ints(&[2, 1]);
    let counts = graph.node("Expand", &[&column, &shape], &[]);
    let joined = graph.concat(&[&rows, &counts], 1);
    let flat = graph.reshape(&joined, &[-1]);
    let again = graph.unsqueeze(&flat, &[0]);
    let unit = graph.l2_normalize(&again);
    let y = graph.squeeze(&unit, &[0]);
    graph.output("y", &y, DataType::Float, &[Dim::Fixed(6)]);
    let (shape, found) = compute(graph, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let expected = [3.0_f32, 6.0, 3.0, 1.0, 4.0, 3.0];
    let length = expected.iter().map(|entry| entry * entry).sum::<f32>().sqrt();
    assert_eq!(shape, [6]);
    assert_near(&found, &expected.map(|entry| entry / length));
}

#[test]
fn several_outputs_and_attributes_reach_the_runtime() {
    let mut graph = Graph::new("best");
    let x = graph.input("x", DataType::Float, &[Dim::Free("rows"), Dim::Fixed(4)]);
    let count = graph.ints(&[2]);
    let [best, places] = graph.node_multi("TopK", &[&x, &count], &[("axis", Attribute::Int(-1))]);
    let numbers = graph.cast(&places, DataType::Float);
    let y = graph.concat(&[&best, &numbers], 1);
    graph.output("y", &y, DataType::Float, &[Dim::Free("rows"), Dim::Fixed(4)]);
    let (_, found) = compute(graph, &[1, 4], &[0.5, 9.0, -1.0, 7.0]);
    assert_near(&found, &[9.0, 7.0, 1.0, 3.0]);
}

/// `image_embeds` and `patch_embeds` of `images` pictures of grey ramps.
fn see(dir: &Path, images: usize) -> (Vec<f32>, Vec<f32>) {
    let config = EncoderConfig::open(dir).unwrap();
    let side = config.image_size;
    let each = 3 * side * side;
    let pixels: Vec<f32> = (0..images * each)
        .map(|position| {
            ((position % each) as f32 / each as f32 - 0.5) * (1 + position / each) as f32
        })
        .collect();
    let mut session = open(&dir.join(VISION)).unwrap();
    let input = Tensor::from_array(([images, 3, side, side], pixels)).unwrap();
    let outputs = session.run(ort::inputs!["pixel_values" => input]).unwrap();
    let (shape, image) = outputs["image_embeds"].try_extract_tensor::<f32>().unwrap();
    assert_eq!(shape.to_vec(), [images as i64, config.embedding_dim as i64]);
    let (shape, patches) = outputs["patch_embeds"].try_extract_tensor::<f32>().unwrap();
    let expected = [images, config.num_patches, config.embedding_dim].map(|size| size as i64);
    assert_eq!(shape.to_vec(), expected);
    (image.to_vec(), patches.to_vec())
}

fn tower(dir: &Path) -> Result<TextTower, Error> {
    TextTower::open(dir, EncoderConfig::open(dir)?.text_max_length, &Runtime::default())
}

fn embed(dir: &Path, sentences: &[&str]) -> Vec<f32> {
    let owned: Vec<String> = sentences.iter().map(|sentence| sentence.to_string()).collect();
    tower(dir).unwrap().embed(&owned).unwrap()
}

#[test]
fn a_random_encoder_keeps_the_contract() {
    let folder = random_encoder(7);
    let dir = folder.path();
    let preprocessing = fs::read(dir.join(PREPROCESSOR_CONFIG)).unwrap();
    serde_json::from_slice::<PreprocessorConfig>(&preprocessing).unwrap();
    let (images, patches) = see(dir, 3);
    assert!(images.iter().chain(&patches).all(|entry| entry.is_finite()));
    let width = EncoderConfig::open(dir).unwrap().embedding_dim;
    let texts = embed(dir, &["a dog runs", "a plate of food", "a dog runs"]);
    assert_eq!(texts.len(), 3 * width);
    for text in texts.chunks(width) {
        let length = text.iter().map(|entry| entry * entry).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    assert_near(&texts[..width], &texts[2 * width..]);
    let bytes: u64 = [VISION, TEXT, TOKENIZER]
        .iter()
        .map(|name| fs::metadata(dir.join(name)).unwrap().len())
        .sum();
    assert!(bytes < 150_000, "{bytes}");
}

#[test]
fn an_image_embedding_does_not_depend_on_the_batch() {
    let folder = random_encoder(7);
    let (alone, alone_patches) = see(folder.path(), 1);
    let (together, together_patches) = see(folder.path(), 5);
    assert_near(&alone, &together[..alone.len()]);
    assert_near(&alone_patches, &together_patches[..alone_patches.len()]);
}

#[test]
fn padding_does_not_change_a_sentence() {
    let folder = random_encoder(7);
    let alone = embed(folder.path(), &["a dog"]);
    let padded = embed(folder.path(), &["a dog", "a dog runs over the grass to a far away tree"]);
    assert_near(&alone, &padded[..alone.len()]);
    let long = "word ".repeat(100);
    let cut = embed(folder.path(), &[&long]);
    assert!(cut.iter().all(|entry| entry.is_finite()));
}

const SMALL_BERT: BertConfig = BertConfig {
    hidden_size: 8,
    intermediate_size: 16,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    max_position_embeddings: 8,
    type_vocab_size: 2,
    vocab_size: 10,
    layer_norm_eps: 1e-12,
};

/// Weights for `SMALL_BERT`.
fn small_bert() -> Weights {
    let (width, wide) = (SMALL_BERT.hidden_size, SMALL_BERT.intermediate_size);
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    for (name, rows) in [
        ("word", SMALL_BERT.vocab_size),
        ("position", SMALL_BERT.max_position_embeddings),
        ("token_type", SMALL_BERT.type_vocab_size),
    ] {
        shapes.push((format!("embeddings.{name}_embeddings.weight"), vec![rows, width]));
    }
    let mut norms = vec!["embeddings.LayerNorm".to_string()];
    for index in 0..SMALL_BERT.num_hidden_layers {
        let layer = format!("encoder.layer.{index}");
        for (part, outputs, inputs) in [
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", wide, width),
            ("output.dense", width, wide),
        ] {
            shapes.push((format!("{layer}.{part}.weight"), vec![outputs, inputs]));
            shapes.push((format!("{layer}.{part}.bias"), vec![outputs]));
        }
        norms.push(format!("{layer}.attention.output.LayerNorm"));
        norms.push(format!("{layer}.output.LayerNorm"));
    }
    for norm in norms {
        shapes.push((format!("{norm}.weight"), vec![width]));
        shapes.push((format!("{norm}.bias"), vec![width]));
    }
    let mut rng = StdRng::seed_from_u64(5);
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let count: usize = shape.iter().product();
        let data = (0..count).map(|_| rng.random_range(-1.0..1.0)).collect();
        (name, weights::Tensor { shape, data })
    });
    Weights::new(tensors, "small BERT")
}

#[test]
fn attention_and_pooling_ignore_padding() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.onnx");
    fs::write(&path, bert::text_tower(&small_bert(), &SMALL_BERT).unwrap()).unwrap();
    let mut session = open(&path).unwrap();
    let mut run = |rows: usize, ids: &[i64], mask: &[i64]| {
        let shape = [rows, ids.len() / rows];
        let outputs = session
            .run(ort::inputs![
                "input_ids" => Tensor::from_array((shape, ids.to_vec())).unwrap(),
                "attention_mask" => Tensor::from_array((shape, mask.to_vec())).unwrap(),
            ])
            .unwrap();
        ["text_embeds", "token_embeds"]
            .map(|name| outputs[name].try_extract_tensor::<f32>().unwrap().1.to_vec())
    };
    let [text, tokens] = run(1, &[4, 2, 9], &[1, 1, 1]);
    let [texts, all_tokens] =
        run(2, &[4, 2, 9, 0, 0, 1, 2, 3, 4, 5], &[1, 1, 1, 0, 0, 1, 1, 1, 1, 1]);
    assert_near(&text, &texts[..text.len()]);
    assert_near(&tokens, &all_tokens[..tokens.len()]);
    let [other_order, _] = run(1, &[2, 4, 9], &[1, 1, 1]);
    assert!(text.iter().zip(&other_order).any(|(left, right)| (left - right).abs() > 1e-3));
}

#[test]
fn the_seed_determines_every_byte() {
    let (one, same, other) = (random_encoder(1), random_encoder(1), random_encoder(2));
    for name in [VISION, TEXT] {
        let read = |folder: &TempDir| fs::read(folder.path().join(name)).unwrap();
        assert!(read(&one) == read(&same), "{name}");
        assert!(read(&one) != read(&other), "{name}");
    }
}

#[test]
fn a_truncated_graph_is_an_error_that_names_the_file() {
    let folder = random_encoder(7);
    for name in [VISION, TEXT] {
        let path = folder.path().join(name);
        let whole = fs::read(&path).unwrap();
        for length in [0, 1, 100, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            let error = open(&path).err().unwrap_or_else(|| panic!("{name} cut to {length}"));
            assert_eq!(error.kind(), ErrorKind::Runtime);
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

#[test]
fn a_damaged_encoder_directory_is_an_error_that_names_the_file() {
    let folder = random_encoder(7);
    let dir = folder.path();
    let tokenizer = fs::read(dir.join(TOKENIZER)).unwrap();
    fs::write(dir.join(TOKENIZER), &tokenizer[..tokenizer.len() / 2]).unwrap();
    let error = tower(dir).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Bundle);
    assert!(error.to_string().contains(TOKENIZER), "{error}");

    fs::write(dir.join("config.json"), r#"{"model_type": "clip"}"#).unwrap();
    let error = EncoderConfig::open(dir).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Bundle);
    assert!(error.to_string().contains("config.json"), "{error}");
    assert!(EncoderConfig::open(&dir.join("nowhere")).unwrap_err().to_string().contains("nowhere"));
}

/// Written by the `onnx` package for Python, with every field of the format's messages; the script
/// checks that none is left out.
#[test]
fn a_foreign_graph_round_trips() {
    let bytes = fs::read(root("tests/fixtures/foreign.onnx")).unwrap();
    let model = ModelProto::decode(bytes.as_slice()).unwrap();
    assert!(!model.training_info.is_empty() && !model.configuration.is_empty());
    assert!(model.encode_to_vec() == bytes);
}

/// A checkpoint in PyTorch's legacy format (577 bytes): a plain tensor, a transposed view and the
/// tail of one storage, and a 64-bit counter. Written by Python's pickle with classes that have
/// PyTorch's names.
fn legacy_checkpoint() -> PathBuf {
    root("tests/fixtures/legacy.pth")
}

#[test]
fn a_legacy_checkpoint_is_read_with_its_views() {
    let weights = Weights::from_pytorch(&legacy_checkpoint()).unwrap();
    assert_eq!(weights.get("plain", &[2, 3]).unwrap().data, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let transposed = weights.get("transposed", &[3, 2]).unwrap();
    assert_eq!(transposed.data, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(transposed.transposed().data, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(weights.get("tail", &[2]).unwrap().data, [4.0, 5.0]);

    let missing = weights.get("absent", &[1]).unwrap_err().to_string();
    assert!(missing.contains("absent") && missing.contains("legacy.pth"), "{missing}");
    let misshapen = weights.get("plain", &[3, 2]).unwrap_err().to_string();
    assert!(misshapen.contains("shape: [2, 3], expected: [3, 2]"), "{misshapen}");
}

#[test]
fn a_truncated_checkpoint_is_an_error_that_names_the_file() {
    let whole = fs::read(legacy_checkpoint()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.pth");
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let Err(error) = Weights::from_pytorch(&path) else { panic!("cut to {length}: accepted") };
        assert_eq!(error.kind(), ErrorKind::Bundle);
        assert!(error.to_string().contains("cut.pth"), "{error}");
    }
}

#[test]
fn safetensors_are_read_or_refused_by_name() {
    use safetensors::tensor::{Dtype, TensorView, serialize};

    let floats: Vec<u8> = [1.0_f32, f32::NAN].iter().flat_map(|x| x.to_le_bytes()).collect();
    let halves = [0x00, 0x3C, 0x00, 0xC0];
    let views = [
        ("full", TensorView::new(Dtype::F32, vec![2], &floats).unwrap()),
        ("half", TensorView::new(Dtype::F16, vec![2], &halves).unwrap()),
    ];
    let whole = serialize(views, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, &whole).unwrap();
    let weights = Weights::from_safetensors(&path).unwrap();
    assert_eq!(weights.get("half", &[2]).unwrap().data, [1.0, -2.0]);
    let error = weights.get("full", &[2]).unwrap_err().to_string();
    assert!(error.contains("not a finite number") && error.contains("full"), "{error}");

    for length in [0, 4, 20, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let Err(error) = Weights::from_safetensors(&path) else { panic!("cut to {length}") };
        assert_eq!(error.kind(), ErrorKind::Bundle);
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}

#[test]
fn the_standin_names_the_missing_package() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let (runtime, nouns) = (Runtime::default(), ["dog".to_owned()]);
    let error = standin::build(folder.path(), &nouns, &out, &runtime).unwrap_err();
    assert!(error.to_string().contains("efficientnet-lite0"), "{error}");

    fs::write(folder.path().join("efficientnet-lite0-57934424.pth"), "no checkpoint").unwrap();
    let sentences = folder.path().join("all_minilm_l6_v2");
    fs::create_dir(&sentences).unwrap();
    fs::write(sentences.join("model.zip"), "no archive").unwrap();
    let error = standin::build(folder.path(), &nouns, &out, &runtime).unwrap_err();
    assert!(error.to_string().contains("all_minilm_l6_v2/model.zip"), "{error}");
}

/// The photo at `path` after the stand-in's preprocessing.
fn photo(path: &Path, side: usize) -> Vec<f32> {
    let size = side as u32;
    let filter = image::imageops::FilterType::CatmullRom;
    let rgb = image::open(path).unwrap().resize_exact(size, size, filter).to_rgb8();
    let (mean, deviation) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    let value = |channel: usize, pixel: &image::Rgb<u8>| {
        (f32::from(pixel.0[channel]) / 255.0 - mean[channel]) / deviation[channel]
    };
    (0..3).flat_map(|channel| rgb.pixels().map(move |pixel| value(channel, pixel))).collect()
}

#[test]
fn the_standin_matches_photos_with_sentences() {
    let Some(packages) = std::env::var_os("FUSIONCAP_TEST_PACKAGES") else {
        eprintln!("not run: FUSIONCAP_TEST_PACKAGES names no folder with the packages");
        return;
    };
    const PHOTOS: [(&str, &str); 6] = [
        ("cat.jpg", "a cat looking at the camera"),
        ("coffee.jpg", "a cup of coffee on a table"),
        ("alps.jpg", "mountains covered with snow"),
        ("rocket.jpg", "a rocket on its launch pad"),
        ("farm-house.jpg", "a barn beside a field"),
        ("palace.jpg", "an old church with a tower"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let settings = Settings::load(None).unwrap();
    let corpus = root("models/corpus/coco-captions-a.txt.zst");
    let captions = Corpus::read_in_order(&[corpus], &settings).unwrap();
    let nouns = Nouns::find(&captions, &settings.local).names;
    standin::build(Path::new(&packages), &nouns, dir, &Runtime::default()).unwrap();
    let related = embed(dir, &["a dog runs on the grass", "a puppy in a field", "a plate of food"]);
    let config = EncoderConfig::open(dir).unwrap();
    let width = config.embedding_dim;
    let dot = |left: &[f32], right: &[f32]| -> f32 {
        left.iter().zip(right).map(|(left, right)| left * right).sum()
    };
    let rows: Vec<&[f32]> = related.chunks(width).collect();
    assert!(dot(rows[0], rows[1]) > dot(rows[0], rows[2]) + 0.2);

    let sentences = embed(dir, &PHOTOS.map(|(_, sentence)| sentence));
    let samples = root("samples");
    let mut session = open(&dir.join(VISION)).unwrap();
    for (name, expected) in PHOTOS {
        let side = config.image_size;
        let pixels = photo(&samples.join(name), side);
        let input = Tensor::from_array(([1, 3, side, side], pixels)).unwrap();
        let outputs = session.run(ort::inputs!["pixel_values" => input]).unwrap();
        let (_, image) = outputs["image_embeds"].try_extract_tensor::<f32>().unwrap();
        let scores = sentences.chunks(width).map(|sentence| dot(image, sentence));
        let nearest = scores.zip(PHOTOS).max_by(|left, right| left.0.total_cmp(&right.0));
        assert_eq!(nearest.unwrap().1.1, expected, "{name}");
    }
}
