//! The packet log tells of each handshake that the module begins.

use std::time::Duration;

use host_network::{Demux, Initiations};

use crate::harness::pair;

#[test]
fn an_initiation_of_the_module_is_told_with_its_bytes_and_nothing_else_is() {
    let (mut a, _b) = pair();
    let port = a.plan.tunnel.listen_port;
    a.plan_peer(3, Some("192.0.2.2:22999"));
    a.apply();
    let (to, bytes) = a.namespace.enter(|| {
        let mut demux = Demux::new().unwrap();
        assert!(demux.log_initiations(port).unwrap());
        assert!(!demux.log_initiations(port).unwrap(), "it is there already");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut initiations = Initiations::open(port).unwrap();
            // To a peer with a session: data only. To one without: an initiation.
            for target in ["10.77.0.2", "10.77.0.3"] {
                let mut ping = std::process::Command::new("ping");
                let ping = ping.args(["-n", "-c", "1", "-W", "1", target]);
                let _ = ping.output().unwrap();
            }
            let next = initiations.next();
            let told = tokio::time::timeout(Duration::from_secs(20), next).await;
            told.expect("it is told").unwrap()
        })
    });
    assert_eq!(to, "192.0.2.2:22999".parse().unwrap());
    assert_eq!(bytes.len(), 148);
    assert_eq!(bytes[..4], [1, 0, 0, 0]);
}
