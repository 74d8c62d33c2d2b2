//! The command line: one file per subcommand, from raw arguments to checked settings to a library
//! call.
//!
//! A subcommand is `NameArgs`, which clap reads, and `run(NameArgs)`, which builds the tokio runtime
//! it needs, if any, and returns the crate's error. Only this module turns errors into exit codes:
//! 0, 1 for a failure at run time, 2 for a wrong command line or configuration.

#[cfg(feature = "train")]
pub mod ablate;
pub mod caption;
#[cfg(feature = "train")]
pub mod clip;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
#[cfg(feature = "train")]
pub mod encoder;
pub mod evaluate;
pub mod healthcheck;
mod images;
mod output;
pub mod plan;
pub mod redrive;
pub mod settings;
#[cfg(feature = "train")]
pub mod train;
#[cfg(feature = "train")]
pub mod variant;
pub mod verify;
pub mod worker;

use std::error::Error as StdError;
use std::io::{self, Write};

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser, Subcommand};

use crate::error::{Error, ErrorKind, Result};
use crate::telemetry::logs::{self, Level};

/// Streaming batch image captioning: image references on Kafka become captions, exactly once.
#[derive(Debug, Parser)]
#[command(name = "fusioncap", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Caption the images that a Kafka topic refers to, exactly once
    Worker(worker::WorkerArgs),
    /// Caption images on this machine or in S3
    Caption(caption::CaptionArgs),
    /// Measure a bundle's captions against references: BLEU, ROUGE-L, CIDEr-D
    Evaluate(evaluate::EvaluateArgs),
    /// Check that every reference has exactly one answer: a caption or a dead letter
    Verify(verify::VerifyArgs),
    /// Send dead letters back to the input topic, exactly once
    Redrive(redrive::RedriveArgs),
    /// Estimate the workers, cores, requests and partitions that a stream of images needs
    Plan(plan::PlanArgs),
    /// Check that a worker is alive or ready, in containers without a shell
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Print the effective configuration, with secrets masked
    Config(config::ConfigArgs),
    /// Caption sample photos with everything embedded: Kafka, S3 and the worker
    #[cfg(feature = "demo")]
    Demo(demo::DemoArgs),
    /// Train a captioner from text alone and write its bundle
    #[cfg(feature = "train")]
    Train(train::TrainArgs),
    /// Train the methods that FusionCap builds on, on one corpus, and compare them
    #[cfg(feature = "train")]
    Ablate(ablate::AblateArgs),
    /// Build the joint image-text encoder that training starts from
    #[cfg(feature = "train")]
    Encoder(encoder::EncoderArgs),
    /// Import your own CLIP as the encoder that training starts from
    #[cfg(feature = "train")]
    Clip(clip::ClipArgs),
    /// Write a bundle's variant in 16 or 8 bits, and measure the difference
    #[cfg(feature = "train")]
    Variant(variant::VariantArgs),
}

impl Command {
    /// Returns the default log level. `None` sets up no logs here: the worker does so together with
    /// its exporters, and the others only print.
    fn log_level(&self) -> Option<Level> {
        match self {
            Self::Worker(_) | Self::Healthcheck(_) | Self::Config(_) | Self::Plan(_) => None,
            Self::Caption(_) | Self::Evaluate(_) | Self::Verify(_) | Self::Redrive(_) => {
                Some(Level::Warn)
            }
            #[cfg(feature = "train")]
            Self::Variant(_) => Some(Level::Warn),
            #[cfg(feature = "demo")]
            Self::Demo(_) => Some(Level::Warn),
            #[cfg(feature = "train")]
            Self::Train(_) | Self::Encoder(_) | Self::Clip(_) | Self::Ablate(_) => {
                Some(Level::Info)
            }
        }
    }
}

/// Reads the process's arguments, runs the subcommand and reports its error on stderr.
///
/// Returns the exit code. clap itself ends the process with 2 on a wrong command line, and with 0
/// after `--help`.
pub fn main() -> u8 {
    let parsed =
        Cli::try_parse().map_err(|error| not_built(&error).unwrap_or_else(|| error.exit()));
    let Err(error) = parsed.and_then(run) else {
        return 0;
    };
    // With stderr closed, the exit code is the only report.
    let _ = report(&error, &mut io::stderr().lock());
    error.exit_code()
}

/// The error for a command that only a build with another feature has.
fn not_built(error: &clap::Error) -> Option<Error> {
    let Some(ContextValue::String(command)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    let feature = feature_of(command)?;
    if Cli::command().find_subcommand(command).is_some() {
        return None;
    }
    let message = format!(
        "this build does not have `{command}`: build it with `cargo build --release --features \
         {feature}`"
    );
    Some(Error::new(ErrorKind::Config, message))
}

/// The feature that a command needs, if it needs one.
fn feature_of(command: &str) -> Option<&'static str> {
    match command {
        "demo" => Some("demo"),
        "train" | "ablate" | "encoder" | "clip" | "variant" => Some("train"),
        _ => None,
    }
}

/// Runs one subcommand to its end.
pub fn run(cli: Cli) -> Result<()> {
    if let Some(level) = cli.command.log_level() {
        logs::init(level)?;
    }
    match cli.command {
        Command::Worker(args) => worker::run(args),
        Command::Caption(args) => caption::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Redrive(args) => redrive::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Healthcheck(args) => healthcheck::run(args),
        Command::Config(args) => config::run(args),
        #[cfg(feature = "demo")]
        Command::Demo(args) => demo::run(args),
        #[cfg(feature = "train")]
        Command::Train(args) => train::run(args),
        #[cfg(feature = "train")]
        Command::Ablate(args) => ablate::run(args),
        #[cfg(feature = "train")]
        Command::Encoder(args) => encoder::run(args),
        #[cfg(feature = "train")]
        Command::Clip(args) => clip::run(args),
        #[cfg(feature = "train")]
        Command::Variant(args) => variant::run(args),
    }
}

/// Writes a configuration error as exactly one line, any other error with its causes below it.
fn report(error: &Error, out: &mut impl Write) -> io::Result<()> {
    if error.kind() == ErrorKind::Config {
        return writeln!(out, "error: {}", one_line(&error.chain()));
    }
    writeln!(out, "error: {error}")?;
    let mut cause = error.source();
    while let Some(reason) = cause {
        writeln!(out, "  caused by: {}", one_line(&reason.to_string()))?;
        cause = reason.source();
    }
    if let Some(backtrace) = error.backtrace() {
        writeln!(out, "{backtrace}")?;
    }
    Ok(())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(error: &Error) -> String {
        let mut out = Vec::new();
        report(error, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_build_has_the_commands_of_its_features() {
        let has = |command: &str| Cli::command().find_subcommand(command).is_some();
        assert!(has("worker"));
        assert_eq!(feature_of("worker"), None);
        for (command, is_built) in [
            ("demo", cfg!(feature = "demo")),
            ("train", cfg!(feature = "train")),
            ("ablate", cfg!(feature = "train")),
            ("encoder", cfg!(feature = "train")),
            ("clip", cfg!(feature = "train")),
            ("variant", cfg!(feature = "train")),
        ] {
            assert_eq!(has(command), is_built, "{command}");
            assert!(feature_of(command).is_some(), "{command}");
            let error = Cli::try_parse_from(["fusioncap", command, "--no-such-flag"]).unwrap_err();
            assert_eq!(not_built(&error).is_some(), !is_built, "{command}");
        }
    }

    #[test]
    fn a_wrong_configuration_is_one_line() {
        let error = Error::new(ErrorKind::Config, "the file is not YAML")
            .with_source("line one\n  line two\n");
        assert_eq!(reported(&error), "error: the file is not YAML: line one line two\n");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_failure_shows_its_causes() {
        let inner = Error::new(ErrorKind::Io, "can't read").with_source("permission denied");
        let error = Error::new(ErrorKind::Bundle, "no manifest")
            .with_context("path", "m")
            .with_source(inner);
        assert_eq!(
            reported(&error),
            "error: no manifest (path: m)\n  caused by: can't read\n  \
             caused by: permission denied\n"
        );
        assert_eq!(error.exit_code(), 1);
    }
}
