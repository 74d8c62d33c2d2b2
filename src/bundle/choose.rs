//! Opens a bundle, or the variant of it that `model.precision` selects.

use std::path::Path;

use super::variants::{self, Reduced};
use super::{Bundle, MANIFEST, bundle_error, digest, read_file};
use crate::config::{Precision, Runtime};
use crate::error::{Error, ErrorKind, Result};

impl Bundle {
    /// Opens the bundle in `dir`, or the variant of it that `precision` (`model.precision`) selects.
    ///
    /// # Errors
    /// `ErrorKind::Config` if the variant does not exist; `ErrorKind::Bundle` if it was made from
    /// another bundle; as [`Bundle::open`].
    pub fn choose(dir: &Path, precision: Precision, runtime: &Runtime) -> Result<Self> {
        let (variant, or_itself) = variants::selected(precision, runtime);
        if let Some(variant) = variant
            && variant.folder(dir).is_dir()
        {
            return open_variant(dir, variant);
        }
        let bundle = Self::open(dir)?;
        let own = bundle.config.variant.as_ref().map(|found| found.precision);
        if or_itself || own == variant {
            return Ok(bundle);
        }
        Err(missing_variant(dir, precision, own))
    }
}

fn open_variant(dir: &Path, precision: Reduced) -> Result<Bundle> {
    let path = precision.folder(dir);
    let bundle = Bundle::open(&path)?;
    let origin = digest(&read_file(&dir.join(MANIFEST))?);
    let Some(variant) = bundle.config.variant.as_ref().filter(|own| own.precision == precision)
    else {
        return Err(bundle_error(
            "the bundle is not the variant that its directory is named after",
            &path,
        )
        .with_context("expected", precision));
    };
    if variant.of != origin {
        return Err(bundle_error(
            "the variant is stale: it was made from another bundle; make it again with \
             `fusioncap variant`",
            &path,
        )
        .with_context("made from", &variant.of)
        .with_context("is in", origin));
    }
    Ok(bundle)
}

/// `own` is the precision of the bundle in `dir`; None unless it is itself a variant.
fn missing_variant(dir: &Path, precision: Precision, own: Option<Reduced>) -> Error {
    let itself = own.map_or("fp32".to_owned(), |variant| variant.to_string());
    let available = Reduced::ALL.into_iter().filter(|variant| variant.folder(dir).is_dir());
    let mut allowed = vec!["auto".to_owned(), itself];
    allowed.extend(available.map(|variant| variant.to_string()));
    let value = format!("{precision:?}").to_lowercase();
    Error::new(
        ErrorKind::Config,
        format!(
            "model.precision can't be '{value}': the bundle has no such variant, \
             which `fusioncap variant` makes"
        ),
    )
    .with_context("path", dir.display())
    .with_context("allowed", allowed.join(", "))
}
