//! What can go wrong between us and the kernel, one sentence each.

use std::io;

/// Why a request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// `EPERM` or `EACCES`.
    #[error(
        "failed to {tried}: the kernel refused it for want of CAP_NET_ADMIN; run as root or grant the capability"
    )]
    NotPermitted {
        /// The verb phrase of what was tried.
        tried: String,
    },
    /// The kernel has no WireGuard.
    #[error(
        "failed to create the WireGuard device {name}: this kernel has no WireGuard; load its module or use the userspace backend"
    )]
    NoWireguard {
        /// The device.
        name: String,
    },
    /// Another program holds the UDP port.
    #[error(
        "failed to listen on UDP port {port}: another program holds it; stop it or choose another listen port"
    )]
    PortInUse {
        /// The port.
        port: u16,
    },
    /// The name of the device is taken by something else.
    #[error(
        "failed to take over {name}: it is a {kind} device and not one of ours; choose another interface name or remove it"
    )]
    ForeignDevice {
        /// The device.
        name: String,
        /// What it is.
        kind: String,
    },
    /// Anything else.
    #[error("failed to {tried}: {answer}")]
    Refused {
        /// The verb phrase of what was tried.
        tried: String,
        /// What came back.
        answer: String,
    },
}

impl HostError {
    /// Names the request that a system call or an answer of the kernel refused.
    pub(crate) fn from_io(tried: impl Into<String>, error: &io::Error) -> Self {
        let tried = tried.into();
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { tried },
            Some(_) | None => Self::Refused {
                tried,
                answer: error.to_string(),
            },
        }
    }

    /// Names the request that rtnetlink refused.
    pub(crate) fn from_rtnetlink(tried: impl Into<String>, error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => Self::from_io(tried, &message.to_io()),
            other => Self::Refused {
                tried: tried.into(),
                answer: other.to_string(),
            },
        }
    }
}
