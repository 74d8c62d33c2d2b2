//! ONNX Runtime: the shared library found and loaded once, and sessions built as configured.
//!
//! The library is loaded at run time (`runtime.library`, `ORT_DYLIB_PATH`, or the place where
//! the project's set-up puts it), so one binary serves CPU and GPU. An execution provider that
//! was asked for and can't be had is an error, never a silent fall-back to the CPU.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use ort::environment::Environment;
use ort::ep::ExecutionProviderDispatch;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use crate::config::{Provider, Runtime};
use crate::error::{Error, ErrorKind, Result};

/// The library's file name on this platform.
const LIBRARY: &str = "libonnxruntime.so";
/// Where `make onnxruntime` puts the library, relative to the project.
const TOOLS: &str = ".tools/onnxruntime/lib";

static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
static LOADING: Mutex<()> = Mutex::new(());

/// Loads ONNX Runtime, once a process; a later call with another library keeps the first.
///
/// # Errors
/// `ErrorKind::Runtime`, naming the file that was tried and how to get one.
pub fn environment(settings: &Runtime) -> Result<&'static Environment> {
    let _guard = LOADING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(environment) = ENVIRONMENT.get() {
        return Ok(environment);
    }
    let path = library(settings)?;
    let environment = ort::init_from(&path)
        .map_err(|error| unusable(&path, error))?
        .with_telemetry(false)
        .build()
        .map_err(|error| unusable(&path, error))?;
    Ok(ENVIRONMENT.get_or_init(|| environment))
}

/// A session for the ONNX file at `path`, on the first of the configured providers.
///
/// # Errors
/// `ErrorKind::Runtime` if the library, a provider or the model can't be used.
pub fn session(settings: &Runtime, path: &Path) -> Result<Session> {
    let environment = environment(settings)?;
    configure(settings, environment)?.commit_from_file(path).map_err(|error| {
        Error::new(ErrorKind::Runtime, "can't load an ONNX model")
            .with("path", path.display())
            .because(error)
    })
}

fn configure(settings: &Runtime, environment: &Environment) -> Result<SessionBuilder> {
    let refused = |error: ort::Error<SessionBuilder>| {
        Error::new(ErrorKind::Runtime, "ONNX Runtime refuses the configuration")
            .with("runtime.providers", format!("{:?}", settings.providers))
            .because(ort::Error::<()>::from(error))
    };
    let builder = Session::builder(environment).map_err(|error| {
        Error::new(ErrorKind::Runtime, "can't make an ONNX Runtime session").because(error)
    })?;
    builder
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(refused)?
        .with_intra_threads(settings.intra_threads)
        .map_err(refused)?
        .with_intra_op_spinning(false)
        .map_err(refused)?
        .with_execution_providers(providers(settings)?)
        .map_err(refused)
}

/// The configured providers, in order. The CPU needs no entry: ONNX Runtime always has it, and
/// it can run every node, so that nothing configured behind it would be used.
fn providers(settings: &Runtime) -> Result<Vec<ExecutionProviderDispatch>> {
    settings
        .providers
        .iter()
        .take_while(|provider| **provider != Provider::Cpu)
        .map(|provider| accelerator(*provider, settings))
        .collect()
}

#[cfg(feature = "cuda")]
fn accelerator(provider: Provider, settings: &Runtime) -> Result<ExecutionProviderDispatch> {
    let dispatch = match provider {
        Provider::Tensorrt => {
            ort::ep::TensorRT::default().with_device_id(settings.device_id).build()
        }
        Provider::Cuda | Provider::Cpu => {
            ort::ep::CUDA::default().with_device_id(settings.device_id).build()
        }
    };
    Ok(dispatch.error_on_failure())
}

#[cfg(not(feature = "cuda"))]
fn accelerator(provider: Provider, _settings: &Runtime) -> Result<ExecutionProviderDispatch> {
    Err(Error::new(
        ErrorKind::Config,
        "runtime.providers names an execution provider that this build lacks; \
         build with `--features cuda`, or use cpu",
    )
    .with("value", format!("{provider:?}").to_lowercase())
    .with("allowed", "cpu"))
}

/// The library to load: as configured, or the first that exists of the usual places.
fn library(settings: &Runtime) -> Result<PathBuf> {
    if let Some(path) = &settings.library {
        return existing(path.clone(), "runtime.library");
    }
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return existing(path.into(), "ORT_DYLIB_PATH");
    }
    let beside_executable =
        std::env::current_exe().ok().and_then(|path| Some(path.parent()?.into()));
    let folders = [Some(PathBuf::from(TOOLS)), beside_executable];
    let found = folders
        .into_iter()
        .flatten()
        .map(|folder| folder.join(LIBRARY))
        .find(|path| path.is_file());
    found.ok_or_else(|| {
        Error::new(
            ErrorKind::Runtime,
            "ONNX Runtime's library was not found; `make onnxruntime` fetches it, or set \
             runtime.library or ORT_DYLIB_PATH",
        )
        .with("tried", format!("{TOOLS}/{LIBRARY}"))
    })
}

fn existing(path: PathBuf, origin: &'static str) -> Result<PathBuf> {
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::new(
        ErrorKind::Runtime,
        "ONNX Runtime's library is not there; `make onnxruntime` fetches it",
    )
    .with("path", path.display())
    .with("named by", origin))
}

fn unusable(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(
        ErrorKind::Runtime,
        "ONNX Runtime's library can't be used; version 1.31 or newer is needed, and \
         `make onnxruntime` fetches it",
    )
    .with("path", path.display())
    .because(error)
}
