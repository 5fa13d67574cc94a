//! System calls that no safe crate wraps.

#![expect(
    unsafe_code,
    reason = "adjtimex, path MTUs and iptables' socket options have no safe wrapper"
)]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `STA_UNSYNC` of `adjtimex`(2).
const UNSYNCHRONISED: libc::c_int = 0x40;
/// `TIME_ERROR` of `adjtimex`(2).
const TIME_ERROR: libc::c_int = 5;

/// Does the kernel say that its clock is kept by a time source? Reading needs no privilege.
pub(crate) fn clock_synchronised() -> bool {
    // SAFETY: `timex` is plain old data of integers, for which all zero bits are valid.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live, exclusively borrowed `timex`; modes is 0, so nothing is set.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    state >= 0 && state != TIME_ERROR && timex.status & UNSYNCHRONISED == 0
}

/// The largest packet that the kernel sends whole to where a socket is connected to.
pub(crate) fn path_mtu(socket: &UdpSocket, ipv6: bool) -> io::Result<u32> {
    let (level, option) = if ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU)
    };
    let mut mtu = [0; 4];
    get_option(socket, level, option, &mut mtu).ok_or_else(io::Error::last_os_error)?;
    Ok(u32::from_ne_bytes(mtu))
}

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;
/// The table's name, in every such request.
const NAME: usize = 32;
/// `struct ipt_getinfo`: name, valid hooks, five offsets of hooks, five of their last rules, count, size.
const INFO: usize = NAME + 4 + 5 * 4 + 5 * 4 + 4 + 4;
const INFO_UNDERFLOW: usize = NAME + 4 + 5 * 4;
const INFO_SIZE: usize = INFO - 4;
/// `struct ipt_get_entries`: name, size, and the entries on the next multiple of 8.
const ENTRIES: usize = NAME + 8;
/// `NF_INET_FORWARD`.
const FORWARD: usize = 2;
/// `struct xt_entry_target`, before the verdict of a standard target.
const TARGET: usize = 32;
/// `-NF_DROP - 1`, the verdict "drop" of a standard target.
const DROP: i32 = -1;

/// Does the FORWARD chain of the old iptables (not those over nftables) drop by default? Asks the kernel only about a
/// table that exists: asking about another one would make it.
pub(crate) fn legacy_forward_drops(ipv6: bool) -> Option<bool> {
    // `struct ipt_entry` begins with what it matches, of the family's size, and a u32; then comes the target's offset.
    let (family, level, target_offset) = if ipv6 {
        (AddressFamily::Inet6, libc::IPPROTO_IPV6, 140)
    } else {
        (AddressFamily::Inet, libc::IPPROTO_IP, 88)
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()?;
    let mut info = vec![0; INFO];
    info[..6].copy_from_slice(b"filter");
    get_option(&socket, level, GET_INFO, &mut info)?;
    let underflow = number(&info, INFO_UNDERFLOW + 4 * FORWARD)? as usize;
    let size = number(&info, INFO_SIZE)?;
    let mut entries = vec![0; ENTRIES + size as usize];
    entries[..6].copy_from_slice(b"filter");
    entries[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
    get_option(&socket, level, GET_ENTRIES, &mut entries)?;
    let entry = entries.get(ENTRIES + underflow..)?;
    let target = entry.get(target_offset..target_offset + 2)?;
    let target = usize::from(u16::from_ne_bytes(target.try_into().ok()?));
    Some(number(entry, target + TARGET)?.cast_signed() == DROP)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn get_option(
    socket: &impl AsRawFd,
    level: libc::c_int,
    option: libc::c_int,
    buffer: &mut [u8],
) -> Option<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).ok()?;
    // SAFETY: the buffer is live, exclusively borrowed and of the length given; the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(())
}
