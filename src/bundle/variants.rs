//! Variants of a bundle: the same model with less precise arithmetic. Each is a whole bundle in
//! `variants/<precision>` of the bundle it was made from.
//!
//! The manifest of that bundle does not list them, so its digest does not change when one is made.
//! A variant records the digest of its origin and is refused beside any other.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Precision, Provider, Runtime};

/// The directory of the variants in a bundle.
pub const FOLDER: &str = "variants";

/// `variant` in the `config.json` of a variant.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Variant {
    pub precision: Reduced,
    /// Digest of the bundle it was made from.
    pub of: String,
}

/// The precision of a variant.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Reduced {
    /// 16-bit weights and arithmetic, for GPUs.
    Fp16,
    /// 8-bit weights and matrix products, for CPUs.
    Int8,
}

impl Reduced {
    pub const ALL: [Self; 2] = [Self::Fp16, Self::Int8];

    /// The directory of this variant of the bundle in `dir`.
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

/// The variant that `precision` selects, and whether the bundle itself serves if it is missing.
pub fn selected(precision: Precision, runtime: &Runtime) -> (Option<Reduced>, bool) {
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

/// Whether `Bundle::choose` may read `name`, a path relative to the bundle.
pub fn is_needed(name: &str, precision: Precision, runtime: &Runtime) -> bool {
    let Some(inner) = name.strip_prefix(FOLDER).and_then(|rest| rest.strip_prefix('/')) else {
        return true;
    };
    let (variant, _) = selected(precision, runtime);
    variant.is_some_and(|variant| inner.starts_with(&format!("{variant}/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(provider: Provider) -> Runtime {
        Runtime { providers: vec![provider, Provider::Cpu], ..Runtime::default() }
    }

    #[test]
    fn auto_selects_fp16_on_gpus() {
        let (cpu, cuda) = (runtime(Provider::Cpu), runtime(Provider::Cuda));
        assert_eq!(selected(Precision::Auto, &cpu), (None, true));
        assert_eq!(selected(Precision::Auto, &cuda), (Some(Reduced::Fp16), true));
        let tensorrt = runtime(Provider::Tensorrt);
        assert_eq!(selected(Precision::Auto, &tensorrt), (Some(Reduced::Fp16), true));
        assert_eq!(selected(Precision::Fp32, &cuda), (None, false));
        assert_eq!(selected(Precision::Int8, &cuda), (Some(Reduced::Int8), false));
    }

    #[test]
    fn only_the_selected_variant_is_fetched() {
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
