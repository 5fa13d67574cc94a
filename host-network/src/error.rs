//! What can go wrong between us and the kernel, one sentence each.

use std::io;

/// Why a request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// `EPERM` or `EACCES`.
    #[error(
        "failed to {tried}: the kernel refused it for want of {capability}; run as root or grant the capability"
    )]
    NotPermitted {
        /// The verb phrase of what was tried.
        tried: String,
        /// What is lacking.
        capability: &'static str,
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
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted {
                tried,
                capability: "CAP_NET_ADMIN",
            },
            Some(_) | None => Self::Refused {
                tried,
                answer: error.to_string(),
            },
        }
    }

    /// The same of a raw socket, which takes another capability.
    pub(crate) fn from_raw(tried: impl Into<String>, error: &io::Error) -> Self {
        match Self::from_io(tried, error) {
            Self::NotPermitted { tried, .. } => Self::NotPermitted {
                tried,
                capability: "CAP_NET_RAW",
            },
            other => other,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_named() {
        let denied = io::Error::from_raw_os_error(libc::EPERM);
        for (error, capability) in [
            (HostError::from_io("add a route", &denied), "CAP_NET_ADMIN"),
            (HostError::from_raw("send by it", &denied), "CAP_NET_RAW"),
        ] {
            let sentence = error.to_string();
            assert!(
                sentence.contains(&format!("for want of {capability};")),
                "{sentence}"
            );
        }
        let busy = io::Error::from_raw_os_error(libc::EBUSY);
        assert!(matches!(
            HostError::from_raw("x", &busy),
            HostError::Refused { .. }
        ));
    }
}
