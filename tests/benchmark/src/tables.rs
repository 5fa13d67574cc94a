//! The tables of a run in Markdown, each between the markers that stand in docs/performance.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::record::{Cell, Contender, FOREIGN_MAX, Outcome, Pace, Run, Sample, Variant, by_round};
use crate::statistics::{Spread, ratios};

/// Flags that cryptography or copying is known to use.
const FLAGS: [&str; 9] = [
    "aes",
    "sha_ni",
    "bmi2",
    "adx",
    "avx2",
    "vaes",
    "vpclmulqdq",
    "avx512f",
    "avx512ifma",
];

/// A figure of a sample.
#[derive(Clone, Copy)]
struct Measure {
    name: &'static str,
    cell: Cell,
    value: fn(&Sample) -> Option<f64>,
    /// Places after the point.
    places: usize,
    compared: bool,
}

const fn measure(name: &'static str, cell: Cell, value: fn(&Sample) -> Option<f64>) -> Measure {
    Measure {
        name,
        cell,
        value,
        places: 2,
        compared: true,
    }
}

const fn whole(measure: Measure) -> Measure {
    Measure {
        places: 0,
        ..measure
    }
}

/// What no ratio is taken of: the best is 0, or it is no merit.
const fn alone(measure: Measure) -> Measure {
    Measure {
        compared: false,
        ..measure
    }
}

const SMALL: Cell = Cell::Udp { payload: 64 };
const LARGE: Cell = Cell::Udp { payload: 1332 };
const LOSSLESS: Cell = Cell::Lossless { payload: 64 };
const IDLE: Cell = Cell::Rtt(Pace::BackToBack);
const GAPS: Cell = Cell::Rtt(Pace::Gaps);
const LOADED: Cell = Cell::Rtt(Pace::Loaded);

/// The rows of all tables.
const MEASURES: [Measure; 23] = [
    measure("TCP, 1 stream, Gbit/s", Cell::tcp(1, false), gigabits),
    measure("TCP, 1 stream back, Gbit/s", Cell::tcp(1, true), gigabits),
    measure("TCP, 4 streams, Gbit/s", Cell::tcp(4, false), gigabits),
    measure("TCP, 4 streams back, Gbit/s", Cell::tcp(4, true), gigabits),
    measure(
        "both daemons, 1 stream, CPU s/GB",
        Cell::tcp(1, false),
        per_gigabyte,
    ),
    measure(
        "both daemons, 4 streams, CPU s/GB",
        Cell::tcp(4, false),
        per_gigabyte,
    ),
    measure(
        "the whole machine, 1 stream, CPU s/GB",
        Cell::tcp(1, false),
        machine_per_gigabyte,
    ),
    measure(
        "the whole machine, 4 streams, CPU s/GB",
        Cell::tcp(4, false),
        machine_per_gigabyte,
    ),
    whole(measure("UDP, 64 bytes, k packets/s", SMALL, kilopackets)),
    alone(whole(measure("its loss, %", SMALL, loss))),
    measure("both daemons, CPU us a packet", SMALL, per_packet),
    whole(measure("UDP, 1332 bytes, k packets/s", LARGE, kilopackets)),
    alone(whole(measure("its loss, %", LARGE, loss))),
    measure("both daemons, CPU us a packet", LARGE, per_packet),
    whole(measure(
        "UDP, 64 bytes, none lost, k packets/s",
        LOSSLESS,
        kilopackets,
    )),
    whole(measure("round trip, back to back, p50, us", IDLE, median)),
    whole(measure("p99, us", IDLE, late)),
    whole(measure("round trip, 1 ms gaps, p50, us", GAPS, median)),
    whole(measure("p99, us", GAPS, late)),
    whole(measure(
        "round trip under own TCP load, p50, us",
        LOADED,
        median,
    )),
    whole(measure("p99, us", LOADED, late)),
    alone(whole(measure("lost under load, %", LOADED, lost))),
    alone(measure("that load, Gbit/s", LOADED, load)),
];

fn gigabits(sample: &Sample) -> Option<f64> {
    match sample.outcome {
        Outcome::Tcp {
            bits_per_second, ..
        } => Some(bits_per_second / 1e9),
        Outcome::Udp { .. } | Outcome::Lossless { .. } | Outcome::Rtt { .. } => None,
    }
}

fn per_gigabyte(sample: &Sample) -> Option<f64> {
    per_received(sample, both(sample))
}

fn machine_per_gigabyte(sample: &Sample) -> Option<f64> {
    per_received(sample, sample.machine)
}

/// Of a TCP stream. A contender without daemons uses none, and old files do not know the machine's.
fn per_received(sample: &Sample, used: f64) -> Option<f64> {
    match sample.outcome {
        Outcome::Tcp { bytes, .. } if bytes > 0.0 && used > 0.0 => Some(used / (bytes / 1e9)),
        Outcome::Tcp { .. }
        | Outcome::Udp { .. }
        | Outcome::Lossless { .. }
        | Outcome::Rtt { .. } => None,
    }
}

fn kilopackets(sample: &Sample) -> Option<f64> {
    match sample.outcome {
        Outcome::Udp {
            delivered, seconds, ..
        } if seconds > 0.0 => Some(delivered as f64 / seconds / 1e3),
        Outcome::Lossless { packets_per_second } => Some(packets_per_second / 1e3),
        Outcome::Udp { .. } | Outcome::Tcp { .. } | Outcome::Rtt { .. } => None,
    }
}

fn loss(sample: &Sample) -> Option<f64> {
    match sample.outcome {
        Outcome::Udp {
            sent, delivered, ..
        } if sent > 0 => Some(100.0 * (1.0 - delivered as f64 / sent as f64)),
        Outcome::Udp { .. }
        | Outcome::Lossless { .. }
        | Outcome::Tcp { .. }
        | Outcome::Rtt { .. } => None,
    }
}

fn per_packet(sample: &Sample) -> Option<f64> {
    match sample.outcome {
        Outcome::Udp { delivered, .. } if delivered > 0 => {
            Some(both(sample) * 1e6 / delivered as f64)
        }
        Outcome::Udp { .. }
        | Outcome::Lossless { .. }
        | Outcome::Tcp { .. }
        | Outcome::Rtt { .. } => None,
    }
}

fn median(sample: &Sample) -> Option<f64> {
    match sample.outcome {
        Outcome::Rtt { p50, .. } => Some(p50),
        Outcome::Udp { .. } | Outcome::Lossless { .. } | Outcome::Tcp { .. } => None,
    }
}

fn late(sample: &Sample) -> Option<f64> {
    match sample.outcome {
        Outcome::Rtt { p99, .. } => Some(p99),
        Outcome::Udp { .. } | Outcome::Lossless { .. } | Outcome::Tcp { .. } => None,
    }
}

fn lost(sample: &Sample) -> Option<f64> {
    match sample.outcome {
        Outcome::Rtt { answered, lost, .. } => {
            Some(100.0 * lost as f64 / (answered + lost).max(1) as f64)
        }
        Outcome::Udp { .. } | Outcome::Lossless { .. } | Outcome::Tcp { .. } => None,
    }
}

fn load(sample: &Sample) -> Option<f64> {
    match sample.outcome {
        Outcome::Rtt {
            load_bits_per_second,
            ..
        } => Some(load_bits_per_second? / 1e9),
        Outcome::Udp { .. } | Outcome::Lossless { .. } | Outcome::Tcp { .. } => None,
    }
}

fn both(sample: &Sample) -> f64 {
    sample.daemons.iter().sum()
}

/// The first figure of a sample, for who watches; `!` where the machine was not ours.
pub fn brief(sample: &Sample) -> String {
    let measure = MEASURES.iter().find(|it| it.cell == sample.cell);
    let figure = measure.and_then(|it| Some(format!("{:.*}", it.places, (it.value)(sample)?)));
    let mark = if sample.quiet() { "" } else { "!" };
    format!("{} {}{mark}", sample.contender, figure.unwrap_or_default())
}

/// All tables of a run.
pub fn all(run: &Run, samples: &[Sample]) -> String {
    let variants: BTreeSet<_> = samples.iter().map(|sample| sample.variant).collect();
    // Offloads on comes first, then IPv4.
    let mut variants: Vec<_> = variants.into_iter().collect();
    variants.sort_by_key(|variant| (!variant.offloads, variant.family));
    let each = |table: fn(&Run, &[Sample], Variant) -> String| -> String {
        let tables = variants.iter().map(|variant| table(run, samples, *variant));
        tables.collect::<Vec<_>>().join("\n")
    };
    [
        section("run", &about(run, samples)),
        section("ratios", &each(ratio_table)),
        section("figures", &each(figure_table)),
    ]
    .join("\n")
}

fn section(name: &str, text: &str) -> String {
    format!("<!-- {name} -->\n{text}<!-- end of {name} -->\n")
}

fn about(run: &Run, samples: &[Sample]) -> String {
    let quiet = samples.iter().filter(|sample| sample.quiet()).count();
    let worst = samples
        .iter()
        .map(|sample| sample.foreign)
        .fold(0.0, f64::max);
    let used: Vec<_> = FLAGS
        .iter()
        .filter(|flag| run.flags.iter().any(|known| known == *flag))
        .collect();
    let used: Vec<_> = used.into_iter().copied().collect();
    let lacking = if run.flags.iter().any(|flag| flag == "avx512f") {
        ""
    } else {
        "; no AVX-512"
    };
    let mut text = format!(
        "Measured {}: {} rounds, {} s a TCP stream, MTU {}. {} cores of {} ({}{lacking}), Linux {}.\n\n",
        run.date,
        run.rounds,
        run.seconds,
        run.mtu,
        run.cores,
        run.processor,
        used.join(", "),
        run.linux,
    );
    for Contender { name, version } in &run.contenders {
        let version = version
            .as_deref()
            .unwrap_or("could not be had, so it is missing");
        let _ = writeln!(text, "- {name}: {version}");
    }
    let _ = writeln!(text, "- beside them: {}", run.tools.join(", "));
    let _ = writeln!(
        text,
        "\nIn {} of {} samples other programs or other virtual machines had more than {:.0} % of the processors ({:.0} % at \
         worst): these do not count, but where there is nothing else, marked *.",
        samples.len() - quiet,
        samples.len(),
        100.0 * FOREIGN_MAX,
        100.0 * worst,
    );
    text
}

/// A contender's values in a variant by round, and whether they are of disturbed samples for want of others.
fn values(
    samples: &[Sample],
    contender: &str,
    variant: Variant,
    measure: &Measure,
) -> (BTreeMap<u32, f64>, bool) {
    let of = |sample: &Sample| {
        sample.contender == contender && sample.variant == variant && sample.cell == measure.cell
    };
    let quiet = by_round(samples, |it| of(it) && it.quiet(), measure.value);
    if quiet.is_empty() {
        let any = by_round(samples, of, measure.value);
        let disturbed = !any.is_empty();
        (any, disturbed)
    } else {
        (quiet, false)
    }
}

/// What stands where nothing was measured.
const NOTHING: &str = "-";

fn cell(values: &[f64], places: usize, disturbed: bool) -> String {
    let mark = if disturbed { " *" } else { "" };
    match Spread::of(values) {
        Some(Spread { median, min, max }) if values.len() > 1 => {
            format!("{median:.places$} ({min:.places$}..{max:.places$}){mark}")
        }
        Some(Spread { median, .. }) => format!("{median:.places$}{mark}"),
        None => NOTHING.to_owned(),
    }
}

/// A row of which there is nothing to say is left out.
fn table<'a>(
    title: &str,
    columns: impl Iterator<Item = &'a str>,
    rows: impl Iterator<Item = (&'static str, Vec<String>)>,
) -> String {
    let columns: Vec<_> = columns.collect();
    let mut text = format!("### {title}\n\n| | {} |\n|---|", columns.join(" | "));
    text.push_str(&"---|".repeat(columns.len()));
    text.push('\n');
    for (name, cells) in rows.filter(|(_, cells)| cells.iter().any(|cell| cell != NOTHING)) {
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    }
    text
}

fn ratio_table(run: &Run, samples: &[Sample], variant: Variant) -> String {
    let Some((ours, rivals)) = run.contenders.split_first() else {
        return String::new();
    };
    let row = |measure: &Measure| {
        let (own, disturbed) = values(samples, &ours.name, variant, measure);
        let ratio = |rival: &Contender| {
            let (other, worse) = values(samples, &rival.name, variant, measure);
            let ratios = ratios(&own, |round| other.get(&round).copied());
            cell(&ratios, 2, disturbed || worse)
        };
        (measure.name, rivals.iter().map(ratio).collect())
    };
    let rows = MEASURES.iter().filter(|measure| measure.compared).map(row);
    let columns = rivals.iter().map(|rival| rival.name.as_str());
    table(&variant.to_string(), columns, rows)
}

fn figure_table(run: &Run, samples: &[Sample], variant: Variant) -> String {
    let row = |measure: &Measure| {
        let figure = |contender: &Contender| {
            let (values, disturbed) = values(samples, &contender.name, variant, measure);
            let values: Vec<_> = values.into_values().collect();
            cell(&values, measure.places, disturbed)
        };
        (measure.name, run.contenders.iter().map(figure).collect())
    };
    let columns = run
        .contenders
        .iter()
        .map(|contender| contender.name.as_str());
    table(&variant.to_string(), columns, MEASURES.iter().map(row))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::record;

    #[test]
    fn the_tables_of_a_stored_run_are_those_beside_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        let (run, samples) = record::read(&folder.join("rounds.jsonl")).unwrap();
        let expected = std::fs::read_to_string(folder.join("tables.md")).unwrap();
        assert_eq!(all(&run, &samples), expected);
    }
}
