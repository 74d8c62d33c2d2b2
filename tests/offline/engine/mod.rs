//! The engine on bundles of the repository: a photo gets the same caption, whichever photos share
//! its batch, and bundles that can't be loaded are refused.

#[cfg(feature = "train")]
mod fused;
mod variants;

use std::fs;
use std::path::{Path, PathBuf};

use fusioncap::ErrorKind;
use fusioncap::bundle::{self, Bundle};
use fusioncap::config::{Limits, Model, Provider, Runtime};
use fusioncap::engine::{Caption, Engine};
use fusioncap::runtime;
use kit::object_store::Server;
use kit::{root, stderr, stdout};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor, TensorRef};
use tokenizers::Tokenizer;

fn engine(model: &str, batch_size: usize, num_beams: Option<usize>) -> Engine {
    let path = root(model);
    let settings = Model { path: path.display().to_string(), num_beams, ..Model::default() };
    let bundle = Bundle::open(&path).unwrap();
    Engine::load(bundle, &Runtime::default(), &settings, batch_size).unwrap()
}

#[cfg(feature = "train")]
fn load(bundle: Bundle) -> Engine {
    Engine::load(bundle, &Runtime::default(), &Model::default(), 8).unwrap()
}

/// The captions of the sample photos.
#[cfg(feature = "train")]
fn captions(bundle: Bundle) -> Vec<Caption> {
    let mut engine = load(bundle);
    let photos = photos(&engine);
    let views: Vec<&[u8]> = photos.iter().map(Vec::as_slice).collect();
    views.chunks(8).flat_map(|batch| caption(&mut engine, batch)).collect()
}

/// The sample photos at the model's input size.
fn photos(engine: &Engine) -> Vec<Vec<u8>> {
    let decode = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        engine.preprocessor().decode(&bytes, &Limits::default()).unwrap().rgb
    };
    kit::samples().iter().map(decode).collect()
}

fn caption(engine: &mut Engine, photos: &[&[u8]]) -> Vec<Caption> {
    engine.caption(photos).unwrap()
}

fn assert_same_caption_in_any_company(model: &str, num_beams: Option<usize>) {
    assert_company_changes_nothing(engine(model, 8, num_beams), model);
}

/// `engine` takes batches of 8.
fn assert_company_changes_nothing(mut engine: Engine, model: &str) {
    let photos = photos(&engine);
    assert!(photos.len() >= 13);
    let views: Vec<&[u8]> = photos.iter().map(Vec::as_slice).collect();
    let alone: Vec<Caption> =
        views.iter().map(|photo| caption(&mut engine, &[photo]).remove(0)).collect();
    let full: Vec<Caption> =
        views.chunks(8).flat_map(|batch| caption(&mut engine, batch)).collect();
    assert_eq!(alone, full, "{model}: alone and in a full batch");
    let padded: Vec<Caption> =
        views.chunks(3).flat_map(|batch| caption(&mut engine, batch)).collect();
    assert_eq!(alone, padded, "{model}: alone and in a padded batch");
    let halves: Vec<Caption> =
        views.chunks(4).flat_map(|batch| caption(&mut engine, batch)).collect();
    assert_eq!(alone, halves, "{model}: alone and in a batch of half the size");
    let mut backwards: Vec<&[u8]> = views.clone();
    backwards.reverse();
    let mut reversed: Vec<Caption> =
        backwards.chunks(8).flat_map(|batch| caption(&mut engine, batch)).collect();
    reversed.reverse();
    assert_eq!(alone, reversed, "{model}: in other company");
    assert!(alone.iter().all(|found| !found.text.is_empty() && found.score < 0.0));
    let texts: std::collections::BTreeSet<&str> =
        alone.iter().map(|found| found.text.as_str()).collect();
    assert!(texts.len() > 3, "the captions depend on the photos: {texts:?}");
}

#[test]
fn the_same_photo_gives_the_same_caption_alone_full_and_padded() {
    for num_beams in [None, Some(1)] {
        assert_same_caption_in_any_company("models/random", num_beams);
        assert_same_caption_in_any_company("models/tiny", num_beams);
    }
}

#[test]
fn embeddings_have_unit_length() {
    let mut engine = engine("models/random", 1, None);
    let photos = photos(&engine);
    let found = caption(&mut engine, &[&photos[0]]).remove(0);
    assert_eq!(found.embedding.len(), engine.bundle().config.embedding_dim);
    let length: f32 = found.embedding.iter().map(|entry| entry * entry).sum();
    assert!((length - 1.0).abs() < 1e-4, "{length}");
}

#[test]
fn a_wider_beam_never_scores_worse_in_sum() {
    let mut greedy = engine("models/tiny", 1, Some(1));
    let mut wide = engine("models/tiny", 1, Some(4));
    let photos = photos(&greedy);
    let mean = |engine: &mut Engine| {
        let scores = photos.iter().map(|photo| caption(engine, &[photo])[0].score);
        scores.sum::<f32>() / photos.len() as f32
    };
    let (one, four) = (mean(&mut greedy), mean(&mut wide));
    assert!(four >= one, "beams 1: {one}, beams 4: {four}");
}

/// Greedy search on the bare graphs, without the engine: each step takes the likeliest token that
/// does not repeat an n-gram.
fn greedy(bundle: &Bundle, pixels: &[f32], side: usize) -> (Vec<u32>, f32) {
    let open = |name| runtime::session(&Runtime::default(), &bundle.path(name)).unwrap();
    let (mut vision, mut prefix) = (open(bundle::VISION), open(bundle::PREFIX));
    let mut decoder = open(bundle::DECODER);
    let (config, size) = (&bundle.config, bundle.generation.no_repeat_ngram_size);
    let input = TensorRef::from_array_view(([1, 3, side, side], pixels)).unwrap();
    let mut seen = vision.run(ort::inputs!["pixel_values" => input]).unwrap();
    let wanted: Vec<String> = prefix.inputs().iter().map(|input| input.name().into()).collect();
    let inputs: Vec<(String, DynValue)> =
        wanted.into_iter().map(|name| (name.clone(), seen.remove(&name).unwrap())).collect();
    let mut fed = prefix.run(inputs).unwrap().remove("prefix").unwrap();

    let head_size = config.hidden_size / config.num_attention_heads;
    let cache = [2 * config.num_hidden_layers, 1, config.num_attention_heads, 0, head_size];
    let mut past = tensor(cache.to_vec(), Vec::<f32>::new());
    let (mut said, mut sum) = (Vec::<i64>::new(), 0.0);
    while said.len() < bundle.generation.max_new_tokens {
        let mut banned = vec![config.pad_token_id, config.bos_token_id];
        for id in 0..config.vocab_size as i64 {
            let mut longer = said.clone();
            longer.push(id);
            let ending = longer[longer.len().saturating_sub(size)..].to_vec();
            let first = id == config.eos_token_id && said.is_empty();
            let again = said.windows(size).any(|window| *window == ending[..]);
            if first || again {
                banned.push(id);
            }
        }
        let last = said.last().copied().unwrap_or(config.bos_token_id);
        let mut found = decoder
            .run(ort::inputs![
                "prefix" => fed,
                "past" => past,
                "input_ids" => tensor(vec![1, 1], vec![last]),
                "parents" => tensor(vec![1], vec![0_i64]),
                "beam_scores" => tensor(vec![1, 1], vec![0.0_f32]),
                "banned_ids" => tensor(vec![1, banned.len()], banned),
            ])
            .unwrap();
        past = found.remove("present").unwrap();
        fed = tensor(vec![1, 0, config.hidden_size], Vec::<f32>::new());
        sum += found["scores"].try_extract_tensor::<f32>().unwrap().1[0];
        said.push(found["tokens"].try_extract_tensor::<i64>().unwrap().1[0]);
        if said.last() == Some(&config.eos_token_id) {
            break;
        }
    }
    (said.iter().map(|id| u32::try_from(*id).unwrap()).collect(), sum / said.len() as f32)
}

fn tensor<T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static>(
    shape: Vec<usize>,
    values: Vec<T>,
) -> DynValue {
    Tensor::from_array((shape, values)).unwrap().into_dyn()
}

#[test]
fn a_beam_of_one_is_greedy_search() {
    for model in ["models/random", "models/tiny"] {
        let mut engine = engine(model, 1, Some(1));
        let tokenizer = Tokenizer::from_file(engine.bundle().path(bundle::TOKENIZER)).unwrap();
        let (side, _) = engine.preprocessor().input_size();
        for photo in photos(&engine).iter().take(4) {
            let mut pixels = vec![0.0; photo.len()];
            engine.preprocessor().normalise(photo, &mut pixels);
            let (tokens, score) = greedy(engine.bundle(), &pixels, side);
            let expected = tokenizer.decode(&tokens, true).unwrap();
            let found = caption(&mut engine, &[photo]).remove(0);
            assert_eq!(found.text, expected.trim(), "{model}");
            assert!((found.score - score).abs() < 1e-4, "{model}: {} {score}", found.score);
        }
    }
}

#[test]
fn a_beam_width_the_bundle_cannot_do_is_refused() {
    let path = root("models/random");
    let bundle = Bundle::open(&path).unwrap();
    let settings = Model { num_beams: Some(1_000), ..Model::default() };
    let error = Engine::load(bundle, &Runtime::default(), &settings, 1).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);
    let text = error.to_string();
    assert!(
        text.contains("model.num_beams") && text.contains("1000") && text.contains("1 to"),
        "{text}"
    );
}

#[test]
fn an_accelerator_that_is_not_there_is_an_error() {
    let runtime = Runtime { providers: vec![Provider::Cuda], ..Runtime::default() };
    let path = root("models/random");
    let settings = Model::default();
    let error = Engine::load(Bundle::open(&path).unwrap(), &runtime, &settings, 1).err().unwrap();
    assert!(error.to_string().contains("runtime.providers"), "{error}");
}

#[test]
fn the_cpu_stands_in_for_an_accelerator_where_the_configuration_allows_it() {
    let providers = vec![Provider::Tensorrt, Provider::Cuda];
    let runtime = Runtime { providers, fallback: true, ..Runtime::default() };
    let path = root("models/random");
    let settings = Model::default();
    let mut found = Engine::load(Bundle::open(&path).unwrap(), &runtime, &settings, 2).unwrap();
    let mut plain = engine("models/random", 2, None);
    let photos = photos(&plain);
    assert_eq!(caption(&mut found, &[&photos[0]]), caption(&mut plain, &[&photos[0]]));
}

#[test]
fn a_damaged_file_is_found_by_its_digest() {
    let copy = tempfile::tempdir().unwrap();
    copy_tree(&root("models/random"), copy.path());
    assert!(Bundle::open(copy.path()).is_ok());
    let path = copy.path().join(bundle::DECODER);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = Bundle::open(copy.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Bundle);
    let text = error.to_string();
    assert!(text.contains("damaged") && text.contains("decoder.onnx"), "{text}");
    fs::remove_file(&path).unwrap();
    assert!(Bundle::open(copy.path()).unwrap_err().to_string().contains("missing"));
}

#[test]
fn a_missing_library_is_named() {
    let output = kit::fusioncap(&["caption", "--model"])
        .arg(root("models/random"))
        .arg(root("samples/cat.jpg"))
        .env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = stderr(&output);
    assert!(errors.contains("/nowhere/libonnxruntime.so"), "{errors}");
    assert!(errors.contains("make onnxruntime"), "{errors}");
}

#[test]
fn a_file_that_is_no_library_is_named() {
    let output = kit::fusioncap(&["caption", "--model"])
        .arg(root("models/random"))
        .arg(root("samples/cat.jpg"))
        .env("ORT_DYLIB_PATH", root("Cargo.toml"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = stderr(&output);
    assert!(errors.contains("Cargo.toml") && errors.contains("1.31"), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
}

#[test]
fn shapes_that_no_graph_has_are_refused() {
    let copy = tempfile::tempdir().unwrap();
    copy_tree(&root("models/random"), copy.path());
    let path = copy.path().join(bundle::CONFIG);
    let good: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let open = |field: &str, value: i64| {
        let mut config = good.clone();
        config[field] = value.into();
        fs::write(&path, config.to_string()).unwrap();
        bundle::seal(copy.path()).unwrap();
        Bundle::open(copy.path())
    };
    for (field, value) in [("num_attention_heads", 0), ("max_length", 0), ("eos_token_id", 700)] {
        let error = open(field, value).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bundle);
        assert!(error.to_string().contains(field), "{error}");
    }
    let settings = Model::default();
    for (field, value) in [("embedding_dim", 33), ("num_candidates", 8)] {
        let bundle = open(field, value).unwrap();
        let error = Engine::load(bundle, &Runtime::default(), &settings, 1).err().unwrap();
        assert!(error.to_string().contains("config.json disagree"), "{error}");
    }
}

#[test]
fn files_are_captioned_in_order_and_what_fails_is_said() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(root("samples/cat.jpg"), folder.path().join("b.jpg")).unwrap();
    fs::write(folder.path().join("a.jpg"), "<html>").unwrap();
    fs::copy(root("samples/rocket.jpg"), folder.path().join("c.JPG")).unwrap();
    fs::write(folder.path().join("notes.txt"), "no image").unwrap();
    let output = kit::fusioncap(&["caption", "--model"])
        .arg(root("models/random"))
        .arg(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0]["error"].as_str().unwrap().contains("HTML"), "{text}");
    for (line, name) in lines[1..].iter().zip(["b.jpg", "c.JPG"]) {
        assert!(line["path"].as_str().unwrap().ends_with(name), "{text}");
        assert!(line["score"].as_f64().unwrap() < 0.0, "{text}");
    }
}

#[test]
fn text_keeps_captions_and_failures_apart() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(root("samples/cat.jpg"), folder.path().join("cat.jpg")).unwrap();
    let output = kit::fusioncap(&["caption", "--format", "text", "--beams", "2", "--model"])
        .arg(root("models/random"))
        .args([folder.path().join("missing.jpg"), folder.path().join("cat.jpg")])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (text, errors) = (stdout(&output), stderr(&output));
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("cat.jpg: "), "{text}");
    assert!(errors.contains("missing.jpg: no caption: can't read the file"), "{errors}");
}

#[test]
fn a_prefix_in_s3_is_captioned() {
    let store = tempfile::tempdir().unwrap();
    let below = store.path().join("photos/2025");
    fs::create_dir_all(&below).unwrap();
    for name in ["cat.jpg", "rocket", "notes.txt"] {
        fs::copy(root("samples/cat.jpg"), below.join(name)).unwrap();
    }
    let server = Server::start(store.path());
    let access = server.access();
    let caption = |path: &str| {
        let output = kit::fusioncap(&["caption", "--model"])
            .arg(root("models/random"))
            .args(["--endpoint", &access.endpoint, path])
            .env("AWS_ACCESS_KEY_ID", &access.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &access.secret_access_key)
            .env("AWS_REGION", "us-east-1")
            .output()
            .unwrap();
        (output.status.code(), stdout(&output), stderr(&output))
    };
    let (code, text, errors) = caption("s3://photos/2025/");
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("s3://photos/2025/cat.jpg"), "{text}");
    let (_, named, errors) = caption("s3://photos/2025/rocket");
    assert!(named.contains("2025/rocket") && named.contains("caption"), "{named}{errors}");
    let (code, _, errors) = caption("s3://");
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("s3://bucket/key"), "{errors}");
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy_tree(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}
