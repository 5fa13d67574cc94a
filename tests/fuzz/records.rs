//! The directory, fed with whatever the right people might sign.

use std::collections::BTreeMap;

use mesh_types::consts::MESSAGE_MAX;
use mesh_types::message::{Delta, Digest};
use mesh_types::observation::{ConfigPeer, Fact, Observation};
use mesh_types::record::{Record, Signed};
use mesh_types::{IdentitySecret, IpNet, Message, PeerId, Source, WgKey};
use peer_discovery::{Config, Directory};

use crate::harness::{Clock, Random, fuzz};
use crate::samples;

#[test]
fn no_record_gives_two_peers_one_key_or_one_address() {
    let clock = Clock::new();
    let memberships = encoded((2..6).map(|n| samples::membership(n, 5)));
    let announcements = encoded((2..8).map(|n| samples::announcement(n, 5)));
    let tombstones = encoded((2..4).map(|n| samples::tombstone(n, 6)));
    fuzz("directory", |random| {
        let mut directory = Directory::new(
            Config {
                own: samples::node(1),
                own_key: samples::wg(1),
                authorities: vec![samples::authority().authority()],
                cluster: None,
            },
            clock.at(0),
        );
        let entries = vec![entry(3), entry(7)];
        let listed = Observation {
            source: Source::Config,
            fact: Fact::Listed(entries),
        };
        directory.handle_observation(listed, clock.at(0));
        let mut new = 0;
        for step in 0..12 {
            let now = clock.at(step * 1000);
            let mut delta = Delta::default();
            for _ in 0..3 {
                match random.below(8) {
                    0..3 => delta.memberships.extend(said(random, &memberships, None)),
                    3..7 => {
                        let number = 2 + random.below(6) as u8;
                        let signer = samples::identity(number);
                        let record = said(random, &announcements, Some(&signer));
                        delta.announcements.extend(record);
                    }
                    _ => delta.tombstones.extend(said(random, &tombstones, None)),
                }
            }
            let from = samples::wg(2 + random.below(6) as u8);
            for passed in directory.handle_delta(&delta, from, now) {
                fits(passed);
                new += 1;
            }
            while directory.poll_event().is_some() {}
            check(&directory);
        }
        let digest = Message::decode(
            &random.input(&[Message::from(Digest {
                from: mesh_types::Idx([0; 8]),
                to: mesh_types::Idx([0xff; 8]),
                entries: Vec::new(),
                seq: 0,
            })
            .encode()]),
        );
        if let Ok(Message::Digest(digest)) = digest {
            directory
                .answer_digest(&digest, None)
                .into_iter()
                .for_each(fits);
        }
        directory.digest_pages(None).into_iter().for_each(fits);
        directory.handle_timeout(clock.at(random.u64() % (1 << 40)));
        check(&directory);
        new > 0
    });
}

fn encoded<T: Record>(records: impl Iterator<Item = T>) -> Vec<Vec<u8>> {
    records
        .map(|record| Signed::sign(record, &samples::authority()).bytes().to_vec())
        .collect()
}

/// A changed record under a right signature: by its own node, or by the authority.
fn said<T: Record>(
    random: &mut Random,
    valid: &[Vec<u8>],
    signer: Option<&IdentitySecret>,
) -> Option<Signed<T>> {
    let bytes = random.input(valid);
    let authority = samples::authority();
    let signer = signer.unwrap_or(&authority);
    let signature = signer.sign(&[T::CONTEXT.as_bytes(), &bytes].concat());
    Signed::parse(bytes, signature).ok()
}

fn entry(number: u8) -> ConfigPeer {
    ConfigPeer {
        name: None,
        key: samples::wg(number),
        endpoints: Vec::new(),
        allowed_ips: vec![samples::net(&format!("10.9.0.{number}/32"))],
        plain: false,
        preshared_key: None,
        persistent_keepalive: None,
    }
}

fn fits(message: impl Into<Message>) {
    let bytes = message.into().encode();
    assert!(bytes.len() <= MESSAGE_MAX, "{} bytes", bytes.len());
    assert!(Message::decode(&bytes).is_ok());
}

fn check(directory: &Directory) {
    let mut keys: BTreeMap<WgKey, PeerId> = BTreeMap::new();
    let mut ranges: Vec<(IpNet, PeerId)> = Vec::new();
    for (id, peer) in directory.peers() {
        assert_eq!(*id, peer.id);
        assert_ne!(peer.key, samples::wg(1), "our own key");
        assert!(!peer.name.is_empty() && !peer.name.chars().any(char::is_control));
        for key in [Some(peer.key), peer.next_key].into_iter().flatten() {
            assert_eq!(*keys.entry(key).or_insert(*id), *id, "one key, two peers");
            assert_eq!(directory.by_key(&key), Some(id));
        }
        for net in &peer.allowed_ips {
            assert!(net.prefix_len() > 0);
            assert_eq!(directory.by_address(net.network()), Some(id));
            for (other, owner) in &ranges {
                let overlap = other.contains(net) || net.contains(other);
                assert!(!overlap || owner == id, "{net} and {other}");
            }
            ranges.push((*net, *id));
        }
    }
    // What the file says stands, whatever is signed.
    for number in [3, 7] {
        let key = samples::wg(number);
        let peer = directory.by_key(&key).and_then(|id| directory.peer(id));
        let net = samples::net(&format!("10.9.0.{number}/32"));
        let peer = peer.expect("a configured key always has its peer");
        assert!(peer.allowed_ips.contains(&net));
        assert_eq!(peer.configured_key, Some(key));
    }
}
