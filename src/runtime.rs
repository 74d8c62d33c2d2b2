//! ONNX Runtime: finds and loads the shared library once, and builds sessions from the
//! configuration.
//!
//! The library is loaded at run time from `runtime.library`, `ORT_DYLIB_PATH` or the directory
//! that `make onnxruntime` fills, so one binary serves CPU and GPU. A configured execution provider
//! that is not available is an error; there is no silent fallback to the CPU.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::environment::Environment;
use ort::ep::ExecutionProviderDispatch;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use parking_lot::Mutex;

use crate::config::{Provider, Runtime};
use crate::error::{Error, ErrorKind, Result};

/// The library's file name on this platform.
const LIBRARY: &str = "libonnxruntime.so";
/// Directory of the library that `make onnxruntime` fetches, relative to the project.
const LIBRARY_DIR: &str = ".tools/onnxruntime/lib";

/// Each session has its own copy of the weights: on many cores, sessions get more threads instead.
const MAX_SESSIONS: usize = 4;

static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
static LOADING: Mutex<()> = Mutex::new(());

/// Loads ONNX Runtime once per process; a later call with another library returns the first.
///
/// # Errors
/// `ErrorKind::Runtime`, which names the file that was tried and how to get the library.
pub fn environment(settings: &Runtime) -> Result<&'static Environment> {
    let _guard = LOADING.lock();
    if let Some(environment) = ENVIRONMENT.get() {
        return Ok(environment);
    }
    let path = find_library(settings)?;
    let environment = ort::init_from(&path)
        .map_err(|error| unusable(&path, error))?
        .with_telemetry(false)
        .build()
        .map_err(|error| unusable(&path, error))?;
    Ok(ENVIRONMENT.get_or_init(|| environment))
}

/// A session for the ONNX file at `path` on the first configured provider. With
/// `runtime.fallback`, a provider that is not available is skipped.
///
/// # Errors
/// `ErrorKind::Runtime` if the library, a provider or the model can't be used.
pub fn session(settings: &Runtime, path: &Path) -> Result<Session> {
    session_and_provider(settings, path).map(|(session, _)| session)
}

/// As [`session`], and the provider that it runs on.
///
/// # Errors
/// As [`session`].
pub fn session_and_provider(settings: &Runtime, path: &Path) -> Result<(Session, Provider)> {
    // A CUDA graph replays one shape only.
    let settings = &Runtime { cuda_graphs: false, ..settings.clone() };
    open_on_first_available(settings, path)
}

/// As [`session_and_provider`], for a graph that an accelerator always runs with one shape and at
/// one address: `runtime.cuda_graphs` applies.
///
/// # Errors
/// As [`session`].
pub fn static_shape_session(settings: &Runtime, path: &Path) -> Result<(Session, Provider)> {
    open_on_first_available(settings, path)
}

fn open_on_first_available(settings: &Runtime, path: &Path) -> Result<(Session, Provider)> {
    let environment = environment(settings)?;
    let mut providers = settings.providers.as_slice();
    loop {
        let error = match open_session(settings, providers, environment, path) {
            Ok(session) => {
                return Ok((session, providers.first().copied().unwrap_or(Provider::Cpu)));
            }
            Err(error) => error,
        };
        let Some((unavailable, rest)) = providers.split_first() else {
            return Err(error);
        };
        if !settings.fallback || *unavailable == Provider::Cpu {
            return Err(error);
        }
        tracing::warn!(
            provider = ?unavailable,
            error = error.chain(),
            "an execution provider is not available: continuing without it (runtime.fallback)"
        );
        providers = rest;
    }
}

fn open_session(
    settings: &Runtime,
    providers: &[Provider],
    environment: &Environment,
    path: &Path,
) -> Result<Session> {
    session_builder(settings, providers, environment)?.commit_from_file(path).map_err(|error| {
        let failure = Error::new(ErrorKind::Runtime, "can't load an ONNX model")
            .with_context("path", path.display());
        // A missing device, or one with too little memory, fails here.
        let failure = match providers.first() {
            None | Some(Provider::Cpu) => failure,
            Some(_) => failure
                .with_context("runtime.providers", format!("{providers:?}"))
                .with_context("runtime.device_id", settings.device_id),
        };
        failure.with_source(error)
    })
}

fn session_builder(
    settings: &Runtime,
    providers: &[Provider],
    environment: &Environment,
) -> Result<SessionBuilder> {
    let refused = |error: ort::Error<SessionBuilder>| {
        Error::new(ErrorKind::Runtime, "ONNX Runtime refuses the configuration")
            .with_context("runtime.providers", format!("{providers:?}"))
            .with_context("runtime.device_id", settings.device_id)
            .with_source(ort::Error::<()>::from(error))
    };
    let builder = Session::builder(environment).map_err(|error| {
        Error::new(ErrorKind::Runtime, "can't create an ONNX Runtime session").with_source(error)
    })?;
    builder
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(refused)?
        .with_intra_threads(intra_threads(settings))
        .map_err(refused)?
        .with_intra_op_spinning(false)
        .map_err(refused)?
        .with_execution_providers(dispatches(settings, providers)?)
        .map_err(refused)
}

/// Number of sessions of each graph: one on an accelerator, where more gained nothing
/// (docs/performance.md).
pub fn sessions(settings: &Runtime) -> usize {
    match (settings.providers.first(), settings.sessions) {
        (Some(Provider::Cuda | Provider::Tensorrt), _) => 1,
        (_, 0) => (cores() / settings.intra_threads.max(1)).clamp(1, MAX_SESSIONS),
        (_, sessions) => sessions,
    }
}

/// Threads of one session.
fn intra_threads(settings: &Runtime) -> usize {
    match settings.intra_threads {
        0 => (cores() / sessions(settings)).max(1),
        threads => threads,
    }
}

/// Cores of the container; ONNX Runtime's own default counts those of the machine.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// `providers` for ONNX Runtime, in order. The CPU needs no entry: ONNX Runtime always has it, and
/// it runs every node, so no provider after it would be used.
fn dispatches(
    settings: &Runtime,
    providers: &[Provider],
) -> Result<Vec<ExecutionProviderDispatch>> {
    providers
        .iter()
        .take_while(|provider| **provider != Provider::Cpu)
        .map(|provider| accelerator(*provider, settings))
        .collect()
}

#[cfg(feature = "cuda")]
fn accelerator(provider: Provider, settings: &Runtime) -> Result<ExecutionProviderDispatch> {
    use ort::ep::{ArenaExtendStrategy, CUDA, TensorRT};

    let dispatch = match provider {
        Provider::Tensorrt => {
            let mut tensorrt = TensorRT::default()
                .with_device_id(settings.device_id)
                .with_fp16(settings.tensorrt_fp16);
            if let Some(folder) = &settings.tensorrt_cache {
                let folder = folder.display().to_string();
                tensorrt = tensorrt
                    .with_engine_cache(true)
                    .with_engine_cache_path(&folder)
                    .with_timing_cache(true)
                    .with_timing_cache_path(&folder);
            }
            tensorrt.build()
        }
        Provider::Cuda | Provider::Cpu => {
            let mut cuda = CUDA::default()
                .with_device_id(settings.device_id)
                .with_tf32(settings.cuda_tf32)
                .with_cuda_graph(settings.cuda_graphs)
                // Doubling the arena could exceed the limit with most of it unused.
                .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested);
            if let Some(limit) = settings.cuda_memory_limit_bytes {
                cuda = cuda.with_memory_limit(usize::try_from(limit).unwrap_or(usize::MAX));
            }
            cuda.build()
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
    .with_context("value", format!("{provider:?}").to_lowercase())
    .with_context("allowed", "cpu"))
}

/// The library to load: the configured one, or the first that exists in the default directories.
fn find_library(settings: &Runtime) -> Result<PathBuf> {
    if let Some(path) = &settings.library {
        return existing_library(path.clone(), "runtime.library");
    }
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return existing_library(path.into(), "ORT_DYLIB_PATH");
    }
    let beside_executable =
        std::env::current_exe().ok().and_then(|path| Some(path.parent()?.into()));
    let folders = [Some(PathBuf::from(LIBRARY_DIR)), beside_executable];
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
        .with_context("tried", format!("{LIBRARY_DIR}/{LIBRARY}"))
    })
}

fn existing_library(path: PathBuf, origin: &'static str) -> Result<PathBuf> {
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::new(
        ErrorKind::Runtime,
        "ONNX Runtime's library does not exist; `make onnxruntime` fetches it",
    )
    .with_context("path", path.display())
    .with_context("named by", origin))
}

fn unusable(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(
        ErrorKind::Runtime,
        "ONNX Runtime's library can't be used; version 1.31 or newer is required, and \
         `make onnxruntime` fetches it",
    )
    .with_context("path", path.display())
    .with_source(error)
}
