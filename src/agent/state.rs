//! The state folder: keys, the state file and the lock that keeps a second agent out.
//!
//! ```text
//! identity.key   who the node is, for ever        private.key   its WireGuard key
//! authority.key  after `init`                     next.key      while a rotation is under way
//! state          versioned, checksummed           lock          held by the running agent
//! ```
//! Files are replaced whole: written beside, flushed, renamed, folder flushed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use mesh_types::{IdentitySecret, State, WgSecret};
use nix::fcntl::{Flock, FlockArg};
use zeroize::Zeroizing;

use crate::config::sentence;

/// A key file is one line of base64.
const KEY_FILE_MAX: u64 = 4096;
/// 5,000 members and their records fit in a few MiB.
const STATE_FILE_MAX: u64 = 64 << 20;

/// How often, and how far apart, the lock is tried: half a second in all.
const LOCK_TRIES: usize = 25;
const LOCK_AGAIN: std::time::Duration = std::time::Duration::from_millis(20);

/// The state folder of one agent, locked while this lives.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    private_key_file: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    /// Makes or checks the folder and takes its lock.
    pub fn open(folder: &Path, private_key_file: &Path) -> Result<Self> {
        check_folder(folder)?;
        let path = folder.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| anyhow!("cannot open {}: {}", path.display(), sentence(&error)))?;
        let mut lock = take(file).map_err(|mut file| {
            let mut holder = String::new();
            _ = (&mut file).take(32).read_to_string(&mut holder);
            let holder = match holder.trim().parse::<u32>() {
                Ok(pid) => format!("process {pid}"),
                Err(_) => "another process".to_owned(),
            };
            anyhow!(
                "{} is in use by {holder}: an agent runs on it already; stop it with `farspan down`, or give another --state-dir",
                folder.display()
            )
        })?;
        // The process id is for the sentence above only; a full disk must not matter.
        _ = lock
            .set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        Ok(Self {
            folder: folder.to_path_buf(),
            private_key_file: private_key_file.to_path_buf(),
            _lock: lock,
        })
    }

    /// Who the node is; made on first use.
    pub fn identity(&self) -> Result<IdentitySecret> {
        read_or_make(
            &self.folder.join("identity.key"),
            IdentitySecret::from_base64,
            IdentitySecret::to_base64,
            |bytes| IdentitySecret::from_bytes(&bytes),
        )
    }

    /// The WireGuard key; made on first use.
    pub fn private_key(&self) -> Result<WgSecret> {
        read_or_make(
            &self.private_key_file,
            WgSecret::from_base64,
            WgSecret::to_base64,
            WgSecret::from_bytes,
        )
    }

    /// The key a rotation was about to change to.
    pub fn next_key(&self) -> Result<Option<WgSecret>> {
        read_key(&self.folder.join("next.key"), WgSecret::from_base64)
    }

    /// Makes the next key the one in use. Until that is on disk it stays on disk as the next one.
    pub fn adopt_next_key(&self, key: &WgSecret) -> Result<()> {
        let next = self.folder.join("next.key");
        let kept = self.next_key().ok().flatten();
        // A rename needs no room on the disk; across file systems there is none.
        if kept.as_ref() == Some(key) && fs::rename(&next, &self.private_key_file).is_ok() {
            let folder = self.private_key_file.parent();
            _ = folder.map(File::open).map(|folder| folder?.sync_all());
            return Ok(());
        }
        write_key(&self.private_key_file, &key.to_base64())?;
        self.set_next_key(None)
    }

    /// Keeps the next key, or forgets it.
    pub fn set_next_key(&self, key: Option<&WgSecret>) -> Result<()> {
        let path = self.folder.join("next.key");
        match key {
            Some(key) => write_key(&path, &key.to_base64()),
            None => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("Failed to remove {}", path.display()))
                }
                Ok(()) | Err(_) => Ok(()),
            },
        }
    }

    /// The state, and a sentence where it could not be used. A file that is damaged, foreign or open to
    /// others is moved aside, never believed and never deleted.
    pub fn state(&self) -> (State, Option<String>) {
        let path = self.folder.join("state");
        let why = match read_state(&path) {
            Ok(state) => return (state.unwrap_or_default(), None),
            Err(why) => why,
        };
        let aside = self.folder.join("state.unusable");
        let moved = match fs::rename(&path, &aside) {
            Ok(()) => format!("moved to {}", aside.display()),
            Err(error) => format!("and cannot be moved aside: {}", sentence(&error)),
        };
        let sentence = format!(
            "{} is not used ({why}), {moved}; this node learns its peers anew",
            path.display()
        );
        (State::default(), Some(sentence))
    }

    /// Replaces the state durably.
    pub fn save(&self, state: &State) -> Result<()> {
        let path = self.folder.join("state");
        write_atomic(&path, &state.encode(), 0o600)
            .map_err(|error| anyhow!("cannot write {}: {error:#}", path.display()))
    }
}

/// Reads a key file; `None` where there is none.
pub fn read_key<T, E: std::fmt::Display>(
    path: &Path,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<T>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => bail!("cannot read {}: {}", path.display(), sentence(&error)),
    };
    let mut text = Zeroizing::new(String::new());
    (&mut file)
        .take(KEY_FILE_MAX)
        .read_to_string(&mut text)
        .map_err(|error| anyhow!("cannot read {}: {}", path.display(), sentence(&error)))?;
    match parse(&text) {
        Ok(key) => Ok(Some(key)),
        Err(error) => bail!(
            "cannot use {}: {error}; restore it from a backup, or move it away to begin anew",
            path.display()
        ),
    }
}

/// The state as far as it can be read, without lock or change: for `--dry-run`.
pub fn peek(folder: &Path) -> State {
    read_state(&folder.join("state"))
        .ok()
        .flatten()
        .unwrap_or_default()
}

/// Writes a key file, mode 0600.
pub fn write_key(path: &Path, base64: &str) -> Result<()> {
    let line = Zeroizing::new(format!("{base64}\n"));
    write_atomic(path, line.as_bytes(), 0o600)
        .map_err(|error| anyhow!("cannot write {}: {error:#}", path.display()))
}

/// 32 bytes from the operating system.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow!("cannot read random numbers from the kernel: {error}"))?;
    Ok(bytes)
}

/// Replaces a file whole or not at all: written beside it, flushed, renamed, its folder flushed.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    let name = path.file_name().context("the path names no file")?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    let temporary = folder.join(temporary);
    let written = (|| {
        _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    })();
    written.map_err(|error: io::Error| {
        _ = fs::remove_file(&temporary);
        anyhow!("{}", sentence(&error))
    })
}

/// Takes the lock, waiting a little for an agent that was killed and is still on its way out.
fn take(mut file: File) -> Result<Flock<File>, File> {
    for _ in 0..LOCK_TRIES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, _)) => file = back,
        }
        std::thread::sleep(LOCK_AGAIN);
    }
    Err(file)
}

fn check_folder(folder: &Path) -> Result<()> {
    if !folder.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| anyhow!("cannot make {}: {}", folder.display(), sentence(&error)))?;
    }
    let found = fs::metadata(folder)
        .map_err(|error| anyhow!("cannot read {}: {}", folder.display(), sentence(&error)))?;
    if !found.is_dir() {
        bail!(
            "{} is not a folder; give another --state-dir",
            folder.display()
        );
    }
    let me = nix::unistd::geteuid().as_raw();
    if found.uid() != me {
        bail!(
            "{} belongs to user {}, who could replace this node's keys; run: chown -R {me} {}",
            folder.display(),
            found.uid(),
            folder.display()
        );
    }
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(|error| {
            anyhow!(
                "cannot close {} to others: {}",
                folder.display(),
                sentence(&error)
            )
        })?;
    }
    Ok(())
}

fn read_or_make<T, E: std::fmt::Display>(
    path: &Path,
    parse: impl Fn(&str) -> Result<T, E>,
    print: impl Fn(&T) -> Zeroizing<String>,
    make: impl Fn([u8; 32]) -> T,
) -> Result<T> {
    if let Some(key) = read_key(path, parse)? {
        return Ok(key);
    }
    let key = make(*Zeroizing::new(random()?));
    write_key(path, &print(&key))?;
    Ok(key)
}

fn read_state(path: &Path) -> Result<Option<State>, String> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(sentence(&error)),
    };
    let found = file.metadata().map_err(|error| sentence(&error))?;
    if found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(format!("it belongs to user {}", found.uid()));
    }
    if found.mode() & 0o022 != 0 {
        return Err(format!(
            "others may write it, mode {:03o}",
            found.mode() & 0o777
        ));
    }
    if found.len() > STATE_FILE_MAX {
        return Err("it is larger than 64 MiB".to_owned());
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)
        .map_err(|error| sentence(&error))?;
    State::decode(&bytes)
        .map(Some)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(folder: &Path) -> Store {
        Store::open(folder, &folder.join("private.key")).unwrap()
    }

    #[test]
    fn keys_are_made_once_and_closed_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("deep/state");
        let (identity, key) = {
            let store = store(&folder);
            (store.identity().unwrap(), store.private_key().unwrap())
        };
        let store = store(&folder);
        assert_eq!(store.identity().unwrap().identity(), identity.identity());
        assert_eq!(store.private_key().unwrap(), key);
        for name in ["identity.key", "private.key"] {
            assert_eq!(
                fs::metadata(folder.join(name)).unwrap().mode() & 0o777,
                0o600
            );
        }
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_second_agent_on_one_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _first = store(folder.path());
        let error = Store::open(folder.path(), &folder.path().join("private.key")).unwrap_err();
        assert!(
            error.to_string().contains("an agent runs on it already"),
            "{error}"
        );
    }

    #[test]
    fn the_state_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        assert_eq!(store.state(), (State::default(), None));
        let state = State {
            seq: 7,
            ..State::default()
        };
        store.save(&state).unwrap();
        assert_eq!(store.state(), (state, None));
    }

    #[test]
    fn a_damaged_or_open_state_file_is_moved_aside_and_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let path = folder.path().join("state");
        let good = State {
            seq: 7,
            ..State::default()
        };
        store.save(&good).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let (state, why) = store.state();
        assert_eq!(state, State::default());
        assert!(why.unwrap().contains("others may write it"));
        assert!(!path.exists());
        for damage in [&b""[..], b"x", &good.encode()[..40]] {
            fs::write(&path, damage).unwrap();
            let (state, why) = store.state();
            assert_eq!(state, State::default());
            assert!(why.is_some());
            assert!(folder.path().join("state.unusable").exists());
        }
    }

    #[test]
    fn a_key_file_with_something_else_in_it_is_refused_without_showing_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("identity.key"), "hunter2").unwrap();
        let error = store(folder.path()).identity().unwrap_err().to_string();
        assert!(
            error.contains("identity.key") && !error.contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn a_key_that_cannot_be_written_stays_on_disk_as_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = folder.path().join("keys");
        let store = Store::open(folder.path(), &elsewhere.join("private.key")).unwrap();
        let key = WgSecret::from_bytes([7; 32]);
        store.set_next_key(Some(&key)).unwrap();
        assert!(store.adopt_next_key(&key).is_err());
        assert_eq!(store.next_key().unwrap().as_ref(), Some(&key));
        fs::create_dir(&elsewhere).unwrap();
        store.adopt_next_key(&key).unwrap();
        assert_eq!(store.private_key().unwrap(), key);
        assert_eq!(store.next_key().unwrap(), None);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing/file");
        assert!(write_atomic(&path, b"x", 0o600).is_err());
        let path = folder.path().join("file");
        write_atomic(&path, b"old", 0o600).unwrap();
        fs::create_dir(folder.path().join(".file.tmp")).unwrap();
        assert!(write_atomic(&path, b"new", 0o600).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}
