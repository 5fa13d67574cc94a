//! A small world for tests: an authority, some machines, a clock that stands still.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mesh_types::observation::{ConfigPeer, Fact, Observation};
use mesh_types::record::Features;
use mesh_types::{
    Announcement, AuthorityKey, Candidate, CandidateKind, DomainId, IdentitySecret, IpNet,
    Membership, NatReport, NodeKey, Now, PeerId, Signed, Source, Tombstone, WgKey, WgSecret,
};
use peer_discovery::{Config, Directory, Event, Reason};

/// Unix seconds at which the tests take place.
pub(crate) const START: u64 = 1_800_000_000;

/// That many seconds after the start.
pub(crate) fn at(seconds: u64) -> Now {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "only differences are used")]
    let epoch = *EPOCH.get_or_init(Instant::now);
    Now {
        mono: epoch + Duration::from_secs(seconds),
        unix: Duration::from_secs(START + seconds),
    }
}

pub(crate) fn authority() -> IdentitySecret {
    IdentitySecret::from_bytes(&[200; 32])
}

pub(crate) fn domain() -> DomainId {
    DomainId::standalone(Some(&authority().authority()))
}

/// A machine and its keys.
#[derive(Clone)]
pub(crate) struct Machine {
    pub secret: IdentitySecret,
    pub key: WgKey,
    pub domain: DomainId,
    pub number: u8,
}

pub(crate) fn machine(number: u8) -> Machine {
    Machine {
        secret: IdentitySecret::from_bytes(&[number; 32]),
        key: wg(number),
        domain: domain(),
        number,
    }
}

pub(crate) fn wg(number: u8) -> WgKey {
    WgSecret::from_bytes([number; 32]).public()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect("prefix")
}

impl Machine {
    pub(crate) fn node(&self) -> NodeKey {
        NodeKey {
            domain: self.domain,
            identity: self.secret.identity(),
        }
    }

    pub(crate) fn id(&self) -> PeerId {
        PeerId::Node(self.node())
    }

    /// The same machine where there is no authority.
    pub(crate) fn without_authority(mut self) -> Self {
        self.domain = DomainId::standalone(None);
        self
    }

    pub(crate) fn member(&self, serial: u64) -> Membership {
        Membership {
            domain: self.domain,
            identity: self.secret.identity(),
            name: format!("m{}", self.number),
            ipv4: Some([10, 77, 0, self.number].into()),
            ranges: Vec::new(),
            may_relay: false,
            serial,
            not_after: None,
        }
    }

    pub(crate) fn membership(&self, serial: u64) -> Signed<Membership> {
        Signed::sign(self.member(serial), &authority())
    }

    pub(crate) fn carrying(&self, serial: u64, ranges: &[&str]) -> Signed<Membership> {
        let mut record = self.member(serial);
        record.ranges = ranges.iter().map(|text| net(text)).collect();
        Signed::sign(record, &authority())
    }

    pub(crate) fn tombstone(&self, serial: u64) -> Signed<Tombstone> {
        let record = Tombstone {
            domain: self.domain,
            identity: self.secret.identity(),
            serial,
            not_after: None,
        };
        Signed::sign(record, &authority())
    }

    pub(crate) fn announce(&self, seq: u64) -> Announcement {
        Announcement {
            domain: self.domain,
            identity: self.secret.identity(),
            key: self.key,
            next_key: None,
            endpoints: vec![Candidate {
                kind: CandidateKind::Host,
                address: ([198, 51, 100, self.number], 22000).into(),
            }],
            nat: NatReport::default(),
            relays: Vec::new(),
            region: None,
            features: Features::default(),
            protocol_min: 1,
            protocol_max: 1,
            seq,
            name: None,
            node_uid: None,
        }
    }

    pub(crate) fn announcement(&self, seq: u64) -> Signed<Announcement> {
        Signed::sign(self.announce(seq), &self.secret)
    }

    pub(crate) fn announcement_of(&self, seq: u64, key: WgKey) -> Signed<Announcement> {
        let record = Announcement {
            key,
            ..self.announce(seq)
        };
        Signed::sign(record, &self.secret)
    }

    pub(crate) fn entry(&self) -> ConfigPeer {
        ConfigPeer {
            name: None,
            key: self.key,
            endpoints: Vec::new(),
            allowed_ips: vec![net(&format!("10.9.0.{}/32", self.number))],
            plain: false,
            preshared_key: None,
            persistent_keepalive: None,
        }
    }
}

/// The directory of machine `number`.
pub(crate) fn directory(number: u8) -> Directory {
    directory_of(&machine(number), vec![authority().authority()])
}

pub(crate) fn directory_of(own: &Machine, authorities: Vec<AuthorityKey>) -> Directory {
    let config = Config {
        own: own.node(),
        own_key: own.key,
        authorities,
        cluster: None,
    };
    Directory::new(config, at(0))
}

/// Short names for what sources say.
pub(crate) trait Say {
    fn gossip(&mut self, fact: impl Into<Said>);
    fn spoken(&mut self, record: Signed<Announcement>, by: WgKey);
    fn listed(&mut self, entries: Vec<ConfigPeer>);
    fn events(&mut self) -> Vec<Event>;
    fn count(&self, reason: Reason) -> u64;
    fn conflict(&self, reason: Reason) -> bool;
    fn carries(&self, machine: &Machine, range: &str) -> bool;
}

pub(crate) struct Said(pub Fact);
impl From<Signed<Membership>> for Said {
    fn from(record: Signed<Membership>) -> Self {
        Self(Fact::Membership(record))
    }
}
impl From<Signed<Tombstone>> for Said {
    fn from(record: Signed<Tombstone>) -> Self {
        Self(Fact::Tombstone(record))
    }
}
impl From<Signed<Announcement>> for Said {
    fn from(record: Signed<Announcement>) -> Self {
        Self(Fact::Announcement {
            record,
            spoken_by: None,
        })
    }
}

pub(crate) fn observed(source: Source, fact: Fact) -> Observation {
    Observation { source, fact }
}

impl Say for Directory {
    fn gossip(&mut self, fact: impl Into<Said>) {
        self.handle_observation(observed(Source::Gossip, fact.into().0), at(0));
    }

    fn spoken(&mut self, record: Signed<Announcement>, by: WgKey) {
        let fact = Fact::Announcement {
            record,
            spoken_by: Some(by),
        };
        self.handle_observation(observed(Source::Gossip, fact), at(0));
    }

    fn listed(&mut self, entries: Vec<ConfigPeer>) {
        self.handle_observation(observed(Source::Config, Fact::Listed(entries)), at(0));
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.poll_event()).collect()
    }

    fn count(&self, reason: Reason) -> u64 {
        self.refusal_counts()
            .find(|(r, _)| *r == reason)
            .map_or(0, |(_, count)| count)
    }

    fn conflict(&self, reason: Reason) -> bool {
        self.conflicts().iter().any(|c| c.reason == reason)
    }

    fn carries(&self, machine: &Machine, range: &str) -> bool {
        self.peer(&machine.id())
            .is_some_and(|peer| peer.allowed_ips.contains(&net(range)))
    }
}
