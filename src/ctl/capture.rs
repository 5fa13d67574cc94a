//! `farspan capture`: packets of one peer as pcap, inside the tunnel or outside of it. The kernel picks them by
//! a classic packet filter, so that a busy host does not copy what nobody asked for.

mod filter;

use std::fs::{File, Permissions};
use std::io::{BufWriter, ErrorKind, IsTerminal as _, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use mesh_types::IpNet;
use nix::errno::Errno;
use nix::sys::socket::{LinkAddr, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};

use super::client::Client;
use super::{agent, status};
use crate::agent::clock;
use crate::api;
use crate::cli::{CaptureArgs, Global};
use crate::config::{ConfigError, sentence};
use filter::{Instruction, inner, outer};

/// Beyond a segment that the kernel has not cut yet.
const PACKET_MAX: usize = 256 << 10;
/// How often a silent socket lets go: output is flushed, and limits are looked at.
const GLANCE: Duration = Duration::from_millis(100);
/// How often the peer's addresses are asked for anew.
const REFRESH: Duration = Duration::from_secs(1);
/// What waits for a slow reader, bytes.
const BACKLOG: usize = 8 << 20;
/// LINKTYPE_RAW: packets begin with their IP header.
const LINKTYPE_RAW: u32 = 101;
/// ETH_P_ALL as the system call wants it, in network byte order.
const ALL: i32 = (nix::libc::ETH_P_ALL as u16).to_be() as i32;

pub fn run(global: &Global, args: &CaptureArgs) -> Result<()> {
    let agent = agent(global)?;
    let mut filter = ask(&agent, args)?;
    let mut out = open(args.write.as_deref())?;
    let socket = listen(&filter)?;
    let over = ended_by_signal()?;
    let start = clock::instant();
    let mut refreshed = start;
    let mut packet = vec![0; PACKET_MAX];
    let (mut packets, mut bytes) = (0_u64, HEADER as u64);
    let result = (|| {
        out.write_all(&header())?;
        while packets < args.count && bytes < args.size && !over.load(Ordering::Relaxed) {
            let now = clock::instant();
            if now.duration_since(start) >= args.time {
                break;
            }
            if args.outer && now.duration_since(refreshed) >= REFRESH {
                refreshed = now;
                // An agent that restarts has no news; the filter stays.
                if let Ok(new) = ask(&agent, args)
                    && new != filter
                {
                    attach(&socket, &new)?;
                    filter = new;
                }
            }
            match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut packet) {
                Ok((length, from)) => {
                    let packet = &packet[..length.min(PACKET_MAX)];
                    if from.is_some_and(|from| is_ours(from.pkttype())) {
                        write_record(&mut out, packet, clock::wall())?;
                        packets += 1;
                        bytes += (RECORD + packet.len()) as u64;
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => out.flush()?,
                // The device went down; it may come back.
                Err(Errno::ENETDOWN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        out.flush()
    })();
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            return Err(anyhow!("the capture ended: {}", sentence(&error)));
        }
        Ok(()) | Err(_) => {}
    }
    eprintln!("farspan: {packets} packets, {}", status::size(bytes));
    Ok(())
}

/// What the kernel shall pick.
fn ask(agent: &Client, args: &CaptureArgs) -> Result<Vec<Instruction>> {
    let body = api::Doctor {
        peer: args.peer.clone(),
    };
    let api::Diagnosis { peer, tried, .. } = agent.post("/doctor", &body)?;
    if args.outer {
        let path = peer.path.iter().map(|path| path.remote.as_str());
        let tried = tried
            .iter()
            .map(|tried| tried.server.as_ref().unwrap_or(&tried.address).as_str());
        let mut remotes: Vec<SocketAddr> = path
            .chain(tried)
            .filter_map(|text| text.parse().ok())
            .collect();
        remotes.sort();
        remotes.dedup();
        if remotes.is_empty() {
            return Err(anyhow!(
                "no outer address of {} is known; see `farspan doctor {0}`",
                peer.name
            ));
        }
        return Ok(outer(&remotes));
    }
    let status: api::Status = agent.get("/status")?;
    let interface = status.node.interface;
    let index = nix::net::if_::if_nametoindex(interface.as_str())
        .map_err(|error| anyhow!("cannot find the device {interface}: {error}"))?;
    let nets: Vec<IpNet> = peer
        .allowed_ips
        .iter()
        .filter_map(|net| net.parse().ok())
        .collect();
    Ok(inner(index, &nets))
}

fn listen(filter: &[Instruction]) -> Result<Socket> {
    let denied = |error: std::io::Error| {
        if error.kind() == ErrorKind::PermissionDenied {
            anyhow!("`farspan capture` needs root or CAP_NET_RAW; use sudo")
        } else {
            anyhow!("cannot open a packet socket: {}", sentence(&error))
        }
    };
    let socket =
        Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(ALL))).map_err(denied)?;
    attach(&socket, filter).map_err(denied)?;
    socket.set_nonblocking(true).map_err(denied)?;
    // What came in before the filter was there.
    let mut scrap = [0];
    while recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut scrap).is_ok() {}
    socket.set_nonblocking(false).map_err(denied)?;
    socket.set_read_timeout(Some(GLANCE)).map_err(denied)?;
    _ = socket.set_recv_buffer_size(BACKLOG);
    Ok(socket)
}

fn attach(socket: &Socket, filter: &[Instruction]) -> std::io::Result<()> {
    let program: Vec<_> = filter
        .iter()
        .map(|one| socket2::SockFilter::new(one.code, one.jt, one.jf, one.k))
        .collect();
    socket.attach_filter(&program)
}

/// From or to this host; not what a neighbour's port shows.
fn is_ours(kind: u8) -> bool {
    matches!(
        kind,
        nix::libc::PACKET_HOST
            | nix::libc::PACKET_OUTGOING
            | nix::libc::PACKET_BROADCAST
            | nix::libc::PACKET_MULTICAST
    )
}

fn open(path: Option<&Path>) -> Result<BufWriter<Box<dyn Write>>> {
    let out: Box<dyn Write> = match path {
        Some(path) if path != Path::new("-") => {
            Box::new(closed_to_others(path).map_err(|error| {
                anyhow!("cannot write {}: {}", path.display(), sentence(&error))
            })?)
        }
        Some(_) | None => {
            if std::io::stdout().is_terminal() {
                return Err(ConfigError(
                    "packets are not for a terminal: pipe them (`| tcpdump -nr -`) or write them to a file with -w"
                        .into(),
                )
                .into());
            }
            Box::new(std::io::stdout())
        }
    };
    Ok(BufWriter::new(out))
}

/// Opens a file anew. One that others could read can be read by its owner only from now on; a link is not followed.
fn closed_to_others(path: &Path) -> std::io::Result<File> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)?;
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Set by Ctrl-C, so that what was captured is written to its end.
fn ended_by_signal() -> Result<Arc<AtomicBool>> {
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("Failed to watch for signals")?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let Ok(mut terminated) = signal(SignalKind::terminate()) else {
                return;
            };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated.recv() => {}
            }
            told.store(true, Ordering::Relaxed);
        });
    });
    Ok(over)
}

const HEADER: usize = 24;
const RECORD: usize = 16;

/// The file's header: pcap 2.4 in this machine's byte order, microseconds.
fn header() -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..4].copy_from_slice(&0xa1b2_c3d4_u32.to_ne_bytes());
    out[4..6].copy_from_slice(&2_u16.to_ne_bytes());
    out[6..8].copy_from_slice(&4_u16.to_ne_bytes());
    out[16..20].copy_from_slice(&(PACKET_MAX as u32).to_ne_bytes());
    out[20..].copy_from_slice(&LINKTYPE_RAW.to_ne_bytes());
    out
}

fn write_record(out: &mut impl Write, packet: &[u8], at: Duration) -> std::io::Result<()> {
    let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    let mut head = [0; RECORD];
    // Seconds of pcap end in 2106.
    let seconds = u32::try_from(at.as_secs()).unwrap_or(u32::MAX);
    head[..4].copy_from_slice(&seconds.to_ne_bytes());
    head[4..8].copy_from_slice(&at.subsec_micros().to_ne_bytes());
    head[8..12].copy_from_slice(&length.to_ne_bytes());
    head[12..].copy_from_slice(&length.to_ne_bytes());
    out.write_all(&head)?;
    out.write_all(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_captured_is_closed_to_others_and_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("a.pcap"), folder.path().join("link"));
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let about = closed_to_others(&path).unwrap().metadata().unwrap();
        assert_eq!(
            (about.permissions().mode() & 0o777, about.len()),
            (0o600, 0)
        );
        std::os::unix::fs::symlink(&path, &link).unwrap();
        closed_to_others(&link).unwrap_err();
    }

    #[test]
    fn the_file_is_pcap_of_raw_packets() {
        let mut file = header().to_vec();
        write_record(&mut file, b"packet", Duration::from_micros(1_500_000)).unwrap();
        let word = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(16), word(20)), (0xa1b2_c3d4, 262_144, 101));
        assert_eq!((word(24), word(28), word(32), word(36)), (1, 500_000, 6, 6));
        assert_eq!(&file[40..], b"packet");
    }
}
