//! What can't be had is said, and nothing is computed elsewhere unless that is allowed.

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
    let told: Vec<&str> = errors.lines().filter(|line| line.starts_with("error: ")).collect();
    let [line] = told.as_slice() else { panic!("one error: {errors}") };
    assert!(line.contains("runtime.providers: [Cuda]"), "{errors}");
}

#[test]
fn without_a_gpu_the_cpu_steps_in_where_that_is_allowed_and_says_so() {
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
fn a_gpu_that_is_not_there_is_named() {
    if !gpu() {
        return;
    }
    let error = load(&Runtime { device_id: 7, ..cuda() }, 8, None).err().expect("no eighth GPU");
    assert_eq!(error.kind(), ErrorKind::Runtime);
    let told = error.chain();
    eprintln!("{told}");
    assert!(told.contains("runtime.device_id: 7") && told.contains("Cuda"), "{told}");
}

#[test]
fn too_little_memory_is_an_error_and_no_crash() {
    if !gpu() {
        return;
    }
    let runtime = Runtime { cuda_memory_limit_bytes: Some(1 << 20), ..cuda() };
    let error = load(&runtime, 8, None).err().expect("too little memory");
    assert_eq!(error.kind(), ErrorKind::Runtime);
    let told = error.chain();
    eprintln!("{told}");
    assert!(told.to_lowercase().contains("memory"), "{told}");
    // The process is as good as before.
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
            let told = error.chain();
            eprintln!("{told}");
            assert!(told.contains("Tensorrt") && told.contains("libnv"), "{told}");
        }
    }
}
