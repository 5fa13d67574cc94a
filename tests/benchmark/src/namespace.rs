//! Network namespaces that scripts/bench has made. A socket stays in the namespace in which it was opened, a process
//! in the one in which it was started.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

/// One node of a pair.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
    inode: u64,
}

impl Namespace {
    /// A namespace that `ip netns add` has made.
    pub fn open(name: &str) -> Result<Self> {
        let path = format!("/run/netns/{name}");
        let file = File::open(&path).with_context(|| {
            format!("Failed to open {path}; start the benchmark by scripts/bench")
        })?;
        let inode = file.metadata()?.ino();
        Ok(Self {
            name: name.to_owned(),
            file,
            inode,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does something on a thread that has entered it.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let entered = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("Failed to enter {}; run it as root", self.name))?;
            work()
        };
        thread::scope(|scope| scope.spawn(entered).join())
            .map_err(|_| anyhow!("A thread in {} panicked", self.name))?
    }

    /// The processes whose first thread is in it.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let folders = fs::read_dir("/proc").context("Failed to list /proc")?;
        let numbers = folders
            .flatten()
            .filter_map(|folder| folder.file_name().to_str()?.parse().ok());
        let inside = |pid: &i32| {
            let place = fs::metadata(format!("/proc/{pid}/ns/net"));
            place.is_ok_and(|place| place.ino() == self.inode)
        };
        Ok(numbers.filter(inside).collect())
    }
}
