//! Classic BPF programs that pick a peer's packets. They see packets from the IP header on.
//!
//! Jumps are a byte, so every test is short and accepts by itself instead of jumping to the end.

use std::net::{IpAddr, SocketAddr};

use mesh_types::IpNet;

/// One step of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
/// Relative to the index register.
const LOAD_HALF_FROM: u16 = 0x48;
/// Index register = length of the IPv4 header.
const LOAD_HEADER_LENGTH: u16 = 0xb1;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Index of the interface (SKF_AD_OFF + SKF_AD_IFINDEX).
const INTERFACE: u32 = 0xffff_f008;
/// The whole packet.
const ACCEPT: u32 = 0x0004_0000;
/// What the kernel takes, instructions.
const PROGRAM_MAX: usize = 4096;

const TCP: u32 = 6;
const UDP: u32 = 17;

fn step(code: u16, k: u32) -> Instruction {
    test(code, k, 0, 0)
}

fn test(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// Packets on one device from or to any of these ranges. Where there are too many, all of the device.
pub fn inner(interface: u32, nets: &[IpNet]) -> Vec<Instruction> {
    let mut program = vec![
        step(LOAD_WORD, INTERFACE),
        test(JUMP_EQUAL, interface, 1, 0),
        step(RETURN, 0),
    ];
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for net in nets {
        match net {
            IpNet::V4(net) => {
                for offset in [12, 16] {
                    words(
                        &mut v4,
                        offset,
                        &net.network().octets(),
                        &net.netmask().octets(),
                    );
                }
            }
            IpNet::V6(net) => {
                for offset in [8, 24] {
                    words(
                        &mut v6,
                        offset,
                        &net.network().octets(),
                        &net.netmask().octets(),
                    );
                }
            }
        }
    }
    program.extend(of_version(4, v4));
    program.extend(of_version(6, v6));
    program.push(step(RETURN, 0));
    if program.len() > PROGRAM_MAX {
        program.truncate(3);
        program.push(step(RETURN, ACCEPT));
    }
    program
}

/// UDP and TCP from or to any of these addresses, on any device.
pub fn outer(remotes: &[SocketAddr]) -> Vec<Instruction> {
    let carried = |offset| {
        vec![
            step(LOAD_BYTE, offset),
            test(JUMP_EQUAL, UDP, 2, 0),
            test(JUMP_EQUAL, TCP, 1, 0),
            step(RETURN, 0),
        ]
    };
    let (mut v4, mut v6) = (carried(9), carried(6));
    v4.push(step(LOAD_HEADER_LENGTH, 0));
    for remote in remotes {
        let port = u32::from(remote.port());
        match remote.ip() {
            IpAddr::V4(ip) => {
                for (offset, at) in [(12, 0), (16, 2)] {
                    v4.extend([
                        step(LOAD_WORD, offset),
                        test(JUMP_EQUAL, u32::from(ip), 0, 3),
                        step(LOAD_HALF_FROM, at),
                        test(JUMP_EQUAL, port, 0, 1),
                        step(RETURN, ACCEPT),
                    ]);
                }
            }
            IpAddr::V6(ip) => {
                for (offset, at) in [(8, 40), (24, 42)] {
                    // The port first: the address accepts.
                    let mut address = Vec::new();
                    words(&mut address, offset, &ip.octets(), &[0xff; 16]);
                    v6.push(step(LOAD_HALF, at));
                    v6.push(test(JUMP_EQUAL, port, 0, short(address.len())));
                    v6.extend(address);
                }
            }
        }
    }
    let mut program = of_version(4, v4);
    program.extend(of_version(6, v6));
    program.push(step(RETURN, 0));
    program
}

/// The part of a program for packets of one IP version.
fn of_version(version: u32, part: Vec<Instruction>) -> Vec<Instruction> {
    let mut out = vec![
        step(LOAD_BYTE, 0),
        step(AND, 0xf0),
        test(JUMP_EQUAL, version << 4, 1, 0),
        step(JUMP, u32::try_from(part.len()).unwrap_or(u32::MAX)),
    ];
    out.extend(part);
    out
}

/// Accepts where the words at `offset` are the net's under its mask.
fn words(out: &mut Vec<Instruction>, offset: u32, net: &[u8], mask: &[u8]) {
    let word = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte))
    };
    let parts = net.chunks(4).map(word).zip(mask.chunks(4).map(word));
    let tested: Vec<(u32, u32)> = parts.take_while(|(_, mask)| *mask != 0).collect();
    // From the end: how far it is to the next test.
    let mut steps = vec![step(RETURN, ACCEPT)];
    for (index, (net, mask)) in tested.iter().enumerate().rev() {
        let at = offset + 4 * u32::try_from(index).unwrap_or_default();
        let mut part = vec![step(LOAD_WORD, at)];
        if *mask != u32::MAX {
            part.push(step(AND, *mask));
        }
        part.push(test(JUMP_EQUAL, *net, 0, short(steps.len())));
        part.append(&mut steps);
        steps = part;
    }
    out.append(&mut steps);
}

/// A test of one address has at most 14 steps.
fn short(steps: usize) -> u8 {
    u8::try_from(steps).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with a packet that came by `interface`.
    fn accepts(program: &[Instruction], interface: u32, packet: &[u8]) -> bool {
        let (mut a, mut x, mut at) = (0_u32, 0_u32, 0);
        let read = |from: u32, count: usize| -> Option<u32> {
            let from = from as usize;
            let bytes = packet.get(from..from + count)?;
            Some(
                bytes
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | u32::from(*byte)),
            )
        };
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            let loaded = match code {
                LOAD_WORD if k == INTERFACE => Some(interface),
                LOAD_WORD => read(k, 4),
                LOAD_HALF => read(k, 2),
                LOAD_BYTE => read(k, 1),
                LOAD_HALF_FROM => read(x + k, 2),
                AND => Some(a & k),
                LOAD_HEADER_LENGTH => {
                    x = 4 * (u32::from(packet[k as usize]) & 0xf);
                    Some(a)
                }
                JUMP => {
                    at += k as usize;
                    Some(a)
                }
                JUMP_EQUAL => {
                    at += usize::from(if a == k { jt } else { jf });
                    Some(a)
                }
                RETURN => return k != 0,
                _ => panic!("{code:#x} is no instruction of ours"),
            };
            // A load beyond the packet ends the program, as in the kernel.
            match loaded {
                Some(value) => a = value,
                None => return false,
            }
        }
    }

    fn packet(from: &str, to: &str, protocol: u8) -> Vec<u8> {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let mut out = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                // With one option word.
                let mut out = vec![0; 24];
                out[0] = 0x46;
                out[9] = protocol;
                out[12..16].copy_from_slice(&from.octets());
                out[16..20].copy_from_slice(&to.octets());
                out
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut out = vec![0; 40];
                out[0] = 0x60;
                out[6] = protocol;
                out[8..24].copy_from_slice(&from.octets());
                out[24..40].copy_from_slice(&to.octets());
                out
            }
            _ => panic!("both of one family"),
        };
        out.extend(from.port().to_be_bytes());
        out.extend(to.port().to_be_bytes());
        out
    }

    #[test]
    fn inside_the_tunnel_a_peers_ranges_count_on_the_device_only() {
        let nets: Vec<IpNet> = [
            "10.77.0.2/32",
            "10.244.2.0/23",
            "fd00:1::/36",
            "fd00:2::7/128",
        ]
        .iter()
        .map(|net| net.parse().unwrap())
        .collect();
        let program = inner(7, &nets);
        for (from, to, expected) in [
            ("10.77.0.1:1", "10.77.0.2:2", true),
            ("10.77.0.2:1", "10.77.0.1:2", true),
            ("10.77.0.1:1", "10.77.0.3:2", false),
            ("10.244.3.9:1", "10.77.0.1:2", true),
            ("10.244.4.9:1", "10.77.0.1:2", false),
            ("[fd00:1:fff::1]:1", "[fd99::1]:2", true),
            ("[fd00:1:1000::1]:1", "[fd99::1]:2", false),
            ("[fd99::1]:1", "[fd00:2::7]:2", true),
            ("[fd99::1]:1", "[fd00:2::8]:2", false),
        ] {
            let packet = packet(from, to, 1);
            assert_eq!(accepts(&program, 7, &packet), expected, "{from} {to}");
            assert!(!accepts(&program, 8, &packet), "{from} {to}");
        }
        assert!(!accepts(&program, 7, &[]));
        assert!(!accepts(&program, 7, &[0x45]));
    }

    #[test]
    fn outside_of_it_addresses_count_with_their_ports() {
        let remotes: Vec<SocketAddr> = ["203.0.113.9:22514", "[2001:db8::9]:22514"]
            .iter()
            .map(|remote| remote.parse().unwrap())
            .collect();
        let program = outer(&remotes);
        for (from, to, protocol, expected) in [
            ("192.0.2.1:5", "203.0.113.9:22514", 17, true),
            ("203.0.113.9:22514", "192.0.2.1:5", 17, true),
            ("203.0.113.9:22514", "192.0.2.1:5", 6, true),
            ("203.0.113.9:22514", "192.0.2.1:5", 1, false),
            ("203.0.113.9:22515", "192.0.2.1:22514", 17, false),
            ("192.0.2.1:22514", "203.0.113.9:5", 17, false),
            ("[2001:db8::9]:22514", "[2001:db8::1]:5", 17, true),
            ("[2001:db8::1]:5", "[2001:db8::9]:22514", 17, true),
            ("[2001:db8::8]:22514", "[2001:db8::1]:5", 17, false),
            ("[2001:db8::9]:5", "[2001:db8::1]:22514", 17, false),
        ] {
            let packet = packet(from, to, protocol);
            assert_eq!(accepts(&program, 1, &packet), expected, "{from} {to}");
        }
    }

    #[test]
    fn too_many_ranges_take_the_whole_device() {
        let nets: Vec<IpNet> = (0..2000_u32)
            .map(|number| IpNet::from(IpAddr::V4(number.into())))
            .collect();
        let program = inner(7, &nets);
        let packet = packet("10.0.0.1:1", "10.0.0.2:1", 17);
        assert!(program.len() <= PROGRAM_MAX);
        assert!(accepts(&program, 7, &packet) && !accepts(&program, 8, &packet));
    }
}
