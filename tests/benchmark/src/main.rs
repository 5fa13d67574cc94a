//! farspan and its rivals side by side. `scripts/bench` makes the tunnels and starts this.
//!
//! A round measures every cell in every variant, and in a cell all contenders, one right after the other, beginning
//! with another one each round. So what disturbs a machine for long falls on all, and ratios are taken inside a round.

mod echo;
mod flood;
mod lossless;
mod namespace;
mod pair;
mod processor;
mod record;
mod statistics;
mod tables;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::pair::Pair;
use crate::record::{Cell, Contender, Family, Run, Sample, Variant};

#[derive(Parser)]
#[command(about = "farspan and its rivals side by side; started by scripts/bench")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measures all rounds; prints what it gets to standard error, and the tables
    Run(Rounds),
    /// Prints the tables of a file of rounds
    Tables {
        /// What a run has stored
        file: PathBuf,
    },
}

#[derive(Parser)]
struct Rounds {
    /// What the namespaces' names begin with
    #[arg(long)]
    lab: String,
    /// NAME=VERSION of a contender, ours first; without a version it could not be had
    #[arg(long = "contender", required = true, value_parser = contender)]
    contenders: Vec<Contender>,
    /// Name of a contender that is the kernel's own, without daemons
    #[arg(long)]
    in_kernel: Vec<String>,
    /// Name and version of another tool that takes part
    #[arg(long = "tool")]
    tools: Vec<String>,
    /// Families to measure
    #[arg(long = "family", required = true)]
    families: Vec<Family>,
    /// Measures without the veth's offloads too
    #[arg(long)]
    plain_veth: bool,
    /// How often all is measured
    #[arg(long)]
    rounds: u32,
    /// How long a TCP stream runs
    #[arg(long)]
    seconds: u64,
    /// The tunnels' MTU
    #[arg(long)]
    mtu: u32,
    /// Today
    #[arg(long)]
    date: String,
    /// Where the rounds are stored
    #[arg(long)]
    out: PathBuf,
}

fn contender(text: &str) -> Result<Contender, String> {
    let (name, version) = text.split_once('=').unwrap_or((text, ""));
    let version = (!version.is_empty()).then(|| version.to_owned());
    let name = name.to_owned();
    Ok(Contender { name, version })
}

fn main() -> Result<()> {
    let file = match Arguments::parse().verb {
        Verb::Run(rounds) => {
            measure(&rounds)?;
            rounds.out
        }
        Verb::Tables { file } => file,
    };
    let (run, samples) = record::read(&file)?;
    print!("{}", tables::all(&run, &samples));
    Ok(())
}

fn measure(rounds: &Rounds) -> Result<()> {
    // Where the script is killed nothing goes on: scripts/clean finds what is in namespaces, this is not.
    set_pdeathsig(Signal::SIGTERM).context("Failed to ask for an end with the script's")?;
    let mut pairs = Vec::new();
    let present = || rounds.contenders.iter().filter(|it| it.version.is_some());
    for family in &rounds.families {
        for contender in present() {
            let in_kernel = rounds.in_kernel.contains(&contender.name);
            pairs.push(Pair::open(
                &rounds.lab,
                &contender.name,
                *family,
                in_kernel,
            )?);
        }
    }
    let daemons = pairs.iter().flat_map(Pair::daemons);
    let ours: BTreeSet<_> = daemons.chain([std::process::id().cast_signed()]).collect();
    let mut out = File::create(&rounds.out)
        .with_context(|| format!("Failed to create {}", rounds.out.display()))?;
    writeln!(out, "{}", record::run_line(&run(rounds)?)?)?;
    let offloads: &[bool] = if rounds.plain_veth {
        &[true, false]
    } else {
        &[true]
    };
    for round in 1..=rounds.rounds {
        for &offloads in offloads {
            for pair in &pairs {
                pair.set_offloads(offloads)?;
            }
            for &family in &rounds.families {
                let variant = Variant { family, offloads };
                let mut rivals: Vec<_> = pairs.iter().filter(|it| it.family == family).collect();
                let first = round as usize % rivals.len().max(1);
                rivals.rotate_left(first);
                for cell in Cell::ALL {
                    eprint!("round {round}, {variant}, {cell}:");
                    for pair in rivals.iter().filter(|pair| pair.takes_part_in(cell)) {
                        let measured = match pair.measure(cell, rounds.seconds, &ours) {
                            Ok(measured) => measured,
                            Err(error) => {
                                eprint!(" {} failed ({error:#})", pair.contender);
                                continue;
                            }
                        };
                        let sample = Sample {
                            round,
                            contender: pair.contender.clone(),
                            variant,
                            cell,
                            daemons: measured.daemons,
                            machine: measured.machine,
                            foreign: measured.foreign,
                            outcome: measured.outcome,
                        };
                        writeln!(out, "{}", record::sample_line(&sample)?)?;
                        eprint!(" {}", tables::brief(&sample));
                    }
                    eprintln!();
                }
            }
        }
    }
    Ok(())
}

fn run(rounds: &Rounds) -> Result<Run> {
    let read =
        |path: &str| fs::read_to_string(path).with_context(|| format!("Failed to read {path}"));
    let (processor, flags) = processor::model(&read("/proc/cpuinfo")?);
    Ok(Run {
        date: rounds.date.clone(),
        processor,
        flags,
        cores: processor::cores(),
        linux: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        rounds: rounds.rounds,
        seconds: rounds.seconds,
        mtu: rounds.mtu,
        contenders: rounds.contenders.clone(),
        tools: rounds.tools.clone(),
    })
}
