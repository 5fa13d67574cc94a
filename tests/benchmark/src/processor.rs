//! Who uses the processors, as /proc tells.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// Flag of kernel threads in /proc/PID/stat (`PF_KTHREAD`).
const KERNEL_THREAD: u64 = 0x0020_0000;

/// What a process has used since its start, ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Usage {
    parent: i32,
    kernel: bool,
    own: u64,
    /// Of children that ended.
    children: u64,
}

impl Usage {
    /// Reads /proc/PID/stat (proc_pid_stat(5)). The second field is a name in parentheses, with anything inside.
    fn parse(stat: &str) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<_> = rest.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            kernel: number(9)? & KERNEL_THREAD != 0,
            own: number(14)? + number(15)?,
            children: number(16)? + number(17)?,
        })
    }
}

/// All processes at one moment, and what the hypervisor kept from us.
#[derive(Debug, Clone)]
pub struct Snapshot {
    processes: BTreeMap<i32, Usage>,
    stolen: u64,
    /// What all of the machine's processors were not idle.
    busy: u64,
}

impl Snapshot {
    /// Reads /proc.
    pub fn take() -> Result<Self> {
        let folders = fs::read_dir("/proc").context("Failed to list /proc")?;
        let numbers = folders
            .flatten()
            .filter_map(|folder| folder.file_name().to_str()?.parse().ok());
        let processes = numbers
            .filter_map(|pid: i32| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
                Some((pid, Usage::parse(&stat)?))
            })
            .collect();
        let stat = fs::read_to_string("/proc/stat").context("Failed to read /proc/stat")?;
        let stolen = stolen(&stat).context("Failed to find the stolen time in /proc/stat")?;
        let busy = busy(&stat).context("Failed to find the time in use in /proc/stat")?;
        Ok(Self {
            processes,
            stolen,
            busy,
        })
    }

    /// Seconds of processor that everything on this machine used until `later`, the kernel included.
    pub fn busy(&self, later: &Self) -> f64 {
        seconds(later.busy.saturating_sub(self.busy))
    }

    /// Seconds of processor that a process used until `later`.
    pub fn used(&self, later: &Self, pid: i32) -> f64 {
        let own = |snapshot: &Self| snapshot.processes.get(&pid).map_or(0, |usage| usage.own);
        seconds(own(later).saturating_sub(own(self)))
    }

    /// Share of this machine's processors that programs other than `ours` and their children had until `later`, and
    /// what the hypervisor gave to others. Threads of the kernel are nobody's.
    pub fn foreign(&self, later: &Self, ours: &BTreeSet<i32>, elapsed: Duration) -> f64 {
        let ticks = later
            .foreign_ticks(ours)
            .saturating_sub(self.foreign_ticks(ours));
        let stolen = later.stolen.saturating_sub(self.stolen);
        seconds(ticks + stolen) / (elapsed.as_secs_f64() * cores() as f64)
    }

    /// With what ended children used: a compiler that comes and goes counts through who started it.
    fn foreign_ticks(&self, ours: &BTreeSet<i32>) -> u64 {
        let foreign = self
            .processes
            .iter()
            .filter(|(pid, usage)| !usage.kernel && !self.descends(**pid, ours));
        foreign.map(|(_, usage)| usage.own + usage.children).sum()
    }

    fn descends(&self, pid: i32, ours: &BTreeSet<i32>) -> bool {
        let parent = |pid: &i32| self.processes.get(pid).map(|usage| usage.parent);
        std::iter::successors(Some(pid), parent)
            .take(self.processes.len() + 1)
            .any(|ancestor| ours.contains(&ancestor))
    }
}

/// Processors of this machine.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The eighth value of the first line of /proc/stat.
fn stolen(stat: &str) -> Option<u64> {
    stat.lines()
        .next()?
        .split_ascii_whitespace()
        .nth(8)?
        .parse()
        .ok()
}

/// User, nice, system, irq and softirq of the first line of /proc/stat (proc_stat(5)).
fn busy(stat: &str) -> Option<u64> {
    let fields: Vec<_> = stat.lines().next()?.split_ascii_whitespace().collect();
    let values = [1, 2, 3, 6, 7].map(|field| fields.get(field)?.parse::<u64>().ok());
    values.into_iter().sum()
}

fn seconds(ticks: u64) -> f64 {
    let rate = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    ticks as f64 / rate as f64
}

/// Model and flags of the first processor in /proc/cpuinfo.
pub fn model(cpuinfo: &str) -> (String, Vec<String>) {
    let value = |key: &str| {
        let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(name, _)| name.trim() == key);
        found.map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let flags = value("flags");
    let flags = flags.split_ascii_whitespace().map(str::to_owned).collect();
    (value("model name"), flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: i32, parent: i32, flags: u64, times: [u64; 4]) -> String {
        let [user, system, user_children, system_children] = times;
        format!(
            "{pid} (a (strange) name) S {parent} 1 1 0 -1 {flags} 9 9 9 9 {user} {system} {user_children} \
             {system_children} 20 0 1"
        )
    }

    fn snapshot(stolen: u64, processes: &[(i32, i32, u64, [u64; 4])]) -> Snapshot {
        let usage = |(pid, parent, flags, times): &(i32, i32, u64, [u64; 4])| {
            let text = stat(*pid, *parent, *flags, *times);
            (
                *pid,
                Usage::parse(&text).expect("a line of proc_pid_stat(5)"),
            )
        };
        let processes = processes.iter().map(usage).collect();
        Snapshot {
            processes,
            stolen,
            busy: 0,
        }
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let usage = Usage::parse(&stat(7, 3, KERNEL_THREAD, [10, 20, 3, 4]));
        let expected = Usage {
            parent: 3,
            kernel: true,
            own: 30,
            children: 7,
        };
        assert_eq!(usage, Some(expected));
        assert_eq!(Usage::parse("7 (short) S 3"), None);
    }

    #[test]
    fn foreign_is_what_neither_we_nor_our_children_nor_the_kernel_used() {
        // 10 is ours, 11 its child; 20 a build, 21 its compiler; 2 a thread of the kernel.
        let before = snapshot(
            5,
            &[
                (10, 1, 0, [0; 4]),
                (11, 10, 0, [0; 4]),
                (20, 1, 0, [1, 1, 0, 0]),
                (21, 20, 0, [10, 0, 0, 0]),
                (2, 0, KERNEL_THREAD, [0; 4]),
            ],
        );
        // Meanwhile the compiler has ended with 30 ticks, and the build has reaped it.
        let after = snapshot(
            15,
            &[
                (10, 1, 0, [100, 100, 50, 0]),
                (11, 10, 0, [100, 0, 0, 0]),
                (20, 1, 0, [1, 1, 30, 0]),
                (2, 0, KERNEL_THREAD, [100, 0, 0, 0]),
            ],
        );
        let share = before.foreign(&after, &BTreeSet::from([10]), Duration::from_secs(1));
        let expected = seconds(20 + 10) / cores() as f64;
        assert!((share - expected).abs() < 1e-9, "{share} {expected}");
        assert!((before.used(&after, 11) - seconds(100)).abs() < 1e-9);
    }

    #[test]
    fn the_processors_name_and_flags_are_read() {
        let text =
            "processor\t: 0\nmodel name\t: A CPU: fast\nflags\t\t: fpu avx2\n\nmodel name\t: B\n";
        let flags = vec!["fpu".to_owned(), "avx2".to_owned()];
        assert_eq!(model(text), ("A CPU: fast".to_owned(), flags));
        let stat = "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1\n";
        assert_eq!(stolen(stat), Some(8));
        assert_eq!(
            busy(stat),
            Some(1 + 2 + 3 + 6 + 7),
            "neither idle nor waiting"
        );
    }
}
