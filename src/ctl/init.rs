//! `farspan init`: a new mesh, with this machine as its first member and keeper of its authority key.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow, bail};
use mesh_types::address::overlay_ipv6;
use mesh_types::{DomainId, IdentitySecret, IpNet, Membership, NodeKey, Signed, State};
use zeroize::Zeroizing;

use crate::agent::state::{Store, random, read_key, write_key};
use crate::cli::{AgentArgs, Global, InitArgs, first_address};
use crate::config::edit::{Edit, Only};
use crate::config::{self, Config, ConfigError, value};

pub fn run(global: &Global, args: &InitArgs) -> Result<()> {
    let file = config::file_to_write(global);
    let config = Config::load_or_new(global, &AgentArgs::default())?;
    let (name, routes) = check(args, &config)?;
    let store = Store::open(&config.state_dir, &config.private_key_file)?;
    let (state, unusable) = store.state();
    if let Some(sentence) = unusable {
        eprintln!("farspan: {sentence}");
    }
    if !args.force && (state.authority.is_some() || !config.authorities.is_empty()) {
        bail!(
            "this node is in a mesh already ({}); leave it with `farspan init --force`, or let others in with `farspan invite`",
            config.state_dir.display()
        );
    }
    let authority_file = args
        .authority_key
        .clone()
        .unwrap_or_else(|| config.state_dir.join("authority.key"));
    let kept = read_key(&authority_file, IdentitySecret::from_base64)?;
    if kept.is_some() && !args.force && args.authority_key.is_none() {
        bail!(
            "{} exists already; move it away, or make a new mesh with `farspan init --force`",
            authority_file.display()
        );
    }
    let replaced = kept.is_some() && args.authority_key.is_none();
    let authority = match kept {
        // A key that was named is used; one that lies in the way belongs to the mesh that is left.
        Some(key) if args.authority_key.is_some() => key,
        Some(_) | None => IdentitySecret::from_bytes(&Zeroizing::new(random()?)),
    };

    let mut edit = Edit::open(&file)?;
    edit.set_authority(&authority.authority(), Only::This)?;
    if args.authority_key.is_some() {
        let path = std::path::absolute(&authority_file)?;
        edit.set("mesh", "authority-key-file", &path.display().to_string())?;
    }
    if args.name.is_some() {
        edit.set("node", "name", &name)?;
    }
    if !args.routes.is_empty() {
        edit.set_routes(&routes)?;
    }

    let identity = store.identity()?;
    store.private_key()?;
    let node = NodeKey {
        domain: DomainId::standalone(Some(&authority.authority())),
        identity: identity.identity(),
    };
    let state = found(args, &authority, node, name, routes, &state)?;
    if replaced {
        let aside = put_aside(&authority_file)?;
        println!(
            "The authority key of the old mesh is kept as {}.",
            aside.display()
        );
    }
    // The authority first: a state that names an authority nobody holds would be useless.
    write_key(&authority_file, &authority.to_base64())?;
    store.save(&state)?;
    edit.save()?;
    report(&authority_file, &file, args, node);
    Ok(())
}

fn check(args: &InitArgs, config: &Config) -> Result<(String, Vec<IpNet>), ConfigError> {
    let fail = |what: &str, why: String| ConfigError(format!("{what}: {why}"));
    let name = match &args.name {
        Some(name) => value::name(name).map_err(|why| fail("--name", why))?,
        None => config.name.clone(),
    };
    if args.range.prefix_len() > 30 || args.range.prefix_len() < 8 {
        return Err(fail(
            "--range",
            format!(
                "{} must hold every machine of the mesh; give a prefix from /8 to /30",
                args.range
            ),
        ));
    }
    value::range(&args.range.to_string()).map_err(|why| fail("--range", why))?;
    let routes = if args.routes.is_empty() {
        config.routes.clone()
    } else {
        args.routes
            .iter()
            .map(|route| value::range(&route.to_string()).map_err(|why| fail("--routes", why)))
            .collect::<Result<_, _>>()?
    };
    Ok((name, routes))
}

/// The state of the first member: its own membership, signed.
fn found(
    args: &InitArgs,
    authority: &IdentitySecret,
    node: NodeKey,
    name: String,
    routes: Vec<IpNet>,
    old: &State,
) -> Result<State> {
    let now = wall_clock()?;
    let range = args.range.trunc();
    let ipv4 = first_address(range).ok_or_else(|| anyhow!("{range} holds no address"))?;
    let membership = Membership {
        domain: node.domain,
        identity: node.identity,
        name,
        ipv4: Some(ipv4),
        ranges: routes,
        may_relay: true,
        serial: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        not_after: args.lifetime.map(|lifetime| (now + lifetime).as_secs()),
    };
    Ok(State {
        // Sequence, epoch and port belong to the node, not to a mesh.
        seq: old.seq,
        epoch: old.epoch,
        listen_port: old.listen_port,
        memberships: vec![Signed::sign(membership, authority)],
        range: vec![range.into()],
        authority: Some(authority.authority()),
        lifetime: args.lifetime.map(|lifetime| lifetime.as_secs()),
        ..State::default()
    })
}

/// A second name for the key that is about to be replaced: at no moment is there none.
fn put_aside(file: &Path) -> Result<PathBuf> {
    let name = |number: u64| {
        let mut name = file.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    let aside = (wall_clock()?.as_secs()..)
        .map(name)
        .find(|path| path.symlink_metadata().is_err())
        .ok_or_else(|| anyhow!("no name is free beside {}", file.display()))?;
    std::fs::hard_link(file, &aside)
        .or_else(|_| std::fs::copy(file, &aside).map(drop))
        .map_err(|error| {
            anyhow!(
                "cannot keep the old authority key as {}: {}",
                aside.display(),
                config::sentence(&error)
            )
        })?;
    Ok(aside)
}

fn wall_clock() -> Result<Duration> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a verb stamps what it signs; no state machine runs here"
    )]
    let now = SystemTime::now();
    now.duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| anyhow!("the clock stands before 1970; set it and try again"))
}

fn report(authority_file: &Path, file: &Path, args: &InitArgs, node: NodeKey) {
    let ipv4 = first_address(args.range.trunc())
        .map(|ip| format!("{ip} and "))
        .unwrap_or_default();
    println!(
        "This node is the first of a new mesh: {ipv4}{}.",
        overlay_ipv6(&node)
    );
    println!("Configuration: {}", file.display());
    println!(
        "Back up {}: whoever has it decides who is in the mesh, and without it nobody can be let in.",
        authority_file.display()
    );
    println!("Next: farspan up, then farspan invite for each other machine.");
}
