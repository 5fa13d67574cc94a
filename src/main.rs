//! `farspan`: the node agent and its command line. See `cli.rs` for the verbs and `agent.rs` for the loop.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser as _, error::ErrorKind};

mod agent;
mod api;
mod cli;
mod config;
mod ctl;
mod kube;

/// Wrong usage or configuration.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match ctl::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("farspan: {}", config::one_line(&format!("{error:#}")));
            if error.is::<config::ConfigError>() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Help is printed whole; a wrong flag is one sentence.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "clap's kinds of errors are an open set"
)]
fn refuse(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            _ = error.print();
            ExitCode::from(USAGE)
        }
        _ => {
            eprintln!(
                "farspan: {}",
                cli::usage_sentence(&error.to_string(), std::env::args_os().skip(1))
            );
            ExitCode::from(USAGE)
        }
    }
}
