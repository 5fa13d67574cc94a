//! Messages passed on by a neighbour (L1): sealed end to end, in the sequence of the probes.

use mesh_types::Message;
use mesh_types::consts::MESSAGE_MAX;
use mesh_types::message::Forward;

use crate::agent::PathAgent;
use crate::api::Refused;
use crate::node::Node;
use crate::probe::Link;
use crate::replay::Verdict;

/// Hops at most.
const TTL: u8 = 2;

/// `None` where the message is too long to be passed on.
pub(crate) fn seal(node: &mut Node, link: &Link, message: &Message) -> Option<Forward> {
    let (epoch, sequence) = (node.epoch(), node.next_sequence());
    let associated = Forward::associated(link.peer, link.own, epoch, sequence);
    let sealed = link
        .seal
        .seal(node.random(), &associated, &message.encode());
    let forward = Forward {
        to: link.peer,
        from: link.own,
        ttl: TTL,
        epoch,
        sequence,
        sealed,
        seen: None,
    };
    (Message::Forward(forward.clone()).encode().len() <= MESSAGE_MAX).then_some(forward)
}

/// The message, where seal and sequence are right.
pub(crate) fn open(agent: &mut PathAgent, forward: &Forward) -> Result<Message, Refused> {
    let link = agent
        .link_between(forward.to, forward.from)
        .ok_or(Refused::UnknownSender)?;
    let (epoch, sequence) = (forward.epoch, forward.sequence);
    let associated = Forward::associated(forward.to, forward.from, epoch, sequence);
    let plain = link
        .seal
        .open(&associated, &forward.sealed)
        .ok_or(Refused::Seal)?;
    match agent.replay(forward.from).check(epoch, sequence) {
        Verdict::Fresh => Message::decode(&plain).map_err(|_| Refused::Malformed),
        Verdict::Replayed => Err(Refused::Replayed),
        Verdict::OldEpoch(_) => Err(Refused::OldEpoch),
    }
}
