//! How fast two nodes reach each other, measured with real agents. Prints the tables of docs/reach.md, each between
//! the markers that stand there; `scripts/reach` puts them in.
//!
//! The matrix: each trial starts both nodes of a pair anew from their state on disk, their NATs have forgotten them,
//! and the first has long been up when the second starts; times count from there. In half of the trials it is the
//! first of the pair that starts first, in the other half the second.
#![expect(clippy::disallowed_methods, reason = "measures real time")]

#[expect(dead_code, reason = "the cells serve tests too")]
#[path = "../netns/cell.rs"]
mod cell;
mod failover;
#[expect(dead_code, reason = "the lab serves many tests")]
#[path = "../lab/lab.rs"]
mod lab;
#[expect(dead_code, reason = "the scenes serve many tests")]
#[path = "../netns/scene.rs"]
mod scene;
mod variants;

use std::collections::BTreeMap;
use std::time::Duration;

use cell::{Class, Pair, Trial, Way};

/// What carries the tunnels of this program's agents.
const BACKEND: &str = "userspace";
/// A direct path that came later than this counts as none.
const LATE: Duration = Duration::from_secs(10);
/// Trials end here at the latest: a second round of a search between two blocks is over then.
const LATEST: Duration = Duration::from_secs(45);

/// What was measured of a cell.
struct Cell {
    pair: (Class, Class),
    trials: Vec<Trial>,
    /// Of what was sent directly, how much crossed the relay's link, in percent; `None` for relayed cells.
    relayed: Option<f64>,
    /// How long a relayed pair was watched, its longest silence, and how often a path changed meanwhile.
    watched: Option<(Duration, Duration, usize)>,
}

fn main() {
    let number = |name: &str, default: usize| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let trials = number("FARSPAN_REACH_TRIALS", 20).max(1);
    let hold = Duration::from_secs(number("FARSPAN_REACH_HOLD", 60) as u64);
    // Names of cells such as ADF-SEQ, or `variants`, or `failover`; everything where it is empty.
    let only = std::env::var("FARSPAN_REACH_ONLY").unwrap_or_default();
    let wanted = |name: &str| only.is_empty() || only.split(',').any(|one| one == name);

    let mut cells = BTreeMap::new();
    for (a, b) in Class::pairs() {
        if wanted(&format!("{a}-{b}")) {
            let cell = measure(a, b, trials, hold);
            eprintln!("{}", cell.row());
            cells.insert((a, b), cell);
        }
    }
    section("grid", || grid(&cells));
    section("cells", || {
        println!(
            "| | | | trials | direct within 10 s | first packet: median | p95 | direct: median | p95 | afterwards |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|");
        for cell in cells.values() {
            println!("{}", cell.row());
        }
    });
    if wanted("variants") {
        section("variants", || variants::print(trials));
    }
    if wanted("failover") {
        section("failover", || failover::print(trials));
    }
}

fn section(name: &str, print: impl FnOnce()) {
    println!("<!-- {name} -->");
    print();
    println!("<!-- end of {name} -->");
}

fn measure(a: Class, b: Class, trials: usize, hold: Duration) -> Cell {
    let way = a.way(b);
    let mut cell = Cell {
        pair: (a, b),
        trials: Vec::new(),
        relayed: None,
        watched: None,
    };
    for (first, second, count) in [(a, b, trials.div_ceil(2)), (b, a, trials / 2)] {
        if count == 0 {
            continue;
        }
        let mut pair = Pair::new(first, second);
        for _ in 0..count {
            let trial = pair.trial(LATEST, Some(way));
            eprintln!("{first} {second}: {trial:?}");
            cell.trials.push(trial);
        }
        match way {
            Way::Direct if cell.trials.last().is_some_and(|one| one.direct.is_some()) => {
                let (sent, crossed) = pair.weigh();
                let share = crossed as f64 * 100.0 / sent as f64;
                cell.relayed = Some(cell.relayed.unwrap_or_default().max(share));
            }
            Way::Direct => {}
            Way::Relay if cell.watched.is_none() => {
                let (silence, changes) = pair.watch(hold);
                for change in &changes {
                    eprintln!("{first} {second}: {change}");
                }
                cell.watched = Some((hold, silence, changes.len()));
            }
            Way::Relay => {}
        }
    }
    cell
}

impl Cell {
    /// The time that `share` of all trials needed at most; `None` where so many did not get there.
    fn at(&self, share: f64, time: fn(&Trial) -> Option<Duration>) -> Option<Duration> {
        let mut times: Vec<Option<Duration>> = self.trials.iter().map(time).collect();
        times.sort_by_key(|time| time.unwrap_or(Duration::MAX));
        let index = ((times.len() - 1) as f64 * share).round() as usize;
        times[index]
    }

    fn first(&self, share: f64) -> String {
        seconds(self.at(share, |trial| trial.first))
    }

    fn direct(&self, share: f64) -> String {
        seconds(self.at(share, |trial| trial.direct))
    }

    fn row(&self) -> String {
        let (a, b) = self.pair;
        let all = self.trials.len();
        let soon = |trial: &&Trial| trial.direct.is_some_and(|time| time <= LATE);
        let met = self.trials.iter().filter(soon).count();
        let (letter, met, median, p95) = match a.way(b) {
            Way::Direct => ("D", met.to_string(), self.direct(0.5), self.direct(0.95)),
            Way::Relay => ("R", String::new(), String::new(), String::new()),
        };
        let afterwards = match (self.relayed, self.watched) {
            (Some(share), _) => format!("{share:.1} % of its traffic on the relay's link"),
            (None, Some((time, silence, changes))) => format!(
                "{} s watched: {changes} changes of path, longest silence {} ms",
                time.as_secs(),
                silence.as_millis()
            ),
            (None, None) => String::new(),
        };
        format!(
            "| {a} | {b} | {letter} | {all} | {met} | {} | {} | {median} | {p95} | {afterwards} |",
            self.first(0.5),
            self.first(0.95)
        )
    }
}

/// The matrix at a glance: medians.
fn grid(cells: &BTreeMap<(Class, Class), Cell>) {
    let names: Vec<String> = Class::ALL.iter().map(Class::to_string).collect();
    println!("| | {} |", names.join(" | "));
    println!("|---{}|", "|---".repeat(names.len()));
    for a in Class::ALL {
        let row = Class::ALL.map(|b| match cells.get(&(a, b)) {
            Some(cell) if a.way(b) == Way::Direct => format!("D {}", cell.direct(0.5)),
            Some(cell) => format!("R {}", cell.first(0.5)),
            None => String::new(),
        });
        println!("| {a} | {} |", row.join(" | "));
    }
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or("none".to_owned(), |time| {
        format!("{:.2} s", time.as_secs_f64())
    })
}
