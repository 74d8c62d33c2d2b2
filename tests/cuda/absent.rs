//! A missing GPU or library is an error that names it; the CPU is used only with `runtime.fallback`.

use std::process::Output;

use fusioncap::config::{Provider, Runtime};
use fusioncap::error::ErrorKind;
use kit::{root, stderr, stdout};

use super::{captions, cuda, gpu, load, photos};

/// `fusioncap caption` of a photo, on a machine whose GPUs are hidden.
fn caption(variables: &[(&str, &str)]) -> Output {
    kit::fusioncap(&["caption", "--model"])
        .arg(root("models/tiny"))
        .arg(root("samples/cat.jpg"))
        .env("CUDA_VISIBLE_DEVICES", "-1")
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn without_a_gpu_cuda_is_an_error_that_names_it() {
    let output = caption(&[("FUSIONCAP_RUNTIME__PROVIDERS", "cuda")]);
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(output.stdout.is_empty(), "something was captioned: {}", stdout(&output));
    let named: Vec<&str> = errors.lines().filter(|line| line.starts_with("error: ")).collect();
    let [line] = named.as_slice() else { panic!("one error: {errors}") };
    assert!(line.contains("runtime.providers: [Cuda]"), "{errors}");
}

#[test]
fn without_a_gpu_the_cpu_is_used_with_a_warning_where_fallback_allows_it() {
    let on_cpu = caption(&[]);
    let output = caption(&[
        ("FUSIONCAP_RUNTIME__PROVIDERS", "cuda"),
        ("FUSIONCAP_RUNTIME__FALLBACK", "true"),
        ("FUSIONCAP_LOG", "warn"),
    ]);
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert!(!output.stdout.is_empty());
    assert_eq!(stdout(&output), stdout(&on_cpu));
    assert!(errors.contains("an execution provider is not available"), "{errors}");
    assert!(errors.contains("Cuda"), "{errors}");
}

#[test]
fn a_missing_gpu_is_named() {
    if !gpu() {
        return;
    }
    let error = load(&Runtime { device_id: 7, ..cuda() }, 8, None).err().expect("no eighth GPU");
    assert_eq!(error.kind(), ErrorKind::Runtime);
    let chain = error.chain();
    eprintln!("{chain}");
    assert!(chain.contains("runtime.device_id: 7") && chain.contains("Cuda"), "{chain}");
}

#[test]
fn too_little_memory_is_an_error() {
    if !gpu() {
        return;
    }
    let runtime = Runtime { cuda_memory_limit_bytes: Some(1 << 20), ..cuda() };
    let error = load(&runtime, 8, None).err().expect("too little memory");
    assert_eq!(error.kind(), ErrorKind::Runtime);
    let chain = error.chain();
    eprintln!("{chain}");
    assert!(chain.to_lowercase().contains("memory"), "{chain}");
    // The process can still load an engine.
    let mut engine = load(&cuda(), 8, None).unwrap();
    let photos = photos(&engine);
    assert!(captions(&mut engine, &photos, 8).iter().all(|caption| !caption.text.is_empty()));
}

#[test]
fn tensorrt_without_its_libraries_names_one() {
    if !gpu() {
        return;
    }
    let runtime = Runtime { providers: vec![Provider::Tensorrt], ..cuda() };
    match load(&runtime, 8, None) {
        Ok(mut engine) => {
            let photos = photos(&engine);
            assert!(captions(&mut engine, &photos, 8).iter().all(|found| !found.text.is_empty()));
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Runtime);
            let chain = error.chain();
            eprintln!("{chain}");
            assert!(chain.contains("Tensorrt") && chain.contains("libnv"), "{chain}");
        }
    }
}
