//! A pod and the metadata service of the platform that its machine stands on: it holds the machine's user-data, and on a
//! control plane that is every key of the cluster. Bench A; a pod is what it is to a machine's kernel, a network of its own
//! behind the machine's bridge.

#![expect(
    clippy::unwrap_used,
    reason = "what these tests need and do not find ends them"
)]

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use kimage_qemu_tests::cluster::machine::Machine;
use kimage_qemu_tests::cluster::until;
use kimage_roles::cause::Cause;
use kimage_roles::status::Phase;
use serde_json::json;

#[path = "hostile_metadata/site.rs"]
mod site;

use site::{Metadata, Pod, Site};

/// For a boot on a busy host.
const BOOT: Duration = Duration::from_secs(120);
/// The machine looks at its wall twice a minute.
const LOOK: Duration = Duration::from_secs(90);
const CONTAINERD: &str = "containerd.service";
const WALL: &str = "kimage-metadata-wall.service";
const CHECK: &str = "kimage-metadata-wall-check.service";
/// Where platforms have such services. The first is everybody's, the third Azure's wireserver.
const SERVICES: [&str; 8] = [
    "169.254.169.254",
    "169.254.170.2",
    "168.63.129.16",
    "100.100.100.200",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
    "fd00:a9fe:a9fe::1",
];
const WIRESERVER: &str = "168.63.129.16";
const HTTP: u16 = 80;
const DNS: u16 = 53;

fn services() -> Vec<IpAddr> {
    SERVICES.iter().map(|text| text.parse().unwrap()).collect()
}

/// A machine with this NodeConfig among the services of all platforms.
fn site(config: &str, etc: Vec<(&'static str, String)>) -> (Site, Metadata) {
    let site = Site::new(config, etc).unwrap();
    let metadata = Metadata::start(&site, &services(), &[HTTP, DNS]).unwrap();
    (site, metadata)
}

fn the_pod_gets_nothing(pod: &Pod) {
    thread::scope(|scope| {
        let asked = services().into_iter().map(|address| {
            scope.spawn(move || {
                let answer = pod.asks(address, HTTP);
                assert!(answer.is_err(), "a pod gets an answer of {address}");
            })
        });
        // All at once: each waits for a while.
        let asked: Vec<_> = asked.collect();
        asked.into_iter().for_each(|question| question.join().unwrap());
    });
}

/// A moment in the life of a unit, in microseconds since the kernel's start; 0: never.
fn moment(site: &Site, property: &str, unit: &str) -> Result<u64> {
    let property = format!("--property={property}TimestampMonotonic");
    let text = site
        .machine
        .run(&["systemctl", "show", "--value", &property, unit])?;
    Ok(text.trim().parse()?)
}

/// Packets that the wall has dropped.
fn dropped(site: &Site) -> Result<u64> {
    let list = site
        .machine
        .run(&["nft", "list", "table", "inet", "kimage-metadata"])?;
    // `ip daddr @metadata4 counter packets 12 bytes 720 drop`
    let counts = list.lines().filter_map(|line| {
        let words = line.trim().strip_suffix(" drop")?.split(' ');
        words
            .skip_while(|word| *word != "packets")
            .nth(1)?
            .parse::<u64>()
            .ok()
    });
    Ok(counts.sum())
}

#[test]
fn a_pod_gets_nothing_from_metadata_services_before_anybody_has_told_its_machine_anything() {
    let (mut site, metadata) = site("", Vec::new());
    site.machine.start().unwrap();
    let running = until(BOOT, "containerd runs", || {
        ensure!(moment(&site, "ActiveEnter", CONTAINERD)? > 0);
        Ok(())
    });
    running.unwrap();
    let pod = Pod::on(&site).unwrap();
    // There is a path, and nothing but the wall stands in it.
    for address in metadata.ordinary().unwrap() {
        pod.asks(address, HTTP).unwrap();
    }
    the_pod_gets_nothing(&pod);
    for address in services() {
        site.asks(address, HTTP).unwrap();
    }
    // CoreDNS, a pod, asks the resolvers of clouds, which have the same addresses.
    for address in ["169.254.169.254", "168.63.129.16"] {
        pod.asks(address.parse().unwrap(), DNS).unwrap();
    }
    // Azure's load balancers probe Services from the wireserver's address.
    site.probes(&pod, WIRESERVER).unwrap();
    let count = dropped(&site).unwrap();
    assert!(count >= SERVICES.len() as u64, "{count}");
    // Nothing could run a pod before.
    let raised = moment(&site, "ActiveEnter", WALL).unwrap();
    let containerd = moment(&site, "ExecMainStart", CONTAINERD).unwrap();
    assert!(0 < raised && raised < containerd, "{raised}, {containerd}");
    translated_addresses_lead_nowhere(&site, &pod);
    emptied_rules_come_back(&site, &pod);
}

/// A Service may have any endpoint that is not link-local, such as Azure's wireserver.
fn translated_addresses_lead_nowhere(site: &Site, pod: &Pod) {
    let rules = "table inet service {
        chain forwarded {
            type nat hook prerouting priority dstnat; policy accept;
            ip daddr 10.96.0.99 dnat ip to 168.63.129.16
            ip daddr 10.96.0.98 dnat ip to 10.89.0.1
        }
        chain own {
            type nat hook output priority -100; policy accept;
            ip daddr 10.96.0.99 dnat ip to 168.63.129.16
        }
    }";
    let load = ["sh", "-euc", "printf %s \"$1\" | nft -f -", "sh", rules];
    site.machine.run(&load).unwrap();
    let [metadata, other] = ["10.96.0.99", "10.96.0.98"].map(|text| text.parse().unwrap());
    pod.asks(other, HTTP).unwrap();
    assert!(pod.asks(metadata, HTTP).is_err(), "a Service leads a pod there");
    site.asks(metadata, HTTP).unwrap();
}

/// Firewalls of other makers begin with `flush ruleset`.
fn emptied_rules_come_back(site: &Site, pod: &Pod) {
    site.machine.run(&["nft", "flush", "ruleset"]).unwrap();
    let standing = until(LOOK, "the wall is raised again", || dropped(site));
    standing.unwrap();
    the_pod_gets_nothing(pod);
    let words = ["journalctl", "--no-pager", "--output=cat", "--unit", CHECK];
    let said = site.machine.run(&words).unwrap();
    assert!(said.contains("raised again"), "{said}");
    assert_eq!(
        said.lines().count(),
        1,
        "only what is wrong is worth a line: {said}"
    );
}

#[test]
fn a_node_config_lets_pods_reach_metadata_services_and_the_next_one_takes_it_back() {
    let blocked = site::worker().unwrap();
    let mut allowed = blocked.clone();
    allowed["network"]["podMetadata"] = json!("allowed");
    let (mut site, _metadata) = site(&allowed.to_string(), Vec::new());
    let pod = Pod::on(&site).unwrap();
    // The second life begins with a wall too. The cluster doesn't exist: first boot comes as far as joining it.
    for _life in 1..=2 {
        site.machine.start().unwrap();
        site.machine.wait_for(Phase::Configure, BOOT).unwrap();
        for address in services() {
            pod.asks(address, HTTP).unwrap();
        }
        // Whoever looks after the wall now leaves it open.
        site.machine.run(&["systemctl", "start", CHECK]).unwrap();
        pod.asks(services()[0], HTTP).unwrap();
        site.cut_power().unwrap();
    }
    site.machine.tell(&blocked.to_string());
    site.machine.start().unwrap();
    site.machine.wait_for(Phase::Configure, BOOT).unwrap();
    the_pod_gets_nothing(&pod);
}

#[test]
fn a_machine_that_can_not_keep_pods_from_metadata_services_runs_none_and_says_why() {
    // The rules are damaged, for whoever reads them; everything else is as shipped.
    let damage = "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
        ExecStart=mount --bind /etc/systemd/system/damage.service /usr/lib/kimage/metadata-wall.nft\n";
    let first = "[Unit]\nRequires=damage.service\nAfter=damage.service\n";
    let etc = vec![
        ("systemd/system/damage.service", damage.to_owned()),
        (
            "systemd/system/kimage-metadata-wall.service.d/damage.conf",
            first.to_owned(),
        ),
    ];
    let (mut site, _metadata) = site(&site::worker().unwrap().to_string(), etc);
    site.machine.start().unwrap();
    let reported = site
        .machine
        .wait_until(BOOT, "a report about the wall", |status| {
            Ok(status.cause.is_some())
        });
    let status = reported.unwrap();
    let message = status.message.unwrap_or_default();
    assert_eq!(status.cause, Some(Cause::UnitFailed));
    assert!(message.contains(WALL) && message.contains("nft"), "{message}");
    for unit in [CONTAINERD, "kubelet.service"] {
        // Whoever asks for it, it does not start.
        assert!(
            site.machine.run(&["systemctl", "start", unit]).is_err(),
            "{unit} was started"
        );
        assert_eq!(moment(&site, "ExecMainStart", unit).unwrap(), 0, "{unit}");
    }
}
