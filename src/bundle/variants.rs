//! Variants of a bundle: the same model in less precise arithmetic, each a whole bundle of its own
//! in `variants/<precision>` of the one that it was made from.
//!
//! They are no files of that bundle: its manifest does not list them, and making one leaves its
//! digest as it was. A variant names the digest of its origin, and is refused beside any other.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Bundle, MANIFEST, bundle_error, digest, read};
use crate::config::{Precision, Provider, Runtime};
use crate::error::{Error, ErrorKind, Result};

/// The folder of a bundle in which its variants are.
pub const FOLDER: &str = "variants";

/// What a variant is, and of what (`variant` in `config.json`).
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Variant {
    pub precision: Reduced,
    /// Digest of the bundle that it was made from.
    pub of: String,
}

/// The precision of a variant.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Reduced {
    /// Weights and arithmetic in 16 bits, for GPUs.
    Fp16,
    /// Matrix products in 8 bits, weights kept in 8 bits too, for CPUs.
    Int8,
}

impl Reduced {
    pub const ALL: [Self; 2] = [Self::Fp16, Self::Int8];

    /// Where the variant of the bundle in `dir` is.
    pub fn folder(self, dir: &Path) -> PathBuf {
        dir.join(FOLDER).join(self.to_string())
    }
}

impl fmt::Display for Reduced {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
        })
    }
}

/// The variant to look for, and whether the bundle itself does where there is none.
fn wanted(precision: Precision, runtime: &Runtime) -> (Option<Reduced>, bool) {
    let first = runtime.providers.first();
    match precision {
        Precision::Auto if matches!(first, Some(Provider::Cuda | Provider::Tensorrt)) => {
            (Some(Reduced::Fp16), true)
        }
        Precision::Auto => (None, true),
        Precision::Fp32 => (None, false),
        Precision::Fp16 => (Some(Reduced::Fp16), false),
        Precision::Int8 => (Some(Reduced::Int8), false),
    }
}

/// Whether [`Bundle::choose`] may read `name`, a path relative to the bundle.
pub fn is_needed(name: &str, precision: Precision, runtime: &Runtime) -> bool {
    let Some(inner) = name.strip_prefix(FOLDER).and_then(|rest| rest.strip_prefix('/')) else {
        return true;
    };
    let (variant, _) = wanted(precision, runtime);
    variant.is_some_and(|variant| inner.starts_with(&format!("{variant}/")))
}

impl Bundle {
    /// Opens the bundle in `dir`, or the variant of it that `precision` asks for
    /// (`model.precision`).
    ///
    /// # Errors
    /// `ErrorKind::Config` if there is no such variant; `ErrorKind::Bundle` if it was made from
    /// another bundle, and as [`Bundle::open`].
    pub fn choose(dir: &Path, precision: Precision, runtime: &Runtime) -> Result<Self> {
        let (variant, or_itself) = wanted(precision, runtime);
        if let Some(variant) = variant
            && variant.folder(dir).is_dir()
        {
            return open(dir, variant);
        }
        let bundle = Self::open(dir)?;
        let own = bundle.config.variant.as_ref().map(|found| found.precision);
        if or_itself || own == variant {
            return Ok(bundle);
        }
        Err(absent(dir, precision, own))
    }
}

/// The variant of the bundle in `dir`.
fn open(dir: &Path, precision: Reduced) -> Result<Bundle> {
    let path = precision.folder(dir);
    let bundle = Bundle::open(&path)?;
    let origin = digest(&read(&dir.join(MANIFEST))?);
    let Some(variant) = bundle.config.variant.as_ref().filter(|own| own.precision == precision)
    else {
        return Err(bundle_error("the bundle is not the variant that its place says", &path)
            .with("expected", precision));
    };
    if variant.of != origin {
        return Err(bundle_error(
            "the variant is stale: it was made from another bundle than the one it lies in; \
             `fusioncap variant` makes it anew",
            &path,
        )
        .with("made from", &variant.of)
        .with("lies in", origin));
    }
    Ok(bundle)
}

/// `own` is what the bundle in `dir` is itself; nothing where it is no variant.
fn absent(dir: &Path, precision: Precision, own: Option<Reduced>) -> Error {
    let itself = own.map_or("fp32".to_owned(), |variant| variant.to_string());
    let there = Reduced::ALL.into_iter().filter(|variant| variant.folder(dir).is_dir());
    let mut allowed = vec!["auto".to_owned(), itself];
    allowed.extend(there.map(|variant| variant.to_string()));
    let value = format!("{precision:?}").to_lowercase();
    Error::new(
        ErrorKind::Config,
        format!(
            "model.precision can't be '{value}': the bundle has no such variant, \
             which `fusioncap variant` makes"
        ),
    )
    .with("path", dir.display())
    .with("allowed", allowed.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(provider: Provider) -> Runtime {
        Runtime { providers: vec![provider, Provider::Cpu], ..Runtime::default() }
    }

    #[test]
    fn gpus_look_for_half_precision_by_themselves() {
        let (cpu, cuda) = (runtime(Provider::Cpu), runtime(Provider::Cuda));
        assert_eq!(wanted(Precision::Auto, &cpu), (None, true));
        assert_eq!(wanted(Precision::Auto, &cuda), (Some(Reduced::Fp16), true));
        let tensorrt = runtime(Provider::Tensorrt);
        assert_eq!(wanted(Precision::Auto, &tensorrt), (Some(Reduced::Fp16), true));
        assert_eq!(wanted(Precision::Fp32, &cuda), (None, false));
        assert_eq!(wanted(Precision::Int8, &cuda), (Some(Reduced::Int8), false));
    }

    #[test]
    fn only_the_wanted_variant_is_fetched() {
        let (cpu, cuda) = (runtime(Provider::Cpu), runtime(Provider::Cuda));
        let names = ["manifest.json", "variants/int8/config.json", "variants/fp16/config.json"];
        let fetched =
            |precision, runtime: &Runtime| names.map(|name| is_needed(name, precision, runtime));
        assert_eq!(fetched(Precision::Auto, &cpu), [true, false, false]);
        assert_eq!(fetched(Precision::Auto, &cuda), [true, false, true]);
        assert_eq!(fetched(Precision::Int8, &cuda), [true, true, false]);
        assert_eq!(fetched(Precision::Fp32, &cuda), [true, false, false]);
    }
}
