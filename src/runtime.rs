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

/// Each instance has its own copy of the weights: on many cores, they get more threads instead.
const MOST_INSTANCES: usize = 4;

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

/// A session for the ONNX file at `path`, on the first of the configured providers that can be
/// had; that it is not the very first one is an error, unless `runtime.fallback` allows it.
///
/// # Errors
/// `ErrorKind::Runtime` if the library, a provider or the model can't be used.
pub fn session(settings: &Runtime, path: &Path) -> Result<Session> {
    session_and_provider(settings, path).map(|(session, _)| session)
}

/// As [`session`], with the provider that it is on.
///
/// # Errors
/// As [`session`].
pub fn session_and_provider(settings: &Runtime, path: &Path) -> Result<(Session, Provider)> {
    // A graph replays one shape only.
    let settings = &Runtime { cuda_graphs: false, ..settings.clone() };
    first_that_opens(settings, path)
}

/// As [`session_and_provider`], for a graph that an accelerator always runs with one shape at one
/// place: `runtime.cuda_graphs` applies.
///
/// # Errors
/// As [`session`].
pub fn fixed_session(settings: &Runtime, path: &Path) -> Result<(Session, Provider)> {
    first_that_opens(settings, path)
}

fn first_that_opens(settings: &Runtime, path: &Path) -> Result<(Session, Provider)> {
    let environment = environment(settings)?;
    let mut wanted = settings.providers.as_slice();
    loop {
        let error = match open(settings, wanted, environment, path) {
            Ok(session) => {
                return Ok((session, wanted.first().copied().unwrap_or(Provider::Cpu)));
            }
            Err(error) => error,
        };
        let Some((lacking, rest)) = wanted.split_first() else {
            return Err(error);
        };
        if !settings.fallback || *lacking == Provider::Cpu {
            return Err(error);
        }
        tracing::warn!(
            provider = ?lacking,
            error = error.chain(),
            "an execution provider can't be had: going on without it, as runtime.fallback allows"
        );
        wanted = rest;
    }
}

fn open(
    settings: &Runtime,
    wanted: &[Provider],
    environment: &Environment,
    path: &Path,
) -> Result<Session> {
    configure(settings, wanted, environment)?.commit_from_file(path).map_err(|error| {
        let told =
            Error::new(ErrorKind::Runtime, "can't load an ONNX model").with("path", path.display());
        // A device that is not there, or has too little memory, is found out here.
        let told = match wanted.first() {
            None | Some(Provider::Cpu) => told,
            Some(_) => told
                .with("runtime.providers", format!("{wanted:?}"))
                .with("runtime.device_id", settings.device_id),
        };
        told.because(error)
    })
}

fn configure(
    settings: &Runtime,
    wanted: &[Provider],
    environment: &Environment,
) -> Result<SessionBuilder> {
    let refused = |error: ort::Error<SessionBuilder>| {
        Error::new(ErrorKind::Runtime, "ONNX Runtime refuses the configuration")
            .with("runtime.providers", format!("{wanted:?}"))
            .with("runtime.device_id", settings.device_id)
            .because(ort::Error::<()>::from(error))
    };
    let builder = Session::builder(environment).map_err(|error| {
        Error::new(ErrorKind::Runtime, "can't make an ONNX Runtime session").because(error)
    })?;
    builder
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(refused)?
        .with_intra_threads(threads(settings))
        .map_err(refused)?
        .with_intra_op_spinning(false)
        .map_err(refused)?
        .with_execution_providers(providers(settings, wanted)?)
        .map_err(refused)
}

/// How many sessions of each graph work at once: one on an accelerator, where more decoders gained
/// nothing (docs/performance.md).
pub fn instances(settings: &Runtime) -> usize {
    match (settings.providers.first(), settings.instances) {
        (Some(Provider::Cuda | Provider::Tensorrt), _) => 1,
        (_, 0) => (cores() / settings.intra_threads.max(1)).clamp(1, MOST_INSTANCES),
        (_, instances) => instances,
    }
}

fn threads(settings: &Runtime) -> usize {
    match settings.intra_threads {
        0 => (cores() / instances(settings)).max(1),
        threads => threads,
    }
}

/// ONNX Runtime itself would count the machine's, not those of the container.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The wanted providers, in order. The CPU needs no entry: ONNX Runtime always has it, and it can
/// run every node, so that nothing configured behind it would be used.
fn providers(settings: &Runtime, wanted: &[Provider]) -> Result<Vec<ExecutionProviderDispatch>> {
    wanted
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
                // Doubling what is there may pass the limit with most of it unused.
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
