//! `fusioncap verify`: checks that every reference has exactly one answer.

use super::output;
use crate::cli::settings::KafkaSettings;
use crate::error::{Error, ErrorKind, Result};
use crate::reader::Offsets;
use crate::verify::{self, Scope, Until};

#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    settings: KafkaSettings,
    /// Check up to the group's committed offsets instead of the end: for running workers
    #[arg(long, conflicts_with = "to")]
    committed: bool,
    /// First offset to check in a partition of the input topic [default: its log start]; may be repeated
    #[arg(long, value_name = "PARTITION=OFFSET")]
    from: Vec<String>,
    /// Offset at which to stop, exclusive, in a partition of the input topic [default: its end]; may be
    /// repeated
    #[arg(long, value_name = "PARTITION=OFFSET")]
    to: Vec<String>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(args: VerifyArgs) -> Result<()> {
    let to = offsets("--to", &args.to)?;
    let until = match (args.committed, to.is_empty()) {
        (true, _) => Until::Committed,
        (false, true) => Until::End,
        (false, false) => Until::Offsets(to),
    };
    let scope = Scope { from: offsets("--from", &args.from)?, until };
    let report = verify::run(&args.settings.load()?, &scope)?;
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&report.to_string())?;
    }
    if report.is_exactly_once() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Internal, "not every reference has exactly one answer")
        .with_context("missing", report.total.missing)
        .with_context("duplicated", report.total.duplicated))
}

fn offsets(flag: &'static str, given: &[String]) -> Result<Offsets> {
    let mut offsets = Offsets::new();
    for text in given {
        let wrong = |allowed: &str| {
            Error::new(ErrorKind::Config, format!("{flag} can't be '{text}'"))
                .with_context("allowed", allowed)
        };
        let parsed = text.split_once('=').and_then(|(partition, offset)| {
            Some((u32::try_from(partition.parse::<i32>().ok()?).ok()?, offset.parse().ok()?))
        });
        let Some((partition, offset)) = parsed else {
            return Err(wrong("PARTITION=OFFSET, such as 0=1500"));
        };
        if offset < 0 {
            return Err(wrong("PARTITION=OFFSET, such as 0=1500"));
        }
        if offsets.insert(partition.cast_signed(), offset).is_some() {
            return Err(wrong("each partition once"));
        }
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[&str]) -> Result<Offsets> {
        let owned: Vec<String> = given.iter().map(|text| (*text).to_owned()).collect();
        offsets("--to", &owned)
    }

    #[test]
    fn offsets_are_read() {
        assert_eq!(read(&["0=5", "12=0"]).unwrap(), Offsets::from([(0, 5), (12, 0)]));
        for wrong in ["", "0", "0=", "=5", "-1=5", "0=-5", "0=5=6", "x=1", "99999999999=1"] {
            let error = read(&[wrong]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
            assert!(error.to_string().contains(&format!("'{wrong}'")), "{error}");
        }
        assert!(read(&["0=5", "0=6"]).unwrap_err().to_string().contains("each partition once"));
    }
}
