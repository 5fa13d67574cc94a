//! `farspan key`: like `wg genkey` and `wg pubkey`, and the rotation.

use std::io::{IsTerminal as _, Read as _};

use anyhow::{Result, anyhow, bail};
use mesh_types::WgSecret;
use zeroize::Zeroizing;

use super::{agent, print};
use crate::agent::state::{random, read_key};
use crate::api;
use crate::cli::{AgentArgs, Global};
use crate::config::{Config, sentence};

pub fn generate() -> Result<()> {
    let key = WgSecret::from_bytes(*Zeroizing::new(random()?));
    // A clamped key prints as other tools print it.
    print(&format!("{}\n", *key.to_base64()))
}

pub fn public(global: &Global) -> Result<()> {
    let mut text = Zeroizing::new(String::new());
    if !std::io::stdin().is_terminal() {
        std::io::stdin()
            .take(4096)
            .read_to_string(&mut text)
            .map_err(|error| anyhow!("cannot read standard input: {}", sentence(&error)))?;
    }
    let key = if text.trim().is_empty() {
        let config = Config::load(global, &AgentArgs::default())?;
        let path = config.private_key_file;
        match read_key(&path, WgSecret::from_base64)? {
            Some(key) => key,
            None => bail!(
                "this node has no key yet ({} does not exist); it is made by `farspan up`, or give one: farspan key gen | farspan key public",
                path.display()
            ),
        }
    } else {
        WgSecret::from_base64(&text).map_err(|error| {
            anyhow!("standard input is {error}; make one with `farspan key gen`")
        })?
    };
    print(&format!("{}\n", key.public()))
}

pub fn rotate(global: &Global, force: bool) -> Result<()> {
    let answer: api::Done = agent(global)?.post("/rotate", &api::Rotate { force })?;
    print(&format!("{}\n", answer.message))
}
