//! Variants of a bundle: selected, refused, and, with feature `train`, made.

use std::fs;
use std::path::Path;
use std::process::Output;

use fusioncap::ErrorKind;
use fusioncap::bundle::variants::{Reduced, Variant};
use fusioncap::bundle::{self, Bundle, ModelConfig};
use fusioncap::config::{Precision, Provider, Runtime};
use kit::{root, stderr};
use tempfile::TempDir;

use super::copy_tree;

/// A copy of `model` in a folder of its own.
fn copy(model: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_tree(&root(model), copy.path());
    copy
}

/// Writes a variant of `of` into `dir` that has the arithmetic of the bundle itself.
fn pretend(dir: &Path, precision: Reduced, of: &str) {
    let folder = precision.folder(dir);
    fs::create_dir_all(&folder).unwrap();
    copy_tree(&root("models/random"), &folder);
    let path = folder.join(bundle::CONFIG);
    let config: ModelConfig = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let variant = Some(Variant { precision, of: of.into() });
    bundle::write_json(&path, &ModelConfig { variant, ..config }).unwrap();
    bundle::seal(&folder).unwrap();
}

fn on(provider: Provider) -> Runtime {
    Runtime { providers: vec![provider], ..Runtime::default() }
}

fn fusioncap(arguments: &[&str]) -> Output {
    kit::fusioncap(arguments).output().unwrap()
}

#[test]
fn a_variant_is_chosen_by_name_or_for_the_accelerator() {
    let model = copy("models/random");
    let itself = Bundle::open(model.path()).unwrap().digest().to_owned();
    pretend(model.path(), Reduced::Fp16, &itself);
    let half = Bundle::open(&Reduced::Fp16.folder(model.path())).unwrap().digest().to_owned();
    assert_ne!(half, itself);
    let choose = |precision, provider| {
        Bundle::choose(model.path(), precision, &on(provider)).unwrap().digest().to_owned()
    };
    assert_eq!(choose(Precision::Auto, Provider::Cpu), itself);
    assert_eq!(choose(Precision::Fp32, Provider::Cuda), itself);
    assert_eq!(choose(Precision::Fp16, Provider::Cpu), half);
    assert_eq!(choose(Precision::Auto, Provider::Cuda), half);
    assert_eq!(choose(Precision::Auto, Provider::Tensorrt), half);
    // By its own path it is a bundle like any other.
    let folder = Reduced::Fp16.folder(model.path());
    let own = |precision| Bundle::choose(&folder, precision, &on(Provider::Cpu));
    assert_eq!(own(Precision::Auto).unwrap().digest(), half);
    assert_eq!(own(Precision::Fp16).unwrap().digest(), half);
    let error = own(Precision::Fp32).unwrap_err().to_string();
    assert!(error.contains("allowed: auto, fp16)"), "{error}");
}

#[test]
fn a_bundle_without_variants_is_itself() {
    let path = root("models/random");
    for (precision, provider) in
        [(Precision::Auto, Provider::Cpu), (Precision::Auto, Provider::Cuda)]
    {
        let chosen = Bundle::choose(&path, precision, &on(provider)).unwrap();
        assert_eq!(chosen.dir(), path);
    }
}

#[test]
fn a_precision_that_is_not_there_is_a_wrong_configuration() {
    let model = root("models/random");
    let model = model.to_str().unwrap();
    let photo = root("samples/cat.jpg");
    let caption =
        ["caption", "--model", model, "--precision", "int8", photo.to_str().unwrap()].to_vec();
    let mut worker = vec!["worker", "--brokers", "127.0.0.1:1", "--listen", "127.0.0.1:0"];
    worker.extend(["--model", model, "--set", "model.precision=int8"]);
    for arguments in [caption, worker] {
        let output = fusioncap(&arguments);
        let errors = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        let last = errors.lines().last().unwrap();
        for part in ["error: ", "model.precision", "'int8'", "allowed: auto, fp32"] {
            assert!(last.contains(part), "{errors}");
        }
    }
    let wrong = fusioncap(&[
        "config",
        "--model",
        model,
        "--brokers",
        "a:1",
        "--set",
        "model.precision=fp8",
    ]);
    assert_eq!(wrong.status.code(), Some(2));
    let errors = stderr(&wrong);
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains("model.precision") && errors.contains("int8"), "{errors}");
}

#[test]
fn a_stale_variant_is_refused() {
    let model = copy("models/random");
    pretend(model.path(), Reduced::Int8, "sha256:of-another");
    let error = Bundle::choose(model.path(), Precision::Int8, &on(Provider::Cpu)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Bundle);
    let text = error.to_string();
    assert!(text.contains("stale") && text.contains("sha256:of-another"), "{text}");
    assert!(text.contains(Bundle::open(model.path()).unwrap().digest()), "{text}");

    // In the wrong folder.
    let digest = Bundle::open(model.path()).unwrap().digest().to_owned();
    pretend(model.path(), Reduced::Int8, &digest);
    fs::rename(Reduced::Int8.folder(model.path()), Reduced::Fp16.folder(model.path())).unwrap();
    let error = Bundle::choose(model.path(), Precision::Fp16, &on(Provider::Cpu)).unwrap_err();
    assert!(error.to_string().contains("not the variant"), "{error}");
}

#[test]
fn variants_are_no_part_of_the_bundle() {
    let model = copy("models/random");
    let before = fs::read(model.path().join(bundle::MANIFEST)).unwrap();
    pretend(model.path(), Reduced::Int8, "any");
    bundle::seal(model.path()).unwrap();
    assert_eq!(fs::read(model.path().join(bundle::MANIFEST)).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_selected_variant_is_fetched_from_s3() {
    use fusioncap::bundle::variants::is_needed;
    use fusioncap::s3::Store;
    use kit::object_store::Server;

    let store = tempfile::tempdir().unwrap();
    let model = store.path().join("models/random");
    fs::create_dir_all(&model).unwrap();
    copy_tree(&root("models/random"), &model);
    let digest = Bundle::open(&model).unwrap().digest().to_owned();
    for precision in Reduced::ALL {
        pretend(&model, precision, &digest);
    }
    let server = Server::start(store.path());
    let client = Store::connect(&crate::settings(server.access())).await.unwrap();
    let runtime = Runtime::default();
    for (precision, fetched) in [(Precision::Auto, None), (Precision::Int8, Some("int8"))] {
        let folder = tempfile::tempdir().unwrap();
        let needed = |name: &str| is_needed(name, precision, &runtime);
        client.download_prefix("s3://models/random", folder.path(), needed).await.unwrap();
        let chosen = Bundle::choose(folder.path(), precision, &runtime).unwrap();
        assert_eq!(chosen.digest() == digest, fetched.is_none());
        let found = fs::read_dir(folder.path().join("variants")).into_iter().flatten();
        let names: Vec<_> = found.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, fetched.into_iter().collect::<Vec<_>>());
    }
}

#[cfg(feature = "train")]
mod made {
    use fusioncap::onnx::variant;
    use kit::stdout;

    use super::*;
    use crate::engine::{assert_company_changes_nothing, captions, load};

    /// At least `least_equal` captions of `models/tiny` stay equal, with scores and embeddings within
    /// the given limits.
    fn assert_near(precision: Reduced, least_equal: usize, score: f32, cosine: f32) {
        let model = copy("models/tiny");
        let origin = Bundle::open(model.path()).unwrap();
        let made = variant::write(&origin, precision, "Nobody looked.").unwrap();
        assert_eq!(Bundle::open(model.path()).unwrap().digest(), origin.digest());
        assert_ne!(made.digest(), origin.digest());
        assert_eq!(made.config.variant.as_ref().unwrap().of, origin.digest());
        let card = fs::read_to_string(made.path(bundle::CARD)).unwrap();
        assert!(card.starts_with("---\n") && card.contains("Nobody looked."), "{card}");
        let (before, after) = (captions(origin), captions(made.clone()));
        let equal = before.iter().zip(&after).filter(|(left, right)| left.text == right.text);
        assert!(equal.count() >= least_equal, "{before:?}\n{after:?}");
        for (left, right) in before.iter().zip(&after) {
            assert!((left.score - right.score).abs() < score, "{left:?} {right:?}");
            let pairs = left.embedding.iter().zip(&right.embedding);
            let product: f32 = pairs.map(|(left, right)| left * right).sum();
            assert!(product > cosine, "{product}");
        }
        let again = captions(made);
        assert_eq!(after, again);
    }

    #[test]
    fn int8_captions_are_nearly_the_same() {
        assert_near(Reduced::Int8, 10, 0.1, 0.999);
    }

    #[test]
    fn fp16_captions_are_nearly_the_same() {
        assert_near(Reduced::Fp16, 11, 0.02, 0.9999);
    }

    #[test]
    fn int8_captions_do_not_depend_on_the_batch() {
        for name in ["models/random", "models/tiny"] {
            let model = copy(name);
            let origin = Bundle::open(model.path()).unwrap();
            let made = variant::write(&origin, Reduced::Int8, "").unwrap();
            assert_company_changes_nothing(load(made), name);
        }
    }

    #[test]
    fn the_command_measures_what_it_made() {
        let model = copy("models/random");
        let path = model.path().to_str().unwrap();
        let images = root("samples");
        for precision in ["int8", "fp16"] {
            let plain = fusioncap(&["variant", path, "--precision", precision]);
            let errors = stderr(&plain);
            assert_eq!(plain.status.code(), Some(0), "{errors}");
            let card = model.path().join("variants").join(precision).join(bundle::CARD);
            assert!(fs::read_to_string(&card).unwrap().contains("was not measured"));
            let arguments =
                ["variant", path, "--precision", precision, "--images", images.to_str().unwrap()];
            let output = fusioncap(&arguments);
            let text = stdout(&output);
            for part in ["wrote ", "sha256:", "bytes before", "equal;", "images/s before"] {
                assert!(text.contains(part), "{text}");
            }
            let written = fs::read_to_string(&card).unwrap();
            assert!(written.contains("images/s before"), "{written}");
            let chosen = ["caption", "--model", path, "--precision", precision];
            let photo = root("samples/cat.jpg");
            let output = fusioncap(&[&chosen[..], &[photo.to_str().unwrap()]].concat());
            assert_eq!(output.status.code(), Some(0));
        }
        let twice = model.path().join("variants/int8");
        let output = fusioncap(&["variant", twice.to_str().unwrap(), "--precision", "fp16"]);
        assert_eq!(output.status.code(), Some(2));
    }
}
