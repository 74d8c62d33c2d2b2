//! `fusioncap redrive`: sends dead letters back to the input topic, exactly once.

use jiff::Timestamp;

use super::output;
use crate::cli::settings::KafkaSettings;
use crate::error::{Error, ErrorKind, Result};
use crate::redrive::{self, Filter, Plan};

#[derive(Debug, clap::Args)]
pub struct RedriveArgs {
    #[command(flatten)]
    settings: KafkaSettings,
    /// Dead letters with this error code; may be repeated
    #[arg(long, value_name = "CODE")]
    code: Vec<String>,
    /// Dead letters with this id; may be repeated
    #[arg(long, value_name = "ID")]
    id: Vec<String>,
    /// Dead letters that failed at this time or later (RFC 3339)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Dead letters that failed before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Every dead letter
    #[arg(long)]
    all: bool,
    /// Count the dead letters by code and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Dead letters per transaction
    #[arg(long, value_name = "N", default_value = "500")]
    batch: String,
    /// Print one JSON object instead of a summary
    #[arg(long)]
    json: bool,
}

pub fn run(args: RedriveArgs) -> Result<()> {
    let plan = Plan { filter: filter(&args)?, batch: batch(&args.batch)?, dry_run: args.dry_run };
    let summary = redrive::run(&args.settings.load()?, &plan)?;
    if args.json {
        output::print_json(&summary)?;
    } else {
        output::print(&summary.to_string())?;
    }
    if summary.not_redrivable() == 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Incomplete, "some dead letters can't be redriven")
        .with_context("not redrivable", summary.not_redrivable()))
}

fn filter(args: &RedriveArgs) -> Result<Filter> {
    let chosen = !args.code.is_empty()
        || !args.id.is_empty()
        || args.since.is_some()
        || args.until.is_some();
    if args.all == chosen {
        let message = if chosen {
            "--all can't be combined with a filter"
        } else {
            "no dead letters are selected"
        };
        return Err(Error::new(ErrorKind::Config, message)
            .with_context("allowed", "--all, or any of --code, --id, --since and --until"));
    }
    let codes = ErrorKind::DEAD_LETTERS.map(ErrorKind::code);
    if let Some(unknown) = args.code.iter().find(|code| !codes.contains(&code.as_str())) {
        return Err(Error::new(ErrorKind::Config, format!("--code can't be '{unknown}'"))
            .with_context("allowed", codes.join(", ")));
    }
    Ok(Filter {
        codes: args.code.iter().cloned().collect(),
        ids: args.id.iter().cloned().collect(),
        since: time("--since", args.since.as_deref())?,
        until: time("--until", args.until.as_deref())?,
    })
}

fn time(flag: &'static str, text: Option<&str>) -> Result<Option<Timestamp>> {
    let read = |text: &str| {
        text.parse().map_err(|_| {
            Error::new(ErrorKind::Config, format!("{flag} can't be '{text}'"))
                .with_context("allowed", "an RFC 3339 time, such as 2026-11-23T12:00:00Z")
        })
    };
    text.map(read).transpose()
}

fn batch(text: &str) -> Result<usize> {
    match text.parse() {
        Ok(number @ 1..=10_000) => Ok(number),
        _ => Err(Error::new(ErrorKind::Config, format!("--batch can't be '{text}'"))
            .with_context("allowed", "an integer from 1 to 10000")),
    }
}
