//! The TUN device, with a `vnet_hdr` before every packet where the kernel knows it.
//!
//! Made by hand rather than by a crate: the ones there are cut and merge on their own, by copying, into buffers
//! of their own shape.
#![expect(unsafe_code, reason = "a TUN device is made by ioctl")]

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use socket2::{Domain, Socket, Type};

use crate::engine::Offload;
use crate::segment::VnetHeader;

const IFF_TUN: libc::c_short = 0x0001;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;
/// Never attach to a device that somebody else made.
const IFF_TUN_EXCL: libc::c_short = i16::MIN;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;

const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO: libc::c_ulong = 0x02 | 0x04;
const TUN_F_USO: libc::c_ulong = 0x20 | 0x40;

/// An open TUN device; it disappears when dropped.
#[derive(Debug)]
pub(crate) struct Tun {
    file: File,
    /// Each packet is preceded by a `vnet_hdr`.
    header: bool,
    /// TCP super-packets may be written.
    pub tcp: bool,
    /// UDP super-packets may be written.
    pub udp: bool,
}

impl Tun {
    /// Makes the device, down and without addresses.
    pub fn create(name: &str, mtu: u16, offload: Offload) -> io::Result<Self> {
        let (file, header) = negotiate(offload.tun_header, |header| open(name, header))?;
        set_mtu(name, mtu)?;
        let mut tun = Self {
            file,
            header,
            tcp: header && offload.tun_tcp,
            udp: header && offload.tun_udp,
        };
        if header {
            tun.set_offload();
        }
        Ok(tun)
    }

    /// Asks for the offloads; what the kernel does not know (USO before Linux 6.2, or any) is done without.
    fn set_offload(&mut self) {
        let asked = |tcp: bool, udp: bool| {
            let tso = if tcp { TUN_F_TSO } else { 0 };
            let uso = if udp { TUN_F_USO } else { 0 };
            if tso | uso == 0 {
                0
            } else {
                TUN_F_CSUM | tso | uso
            }
        };
        for (tcp, udp) in [(self.tcp, self.udp), (self.tcp, false), (false, false)] {
            // SAFETY: the descriptor is open, and the argument is a number, not a pointer.
            let result = check(unsafe {
                libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, asked(tcp, udp))
            });
            if result.is_ok() {
                (self.tcp, self.udp) = (tcp, udp);
                return;
            }
        }
        // As a device is that was never asked.
        (self.tcp, self.udp) = (false, false);
    }

    /// Reads one packet or super-packet behind its `vnet_hdr`, which is empty where the kernel has none.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.header {
            return (&self.file).read(buffer);
        }
        let (header, packet) = buffer.split_at_mut(VnetHeader::LEN);
        header.fill(0);
        Ok((&self.file).read(packet)? + VnetHeader::LEN)
    }

    /// Writes one packet or super-packet; the first part is its `vnet_hdr`.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let parts = if self.header { parts } else { &parts[1..] };
        (&self.file).write_vectored(parts)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens with the header if it may be, else without where the kernel knows none, as those of some sandboxes. Says
/// which.
fn negotiate<T>(
    header: bool,
    mut open: impl FnMut(bool) -> io::Result<T>,
) -> io::Result<(T, bool)> {
    match open(header) {
        Err(error)
            if header
                && matches!(
                    error.raw_os_error(),
                    Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS)
                ) =>
        {
            Ok((open(false)?, false))
        }
        result => Ok((result?, header)),
    }
}

/// Makes the device.
fn open(name: &str, header: bool) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let mut request = request(name)?;
    let vnet = if header { IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL | vnet;
    // SAFETY: the descriptor is open, and the kernel reads and writes one ifreq, which is what this is.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    Ok(file)
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data, for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || !name.is_ascii() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "an interface name has 1 to 15 ASCII characters",
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = libc::c_int::from(mtu);
    // SAFETY: the descriptor is open, and the kernel reads one ifreq, which is what this is.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &raw const request) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens where headers are refused with one error, and all else with another.
    fn opened(header: bool, with: Option<i32>, without: Option<i32>) -> (Result<bool, i32>, usize) {
        let mut tries = 0;
        let result = negotiate(header, |header| {
            tries += 1;
            let refusal = if header { with } else { without };
            refusal.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
        });
        let result = result.map(|((), header)| header);
        (result.map_err(|error| error.raw_os_error().unwrap()), tries)
    }

    #[test]
    fn a_kernel_that_knows_no_header_is_asked_again_without() {
        for errno in [libc::EINVAL, libc::EOPNOTSUPP, libc::ENOSYS] {
            assert_eq!(opened(true, Some(errno), None), (Ok(false), 2));
        }
        assert_eq!(opened(true, None, None), (Ok(true), 1));
        assert_eq!(opened(false, None, None), (Ok(false), 1));
    }

    #[test]
    fn what_has_nothing_to_do_with_the_header_is_an_error_at_once() {
        let busy = (Err(libc::EBUSY), 1);
        assert_eq!(opened(true, Some(libc::EBUSY), None), busy);
        let both = opened(true, Some(libc::EINVAL), Some(libc::EPERM));
        assert_eq!(both, (Err(libc::EPERM), 2));
    }
}
