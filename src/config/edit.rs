//! Changes to `farspan.toml` that keep its comments and its order.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use mesh_types::{AuthorityKey, IpNet, WgKey};
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, value};

use super::ConfigError;
use crate::agent::state::write_atomic;

/// A file under change. Nothing is written before [`Edit::save`].
#[derive(Debug)]
pub struct Edit {
    path: PathBuf,
    document: DocumentMut,
    existed: bool,
}

/// A peer to write.
#[derive(Debug, Default)]
pub struct NewPeer {
    /// Its label.
    pub name: String,
    /// Its key.
    pub key: Option<WgKey>,
    /// `allowed-ips`.
    pub allowed_ips: Vec<String>,
    /// `endpoints`.
    pub endpoints: Vec<String>,
    /// `plain`.
    pub plain: bool,
    /// `preshared-key-file`.
    pub preshared_key_file: Option<PathBuf>,
    /// `persistent-keepalive`, seconds.
    pub persistent_keepalive: Option<u16>,
}

impl Edit {
    /// Opens a file, or begins a new one.
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        let existed = path.exists();
        let text = if existed {
            super::read(path)?
        } else {
            String::new()
        };
        let document = text.parse::<DocumentMut>().map_err(|error| {
            let before = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..before]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
                + 1;
            ConfigError(format!(
                "{}, line {line}: {}",
                path.display(),
                error.message()
            ))
        })?;
        Ok(Self {
            path: path.to_path_buf(),
            document,
            existed,
        })
    }

    /// The text as it would be written.
    pub fn text(&self) -> String {
        self.document.to_string()
    }

    /// Sets a string of a section.
    pub fn set(&mut self, section: &str, key: &str, text: &str) -> Result<()> {
        self.section(section)?.insert(key, value(text));
        Ok(())
    }

    /// Sets `[node] routes`.
    pub fn set_routes(&mut self, routes: &[IpNet]) -> Result<()> {
        let routes = routes.iter().map(ToString::to_string);
        self.section("node")?
            .insert("routes", value(Array::from_iter(routes)));
        Ok(())
    }

    /// Adds an authority, or makes it the only one.
    pub fn set_authority(&mut self, authority: &AuthorityKey, only: Only) -> Result<()> {
        let mesh = self.section("mesh")?;
        let text = authority.to_string();
        let list = mesh
            .entry("authorities")
            .or_insert_with(|| value(Array::new()))
            .as_array_mut()
            .context("Failed to change `authorities`: it is not a list")?;
        if only == Only::This {
            list.clear();
        }
        if !list.iter().any(|item| item.as_str() == Some(text.as_str())) {
            list.push(text);
        }
        Ok(())
    }

    /// Appends a `[[peer]]` entry.
    pub fn add_peer(&mut self, peer: &NewPeer) -> Result<()> {
        let mut table = Table::new();
        table.insert("name", value(&peer.name));
        if let Some(key) = &peer.key {
            table.insert("public-key", value(key.to_string()));
        }
        if !peer.endpoints.is_empty() {
            table.insert("endpoints", value(Array::from_iter(&peer.endpoints)));
        }
        table.insert("allowed-ips", value(Array::from_iter(&peer.allowed_ips)));
        if peer.plain {
            table.insert("plain", value(true));
        }
        if let Some(file) = &peer.preshared_key_file {
            table.insert("preshared-key-file", value(file.display().to_string()));
        }
        if let Some(seconds) = peer.persistent_keepalive {
            table.insert("persistent-keepalive", value(i64::from(seconds)));
        }
        self.peers()?.push(table);
        Ok(())
    }

    /// Removes the `[[peer]]` entry of this name or key; tells whether there was one.
    pub fn remove_peer(&mut self, name_or_key: &str) -> Result<bool> {
        let peers = self.peers()?;
        let is =
            |table: &Table, key: &str| table.get(key).and_then(Item::as_str) == Some(name_or_key);
        let at = peers
            .iter()
            .position(|table| is(table, "name") || is(table, "public-key"));
        if let Some(at) = at {
            peers.remove(at);
        }
        Ok(at.is_some())
    }

    /// Sets the key of the `[[peer]]` entry of this name.
    pub fn set_peer_key(&mut self, name: &str, key: &WgKey) -> Result<()> {
        for table in self.peers()?.iter_mut() {
            if table.get("name").and_then(Item::as_str) == Some(name) {
                table.insert("public-key", value(key.to_string()));
            }
        }
        Ok(())
    }

    /// Writes the file whole or not at all, with the mode it had.
    pub fn save(&self) -> Result<()> {
        if let Some(folder) = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::create_dir_all(folder)
                .with_context(|| format!("Failed to make {}", folder.display()))?;
        }
        let mode = if self.existed {
            fs::metadata(&self.path).map_or(0o644, |found| found.permissions().mode() & 0o777)
        } else {
            0o644
        };
        // A file that is a link stays one: its target is replaced.
        let target = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        write_atomic(&target, self.text().as_bytes(), mode)
            .with_context(|| format!("Failed to write {}", self.path.display()))
    }

    fn section(&mut self, name: &str) -> Result<&mut Table> {
        let item = self
            .document
            .entry(name)
            .or_insert_with(|| Item::Table(Table::new()));
        match item.as_table_mut() {
            Some(table) => Ok(table),
            None => bail!("Failed to change [{name}]: write it as a section, not inline"),
        }
    }

    fn peers(&mut self) -> Result<&mut ArrayOfTables> {
        let item = self
            .document
            .entry("peer")
            .or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
        match item.as_array_of_tables_mut() {
            Some(peers) => Ok(peers),
            None => {
                bail!("Failed to change the peers: write them as [[peer]] sections, not inline")
            }
        }
    }
}

/// Which authorities stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Only {
    /// This one only.
    This,
    /// Others too.
    Beside,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_keeps_comments_and_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("farspan.toml");
        let before = "# mine\n[node]\nname = \"a\" # label\n\n[[peer]] # first\nname = \"b\"\npublic-key = \"x\"\nallowed-ips = []\n";
        fs::write(&path, before).unwrap();
        let mut edit = Edit::open(&path).unwrap();
        edit.add_peer(&NewPeer {
            name: "c".into(),
            key: Some(WgKey([1; 32])),
            allowed_ips: vec!["10.77.0.2/32".into()],
            ..NewPeer::default()
        })
        .unwrap();
        edit.save().unwrap();
        let after = fs::read_to_string(&path).unwrap();
        assert!(after.starts_with(before), "{after}");
        let mut edit = Edit::open(&path).unwrap();
        assert!(edit.remove_peer("c").unwrap());
        assert!(!edit.remove_peer("c").unwrap());
        assert_eq!(edit.text().trim_end(), before.trim_end());
    }

    #[test]
    fn an_authority_is_listed_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut edit = Edit::open(&folder.path().join("new.toml")).unwrap();
        let key = AuthorityKey([3; 32]);
        edit.set_authority(&key, Only::Beside).unwrap();
        edit.set_authority(&key, Only::Beside).unwrap();
        assert_eq!(edit.text().matches(&key.to_string()).count(), 1);
    }
}
