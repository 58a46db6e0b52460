//! The only writer: what a plan consists of and how it is done. Every action is atomic or safe to repeat; what one
//! learns for a later one stands in [`Findings`].

use std::cell::RefCell;
use std::fmt;
use std::time::{Duration, SystemTime};

use kimage_roles::cause::Cause;
use kimage_roles::certificate::{Authority, Profile};
use kimage_roles::node_config::{KeyPair, PodMetadata, Secrets};

use crate::control_plane::identity::{Client, Leaf, Signer};
use crate::failure::{Failure, OrFailure};
use crate::host::{self, Host};
use crate::http::Trust;
use crate::join::Joined;
use crate::kubernetes::{Api, Caller};
use crate::lease::Turns;
use crate::metadata::Machine;
use crate::rendered::RenderedFile;

mod bootstrap;
mod certificates;
mod cluster;
mod etcd;
mod follow;
mod node;
mod objects;
mod renewal;
mod standing;
mod units;

pub use etcd::Member;
pub(crate) use standing::Standing;
pub(crate) use units::started;

/// How long a certificate of [`Worker::own_api`] lives: it is never on a disk.
const ERRAND: Duration = Duration::from_secs(3600);

/// Something to do.
#[derive(Debug, Clone)]
pub enum Action {
    /// Give the kernel its host name.
    NameHost(String),
    /// Write files.
    Write(Vec<RenderedFile>),
    /// Keep pods from metadata services, or let them pass.
    GuardMetadata(PodMetadata),
    /// Have certificates that are current.
    Issue(Vec<Leaf>),
    /// Have kubeconfigs whose certificates are current.
    Kubeconfigs(Vec<Client>),
    /// Form or join etcd, and be a voting member of it.
    FormEtcd,
    /// Learn where the members of a separate etcd are.
    FindEtcd,
    /// Write arguments and configuration of API server, controllers and scheduler.
    ConfigureControlPlane,
    /// Start services whose files first boot writes; what they need (containerd) comes with them and runs on.
    Start(Vec<&'static str>),
    /// Wait until the own API server is ready.
    AwaitApiServer,
    /// Make the objects of the cluster be as they should.
    ApplyObjects,
    /// Discover the cluster through the balancer and prove that it is ours.
    Join,
    /// Have the cluster sign the kubelet's certificate.
    ObtainKubeletCertificate,
    /// Make the Node, which the kubelet then finds.
    RegisterNode,
    /// Write arguments, configuration and kubeconfig of the kubelet.
    ConfigureKubelet,
    /// Write configuration of flannel, kube-proxy and kube-router and start those that are chosen.
    ConfigurePodNetwork,
    /// Label the Node as a control plane.
    MarkControlPlane,
    /// Wait until the Node is Ready.
    AwaitNode,
}

impl Action {
    /// The longest pause between two tries. What waits for others near by looks often; what knocks at a balancer that
    /// thousands use backs off.
    pub fn longest_pause(&self) -> Duration {
        match self {
            Self::Join | Self::ObtainKubeletCertificate => Duration::from_secs(10),
            Self::ApplyObjects | Self::FindEtcd | Self::MarkControlPlane => Duration::from_secs(2),
            _ => Duration::from_secs(1),
        }
    }

    /// Whether this starts services.
    pub fn starts_services(&self) -> bool {
        matches!(self, Self::Start(_) | Self::ConfigurePodNetwork)
    }

    /// Whether this may change a file that services read when they are started.
    pub fn changes_files(&self) -> bool {
        matches!(
            self,
            Self::Write(_)
                | Self::Issue(_)
                | Self::Kubeconfigs(_)
                | Self::ObtainKubeletCertificate
                | Self::ConfigureControlPlane
                | Self::ConfigureKubelet
                | Self::ConfigurePodNetwork
        )
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths = |files: &[RenderedFile]| {
            files
                .iter()
                .map(|file| file.path.as_str())
                .collect::<Vec<_>>()
                .join(" ")
        };
        match self {
            Self::NameHost(name) => write!(f, "call the host {name}"),
            Self::Write(files) => write!(f, "write {}", paths(files)),
            Self::GuardMetadata(PodMetadata::Blocked) => f.write_str("keep pods from metadata services"),
            Self::GuardMetadata(PodMetadata::Allowed) => f.write_str("let pods reach metadata services"),
            Self::Issue(leaves) => {
                let paths: Vec<&str> = leaves.iter().map(|leaf| leaf.path.as_str()).collect();
                write!(f, "issue {}", paths.join(" "))
            }
            Self::Kubeconfigs(clients) => {
                let paths: Vec<&str> = clients.iter().map(|client| client.path).collect();
                write!(f, "issue {}", paths.join(" "))
            }
            Self::FormEtcd => f.write_str("form or join etcd"),
            Self::FindEtcd => f.write_str("learn where etcd is"),
            Self::ConfigureControlPlane => f.write_str("configure API server, controllers and scheduler"),
            Self::Start(units) => write!(f, "start {}", units.join(" ")),
            Self::AwaitApiServer => f.write_str("wait for the own API server"),
            Self::ApplyObjects => f.write_str("apply the cluster's objects"),
            Self::Join => f.write_str("discover the cluster through the balancer"),
            Self::RegisterNode => f.write_str("register the Node"),
            Self::ConfigureKubelet => f.write_str("configure the kubelet"),
            Self::ObtainKubeletCertificate => f.write_str("have the cluster sign the kubelet's certificate"),
            Self::ConfigurePodNetwork => f.write_str("configure and start the pod network"),
            Self::MarkControlPlane => f.write_str("label the Node as a control plane"),
            Self::AwaitNode => f.write_str("wait until the Node is Ready"),
        }
    }
}

/// What actions learn for later ones.
#[derive(Debug, Default)]
pub struct Findings {
    /// Client URLs of etcd's members.
    pub etcd: Vec<String>,
    /// The cluster behind the balancer.
    pub joined: Option<Joined>,
    /// Why the credential that the kubelet has is worth nothing: it needs another one.
    pub refused: Option<String>,
}

/// Does actions on this machine.
pub struct Worker<'a> {
    host: &'a Host,
    machine: &'a Machine,
    findings: Findings,
    formation: Option<etcd::Member>,
    turns: Turns,
    /// What [`Self::own_api`] gave last, and when its certificate was made.
    own_api: RefCell<Option<(Api, SystemTime)>>,
    /// The action changed a file, in this try or in one before.
    changed: bool,
    /// Services that the action starts run with older files.
    stale: bool,
}

impl<'a> Worker<'a> {
    /// A worker for one boot.
    pub fn new(host: &'a Host, machine: &'a Machine) -> Self {
        Self {
            host,
            machine,
            findings: Findings::default(),
            formation: None,
            turns: Turns::default(),
            own_api: RefCell::new(None),
            changed: false,
            stale: false,
        }
    }

    /// Turns to the next action. What it starts is `stale` when it runs already, with older files than there are.
    pub fn turn(&mut self, stale: bool) {
        self.changed = false;
        self.stale = stale;
    }

    /// Whether the action has changed a file that services read when they are started.
    pub fn has_changed_files(&self) -> bool {
        self.changed
    }

    /// Does one action, or says why it couldn't be done now.
    pub fn apply(&mut self, action: &Action) -> Result<(), Failure> {
        match action {
            Action::NameHost(name) => units::name_host(name),
            Action::Write(files) => self.write(files),
            Action::GuardMetadata(pods) => self.guard_metadata(*pods),
            Action::Issue(leaves) => self.issue(leaves),
            Action::Kubeconfigs(clients) => self.kubeconfigs(clients),
            Action::FormEtcd => self.form_etcd(),
            Action::FindEtcd => self.find_etcd(),
            Action::ConfigureControlPlane => self.configure_control_plane(),
            Action::Start(units) => self.start(units),
            Action::AwaitApiServer => self.await_api_server(),
            Action::ApplyObjects => self.apply_objects(),
            Action::Join => self.join(),
            Action::RegisterNode => self.register_node(),
            Action::ConfigureKubelet => self.configure_kubelet(),
            Action::ObtainKubeletCertificate => self.obtain_kubelet_certificate(),
            Action::ConfigurePodNetwork => self.configure_pod_network(),
            Action::MarkControlPlane => self.mark_control_plane(),
            Action::AwaitNode => self.await_node(),
        }
    }

    fn write(&mut self, files: &[RenderedFile]) -> Result<(), Failure> {
        for file in files {
            let path = self.host.path(&file.path);
            let changed = host::write(&path, file.content.as_bytes(), file.mode);
            self.changed |= changed.map_err(Failure::internal)?;
        }
        Ok(())
    }

    fn secrets(&self) -> Result<&'a Secrets, Failure> {
        let secrets = self.machine.config.secrets.as_ref();
        secrets.ok_or_else(|| Failure::because(Cause::ConfigInvalid, "secrets: missing"))
    }

    fn authority(&self, signer: Signer) -> Result<Authority, Failure> {
        let secrets = self.secrets()?;
        let pair = match signer {
            Signer::Etcd => Some(&secrets.etcd_ca),
            Signer::Kubernetes => secrets.ca.as_ref(),
            Signer::FrontProxy => secrets.front_proxy_ca.as_ref(),
        };
        let pair =
            pair.ok_or_else(|| Failure::because(Cause::ConfigInvalid, "secrets: an authority is missing"))?;
        Authority::from_pair(pair).or_failure(Cause::ConfigInvalid)
    }

    /// The own API server, as an administrator whose certificate lives an hour, in memory. It is asked again and again:
    /// one certificate and its connections serve for half an hour by the clock that its life is counted by, since a
    /// handshake costs more than an answer.
    pub(crate) fn own_api(&self) -> Result<Api, Failure> {
        if let Some((api, made)) = &*self.own_api.borrow()
            && made.elapsed().is_ok_and(|age| age < ERRAND / 2)
        {
            return Ok(api.clone());
        }
        let made = SystemTime::now();
        let api = self.new_own_api()?;
        self.own_api.replace(Some((api.clone(), made)));
        Ok(api)
    }

    fn new_own_api(&self) -> Result<Api, Failure> {
        let authority = self.authority(Signer::Kubernetes)?;
        let now = SystemTime::now();
        let pair = kimage_roles::certificate::issue(&authority, &Profile::super_admin(), now, ERRAND);
        let pair: KeyPair = pair.map_err(Failure::internal)?;
        let ca = self.secrets()?.ca.as_ref().map(|ca| ca.certificate.clone());
        let server = self.machine.node().own_api_server();
        Api::new(
            &server,
            Trust::Pinned(ca.unwrap_or_default()),
            Caller::Certificate(pair),
        )
        .map_err(Failure::internal)
    }
}
