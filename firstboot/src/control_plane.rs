//! Files of a control plane: arguments and configuration of kube-apiserver, kube-controller-manager and kube-scheduler.
//! Arguments are kubeadm 1.36's and those that the CIS benchmark asks for besides (kube-bench's cis-1.12).

use anyhow::{Context, Result};
use kimage_roles::node_config::{EtcdLayout, NodeConfig};

use crate::layout::environment;
use crate::machine::Machine;
use crate::rendered::RenderedFile;

pub mod admission;
pub mod api_server;
pub mod audit;
pub mod authentication;
pub mod controller_manager;
pub mod encryption;
pub mod identity;
pub mod scheduler;

/// Everything that the three services read, certificates and kubeconfigs aside. `etcd` are the members' client URLs
/// where etcd has machines of its own; on a stacked control plane they are not looked at, for its API server uses the
/// member beside it.
pub fn files(config: &NodeConfig, machine: &Machine, etcd: &[String]) -> Result<Vec<RenderedFile>> {
    let own_member = ["https://127.0.0.1:2379".to_owned()];
    let stacked = config
        .etcd
        .as_ref()
        .context("a control plane needs `etcd` in its NodeConfig")?
        .layout
        == EtcdLayout::Stacked;
    let key = config
        .secrets
        .as_ref()
        .and_then(|secrets| secrets.encryption_key.as_ref())
        .context("a control plane needs `secrets.encryptionKey` in its NodeConfig")?;
    let etcd = if stacked { &own_member[..] } else { etcd };
    let service = |name: &str, arguments: crate::arguments::Arguments| {
        RenderedFile::private(environment(name), arguments.environment_file())
    };
    Ok(vec![
        RenderedFile::json(admission::PATH, &admission::configuration()),
        RenderedFile::json(audit::PATH, &audit::policy()),
        RenderedFile::json(authentication::PATH, &authentication::configuration()),
        RenderedFile::json(encryption::PATH, &encryption::configuration(key)?),
        service("kube-apiserver", api_server::arguments(config, machine, etcd)),
        service("kube-controller-manager", controller_manager::arguments(config)),
        service("kube-scheduler", scheduler::arguments(config)),
    ])
}

/// Leader election of a controller. Deadline and retry keep upstream's proportions (15 s, 10 s, 2 s).
fn leader_election(
    arguments: crate::arguments::Arguments,
    lease_seconds: u32,
) -> crate::arguments::Arguments {
    let milliseconds = u64::from(lease_seconds) * 1000;
    arguments
        .flag("leader-elect-lease-duration", format!("{milliseconds}ms"))
        .flag(
            "leader-elect-renew-deadline",
            format!("{}ms", milliseconds * 2 / 3),
        )
        .flag(
            "leader-elect-retry-period",
            format!("{}ms", milliseconds * 2 / 15),
        )
}

/// What every server of a control plane speaks.
fn tls(arguments: crate::arguments::Arguments) -> crate::arguments::Arguments {
    arguments
        .flag("tls-min-version", crate::tls::MIN_VERSION)
        .flag("tls-cipher-suites", crate::tls::CIPHER_SUITES.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::{control_plane, machine};

    #[test]
    fn nothing_goes_through_the_balancer_and_only_one_file_has_the_key() {
        let config = control_plane();
        let key = config.secrets.as_ref().unwrap().encryption_key.as_ref().unwrap();
        let files = files(&config, &machine(), &[]).unwrap();
        for file in &files {
            assert!(!file.content.contains("lb.example.com"), "{file:?}");
            assert_eq!(file.mode, 0o600);
            assert_eq!(file.content.contains(key.reveal()), file.path == encryption::PATH);
            assert!(!format!("{file:?}").contains(key.reveal()));
        }
    }

    #[test]
    fn the_store_is_the_own_member_or_the_given_ones() {
        let mut config = control_plane();
        let given = ["https://10.0.0.7:2379".to_owned()];
        let arguments = |config: &NodeConfig| {
            let files = files(config, &machine(), &given).unwrap();
            files
                .into_iter()
                .find(|file| file.path.ends_with("kube-apiserver.env"))
                .unwrap()
                .content
        };
        assert!(arguments(&config).contains("--etcd-servers=https://127.0.0.1:2379 "));
        config.etcd.as_mut().unwrap().layout = EtcdLayout::External;
        assert!(arguments(&config).contains("--etcd-servers=https://10.0.0.7:2379 "));
    }
}
