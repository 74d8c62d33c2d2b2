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
    let scope = scope(&args)?;
    let report = verify::run(&args.settings.load()?, &scope)?;
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&report.to_string())?;
    }
    if report.is_exactly_once() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Incomplete, "not every reference has exactly one answer")
        .with_context("missing", report.total.missing)
        .with_context("duplicated", report.total.duplicated))
}

fn scope(args: &VerifyArgs) -> Result<Scope> {
    let to = offsets("--to", &args.to)?;
    let until = match (args.committed, to.is_empty()) {
        (true, _) => Until::Committed,
        (false, true) => Until::End,
        (false, false) => Until::Offsets(to),
    };
    Ok(Scope { from: offsets("--from", &args.from)?, until })
}

fn offsets(flag: &'static str, given: &[String]) -> Result<Offsets> {
    let mut offsets = Offsets::new();
    for text in given {
        let wrong = |allowed: &str| {
            Error::new(ErrorKind::Config, format!("{flag} can't be '{text}'"))
                .with_context("allowed", allowed)
        };
        let (partition, offset) =
            parse(text).ok_or_else(|| wrong("PARTITION=OFFSET, such as 0=1500"))?;
        if offsets.insert(partition, offset).is_some() {
            return Err(wrong("each partition once"));
        }
    }
    Ok(offsets)
}

/// Reads `PARTITION=OFFSET`; None if one is not a number, or negative.
fn parse(text: &str) -> Option<(i32, i64)> {
    let (partition, offset) = text.split_once('=')?;
    let (partition, offset): (i32, i64) = (partition.parse().ok()?, offset.parse().ok()?);
    (partition >= 0 && offset >= 0).then_some((partition, offset))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use clap::error::ErrorKind as Refusal;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse_args(more: &[&str]) -> Result<VerifyArgs, clap::Error> {
        let cli = Cli::try_parse_from([&["fusioncap", "verify"], more].concat())?;
        let Command::Verify(args) = cli.command else { panic!("another command") };
        Ok(args)
    }

    #[test]
    fn the_scope_is_that_of_the_arguments() {
        let read = |more: &[&str]| scope(&parse_args(more).unwrap()).unwrap();
        assert_eq!(read(&[]), Scope { from: Offsets::new(), until: Until::End });
        assert_eq!(read(&["--committed"]).until, Until::Committed);
        let range = read(&["--from", "0=5", "--to", "0=9", "--to", "1=7"]);
        assert_eq!(range.from, Offsets::from([(0, 5)]));
        assert_eq!(range.until, Until::Offsets(Offsets::from([(0, 9), (1, 7)])));
        let known = read(&["--committed", "--from", "1=2"]);
        assert_eq!(known, Scope { from: Offsets::from([(1, 2)]), until: Until::Committed });

        let both = parse_args(&["--committed", "--to", "0=9"]).unwrap_err();
        assert_eq!(both.kind(), Refusal::ArgumentConflict);
        for flag in ["--from", "--to"] {
            let error = scope(&parse_args(&[flag, "0=x"]).unwrap()).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{flag} can't be '0=x'")), "{error}");
        }
    }

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
