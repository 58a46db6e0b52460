//! What can be said after `kimage cluster`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueHint};
use kimage_roles::node_config::{
    Cidr, Endpoint, EtcdLayout, FlannelBackend, NetworkPlugin, NodeRole, StaticMember,
};

use super::playground::{ClusterDown, ClusterServe, ClusterUp};

/// `kimage cluster`.
#[derive(Debug, Subcommand)]
pub enum Cluster {
    /// Boot built images as a cluster of virtual machines on this host, without root
    Up(ClusterUp),
    /// End such a cluster and remove all of it
    Down(ClusterDown),
    /// Make a cluster's folder: authorities, keys, bootstrap token, cluster.toml
    New(ClusterNew),
    /// Print the NodeConfig that machines of a role get as user-data
    UserData(Box<ClusterUserData>),
    /// Print a kubeconfig with a client certificate of limited life
    Kubeconfig(ClusterKubeconfig),
    /// Be the process that holds a cluster of `up`
    #[command(hide = true)]
    Serve(ClusterServe),
}

/// `kimage cluster new`.
#[derive(Debug, Args)]
#[command(after_help = "\
DIR gets what `kubeadm init` would make on the first machine: three authorities (Kubernetes, front proxy, etcd), the
key of service-account tokens, the key that encrypts Secrets in etcd, a bootstrap token, and the key that signs lists of
instances. Nothing talks to a network. Whoever reads DIR owns the cluster: keep it as you keep root passwords.
DIR is new or empty; nothing is ever overwritten. All is there or nothing, however the command ends.

ENDPOINT is the load balancer: TCP port 6443 to all control planes, checked by HTTPS GET /readyz.

Examples:
  kimage cluster new ./prod --name prod --endpoint lb.example.com:6443
  kimage cluster new ./lab --name lab --endpoint 192.0.2.10:6443 --etcd external --pod-subnet 10.32.0.0/14

Next:
  kimage cluster user-data --dir ./prod --role control-plane --etcd-members cp-1=10.0.0.1,cp-2=10.0.0.2,cp-3=10.0.0.3
  kimage cluster user-data --dir ./prod --role worker
  kimage cluster kubeconfig --dir ./prod --output prod.kubeconfig")]
pub struct ClusterNew {
    /// The new folder
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// Name of the cluster: letters, digits and dashes, as in a host name
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// The load balancer in front of the API servers
    #[arg(long, value_name = "HOST:PORT")]
    pub endpoint: Endpoint,
    /// One more name or address that the API server's certificate is valid for (repeatable)
    #[arg(long, value_name = "NAME")]
    pub api_name: Vec<String>,
    /// Addresses of Services
    #[arg(long, value_name = "RANGE", default_value = "10.96.0.0/12")]
    pub service_subnet: Cidr,
    /// Addresses of pods; each node gets a /24 of it
    #[arg(long, value_name = "RANGE", default_value = "10.244.0.0/16")]
    pub pod_subnet: Cidr,
    /// Domain of Services
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub dns_domain: String,
    /// Where etcd runs: on every control plane, or on machines of role etcd
    #[arg(long, value_name = "WHERE", default_value = "stacked", value_parser = layouts())]
    pub etcd: EtcdLayout,
    /// Who connects pods: the baked flannel, or a plugin that you install
    #[arg(long, value_name = "PLUGIN", default_value = "flannel", value_parser = plugins())]
    pub network: NetworkPlugin,
    /// How flannel carries packets; host-gw needs all nodes on one segment
    #[arg(long, value_name = "HOW", default_value = "vxlan", value_parser = backends())]
    pub flannel_backend: FlannelBackend,
    /// When the bootstrap token ends, as 24h [default: never, with a warning: a launch template has no date either]
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    pub token_lifetime: Option<Duration>,
}

/// `kimage cluster user-data`.
#[derive(Debug, Args)]
#[command(after_help = "\
Paste what it prints into the user-data of a launch template or instance group: one document serves all machines of a
role, names and addresses come from the platform. It is JSON, so YAML too, and was checked by the code that reads it.

A control plane's document holds the cluster's private keys, an etcd machine's the key of etcd's authority, a worker's
no key but the bootstrap token. Who can read a machine's user-data can read them: hand the first two out through a
store that your platform guards.

How members of etcd find each other, for control-plane and etcd, exactly one of:
  --etcd-members   the machines are known: names and addresses
  --record...      an autoscaling group: a record in a store with compare-and-swap says who began

Who says which machines are gone for good, so that their etcd members may be removed, at most one of --instances,
--inventory-http, --inventory-file. The last two are lists signed with DIR/inventory.key.

Examples:
  kimage cluster user-data --dir prod --role worker > worker.json
  kimage cluster user-data --dir prod --role control-plane --output cp.json \\
      --record s3://my-bucket/prod/etcd --record-region eu-central-1
  kimage cluster user-data --dir lab --role etcd --etcd-members e-1=10.0.0.1,e-2=10.0.0.2,e-3=10.0.0.3")]
pub struct ClusterUserData {
    /// Folder that `kimage cluster new` made
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Role of the machines
    #[arg(long, value_name = "ROLE", value_parser = roles())]
    pub role: NodeRole,
    /// How members of etcd find each other, and who says which are gone.
    #[command(flatten)]
    pub formation: FormationArguments,
    /// Label of the Nodes (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub label: Vec<(String, String)>,
    /// Taint that the Nodes register with (repeatable)
    #[arg(long, value_name = "KEY=VALUE:EFFECT")]
    pub taint: Vec<String>,
    /// Where it is written.
    #[command(flatten)]
    pub output: OutputArguments,
}

/// How members of etcd find each other, and who says which are gone.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "etcd")]
pub struct FormationArguments {
    /// The members, by name and address
    #[arg(long, value_name = "NAME=IP,...", value_delimiter = ',', value_parser = member, group = "formation")]
    pub etcd_members: Vec<StaticMember>,
    /// Record in an S3-compatible bucket
    #[arg(long, value_name = "s3://BUCKET/KEY", value_parser = s3, group = "formation", requires = "record_region")]
    pub record: Option<(String, String)>,
    /// Region of the bucket
    #[arg(long, value_name = "REGION", requires = "record")]
    pub record_region: Option<String>,
    /// Endpoint of the bucket [default: https://s3.REGION.amazonaws.com]
    #[arg(long, value_name = "URL", requires = "record")]
    pub record_endpoint: Option<String>,
    /// File with one line ACCESS_KEY_ID:SECRET_ACCESS_KEY [default: the instance's own credentials]
    #[arg(long, value_name = "FILE", requires = "record", value_hint = ValueHint::FilePath)]
    pub record_credentials: Option<PathBuf>,
    /// Record on a web server that honours If-Match and If-None-Match
    #[arg(long, value_name = "URL", group = "formation")]
    pub record_http: Option<String>,
    /// File with the token for --record-http, sent as Authorization: Bearer
    #[arg(long, value_name = "FILE", requires = "record_http", value_hint = ValueHint::FilePath)]
    pub record_token: Option<PathBuf>,
    /// Record in another etcd, by its client URLs
    #[arg(long, value_name = "URL,...", value_delimiter = ',', group = "formation")]
    pub record_etcd: Vec<String>,
    /// Key in the other etcd [default: /kimage/NAME]
    #[arg(long, value_name = "KEY", requires = "record_etcd")]
    pub record_key: Option<String>,
    /// File with the authority of the other etcd [default: the system's roots]
    #[arg(long, value_name = "FILE", requires = "record_etcd", value_hint = ValueHint::FilePath)]
    pub record_ca: Option<PathBuf>,
    /// Record in a file that all members see, by its path on the machines
    #[arg(long, value_name = "PATH", group = "formation")]
    pub record_file: Option<String>,
    /// The instances that exist, the machine's own too; others that were there before it are gone
    #[arg(long, value_name = "ID,...", value_delimiter = ',', group = "inventory")]
    pub instances: Vec<String>,
    /// Signed list of instances on a web server
    #[arg(long, value_name = "URL", group = "inventory")]
    pub inventory_http: Option<String>,
    /// Signed list of instances in a file, by its path on the machines
    #[arg(long, value_name = "PATH", group = "inventory")]
    pub inventory_file: Option<String>,
}

/// `kimage cluster kubeconfig`.
#[derive(Debug, Args)]
#[command(after_help = "\
A client certificate can't be taken back: keep its life short and make a new one each day. The group
kubeadm:cluster-admins may do everything, through a binding in the cluster; system:masters may even where that binding
is gone, so keep it for emergencies.

Examples:
  kimage cluster kubeconfig --dir prod --output prod.kubeconfig && kubectl --kubeconfig prod.kubeconfig get nodes
  kimage cluster kubeconfig --dir prod --user alice --group developers --lifetime 30d --output alice.kubeconfig")]
pub struct ClusterKubeconfig {
    /// Folder that `kimage cluster new` made
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// How long it is valid, as 45m, 8h or 30d
    #[arg(long, value_name = "TIME", default_value = "8h", value_parser = lifetime)]
    pub lifetime: Duration,
    /// Name of the user in the cluster
    #[arg(long, value_name = "NAME", default_value = "kubernetes-admin", value_parser = visible)]
    pub user: String,
    /// Group of the user in the cluster
    #[arg(long, value_name = "NAME", default_value = "kubeadm:cluster-admins", value_parser = visible)]
    pub group: String,
    /// Where the API is [default: the cluster's endpoint]
    #[arg(long, value_name = "HOST:PORT")]
    pub server: Option<Endpoint>,
    /// Where it is written.
    #[command(flatten)]
    pub output: OutputArguments,
}

/// Where a secret text goes.
#[derive(Debug, Clone, Default, Args)]
pub struct OutputArguments {
    /// New file, readable by its owner only [default: standard output]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Replace FILE where it exists
    #[arg(long, requires = "output")]
    pub force: bool,
}

/// A parser of the names of an enumeration of the NodeConfig, so that both speak the same words.
macro_rules! names {
    ($function:ident, $type:ty, [$($name:literal => $value:expr),+]) => {
        fn $function() -> impl TypedValueParser<Value = $type> {
            PossibleValuesParser::new([$($name),+]).map(|name| match name.as_str() {
                $($name => $value,)+
                _ => unreachable!("the parser gives no other name"),
            })
        }
    };
}

names!(layouts, EtcdLayout, ["stacked" => EtcdLayout::Stacked, "external" => EtcdLayout::External]);
names!(plugins, NetworkPlugin, ["flannel" => NetworkPlugin::Flannel, "none" => NetworkPlugin::None]);
names!(backends, FlannelBackend, ["vxlan" => FlannelBackend::Vxlan, "host-gw" => FlannelBackend::HostGw]);
names!(roles, NodeRole, [
    "control-plane" => NodeRole::ControlPlane, "etcd" => NodeRole::Etcd, "worker" => NodeRole::Worker
]);

/// `45m`, `8h`, `30d`.
pub(super) fn lifetime(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time such as 45m, 8h or 30d");
    let (at, unit) = text.char_indices().last().ok_or_else(wrong)?;
    let unit = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..at].parse().map_err(|_| wrong())?;
    let seconds = number
        .checked_mul(unit)
        .filter(|seconds| (1..=100 * 366 * 86_400).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

fn member(text: &str) -> Result<StaticMember, String> {
    let wrong = || format!("`{text}` is not NAME=IP");
    let (name, address) = text.split_once('=').ok_or_else(wrong)?;
    Ok(StaticMember {
        name: name.to_owned(),
        address: address.parse().map_err(|_| wrong())?,
    })
}

fn s3(text: &str) -> Result<(String, String), String> {
    let place = text.strip_prefix("s3://").and_then(|place| place.split_once('/'));
    match place {
        Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => {
            Ok((bucket.to_owned(), key.to_owned()))
        }
        _ => Err(format!("`{text}` is not s3://BUCKET/KEY")),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let parts = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
    Ok((parts.0.to_owned(), parts.1.to_owned()))
}

/// A name of a user or group.
fn visible(text: &str) -> Result<String, String> {
    let visible = !text.is_empty() && text.len() <= 253 && !text.contains(char::is_control);
    visible
        .then(|| text.to_owned())
        .ok_or_else(|| "a name has 1 to 253 bytes and no control characters".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_wrong_ones_refused() {
        assert_eq!(lifetime("8h"), Ok(Duration::from_secs(28_800)));
        assert_eq!(lifetime("30d"), Ok(Duration::from_secs(2_592_000)));
        for wrong in ["", "h", "8", "0h", "-1h", "1.5h", "99999999d", "8ä"] {
            assert!(lifetime(wrong).is_err(), "{wrong}");
        }
        assert_eq!(member("a=::1").unwrap().address.to_string(), "::1");
        assert!(member("a").is_err() && member("a=b").is_err());
        assert_eq!(s3("s3://b/a/c"), Ok(("b".to_owned(), "a/c".to_owned())));
        assert!(s3("s3://b").is_err() && s3("s3://b/").is_err() && s3("https://b/c").is_err());
        assert_eq!(label("a="), Ok(("a".to_owned(), String::new())));
        assert!(label("a").is_err() && visible("").is_err() && visible("a\nb").is_err());
    }
}
