//! Random faults, each with its end.

use std::time::Duration;

use sim_net::{LinkId, LinkSpec, Random, RouterId};

use crate::world::{NodeId, World};

/// Packets lost in an episode, in a million.
const LOSSY: u32 = 300_000;

/// What is undone when a fault ends.
pub enum Undo {
    Nothing,
    Boot(NodeId),
    Resume(NodeId),
    /// And tell those whose link it is.
    Mend(LinkId, Option<NodeId>),
    Restore(LinkId, LinkSpec),
}

impl Undo {
    pub fn now(self, world: &mut World) {
        match self {
            Self::Nothing => {}
            Self::Boot(id) => world.boot(id),
            Self::Resume(id) => world.resume(id),
            Self::Mend(link, owner) => {
                world.net.mend(link);
                if let Some(id) = owner {
                    world.report_host(id);
                }
            }
            Self::Restore(link, spec) => world.net.set_link(link, spec),
        }
    }
}

/// Routers on the way from a node to the core.
pub struct Seats<'a> {
    pub introducer: NodeId,
    pub others: &'a [NodeId],
    pub routers: &'a [(RouterId, LinkId)],
}

/// Breaks something; what broke, for how long, and how it ends.
pub fn strike(
    world: &mut World,
    random: &mut Random,
    seats: &Seats<'_>,
) -> (&'static str, Duration, Undo) {
    let node = *random.pick(seats.others);
    let short = Duration::from_millis(random.between(200, 20_000));
    let long = Duration::from_secs(random.between(5, 90));
    let router = (!seats.routers.is_empty()).then(|| *random.pick(seats.routers));
    match (random.below(11), router) {
        (0, _) => {
            world.power_off(node);
            ("machine restarts", short, Undo::Boot(node))
        }
        (1, _) => {
            world.kill(node);
            ("agent killed and started", short, Undo::Boot(node))
        }
        (2, Some((router, _))) => {
            world.net.forget(router);
            ("translator forgets", Duration::ZERO, Undo::Nothing)
        }
        (3, Some((router, _))) => {
            world.net.reboot(router);
            ("translator reboots", Duration::ZERO, Undo::Nothing)
        }
        (4, Some((router, _))) => {
            world.net.readdress_router(router);
            (
                "translator's address changes",
                Duration::ZERO,
                Undo::Nothing,
            )
        }
        (5, _) => {
            world.readdress(node);
            ("host's address changes", Duration::ZERO, Undo::Nothing)
        }
        // An episode inside another would end by restoring the first one's loss.
        (6, Some((_, uplink))) if world.net.link(uplink).loss < LOSSY => {
            let usual = world.net.link(uplink);
            let lossy = LinkSpec {
                loss: LOSSY,
                ..usual
            };
            world.net.set_link(uplink, lossy);
            ("30 % loss", long, Undo::Restore(uplink, usual))
        }
        (7, Some((_, uplink))) => {
            world.net.cut(uplink);
            ("uplink cut", long, Undo::Mend(uplink, None))
        }
        (8, _) => {
            let link = world.links(node)[0];
            world.net.cut(link);
            world.report_host(node);
            ("cable pulled", long, Undo::Mend(link, Some(node)))
        }
        (9, _) => {
            world.suspend(node);
            ("laptop sleeps", long, Undo::Resume(node))
        }
        (_, _) => {
            world.power_off(seats.introducer);
            ("introducer gone", long, Undo::Boot(seats.introducer))
        }
    }
}
