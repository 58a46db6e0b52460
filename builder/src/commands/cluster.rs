//! `kimage cluster`.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use kimage_roles::node_config::{
    Certificates, Cluster as ClusterSection, Credentials, Formation, Inventory, Network, NodeRole,
    RecordStore, Timing,
};
use kimage_roles::secret::Secret;

use super::{Context, playground, print};
use crate::cli::{
    Cluster, ClusterKubeconfig, ClusterNew, ClusterUserData, FormationArguments, OutputArguments,
};
use crate::cluster::{
    Description, EtcdSection, Folder, KubeconfigOrder, Order, create, kubeconfig, user_data,
};
use crate::failure::{ExitCode, Failure};
use crate::private;
use crate::progress::bytes;

mod warnings;

/// What the smallest platform takes (EC2), in bytes.
const SMALL_USER_DATA: usize = 16 * 1024;
/// No file with a credential is larger, in bytes.
const MAX_CREDENTIAL: u64 = 64 * 1024;

pub(super) fn run(command: &Cluster, context: &Context) -> Result<()> {
    match command {
        Cluster::Up(arguments) => playground::up(arguments, context),
        Cluster::Down(arguments) => playground::down(arguments, context),
        Cluster::Serve(arguments) => playground::serve(arguments),
        Cluster::New(arguments) => new(arguments, context),
        Cluster::UserData(arguments) => document(arguments, context),
        Cluster::Kubeconfig(arguments) => credentials(arguments, context),
    }
}

fn new(arguments: &ClusterNew, context: &Context) -> Result<()> {
    let description = Description {
        cluster: ClusterSection {
            name: arguments.name.clone(),
            endpoint: arguments.endpoint.clone(),
            api_names: arguments.api_name.clone(),
            service_subnet: arguments.service_subnet,
            pod_subnet: arguments.pod_subnet,
            dns_domain: arguments.dns_domain.clone(),
        },
        etcd: EtcdSection {
            layout: arguments.etcd,
        },
        network: Network {
            plugin: arguments.network,
            backend: arguments.flannel_backend,
            ..Network::default()
        },
        timing: Timing::default(),
        certificates: Certificates::default(),
    };
    create(
        &arguments.directory,
        &description,
        SystemTime::now(),
        arguments.token_lifetime,
    )?;
    let folder = arguments.directory.display();
    let progress = &context.progress;
    warnings::new(&Folder::open(&arguments.directory)?, progress)?;
    progress.line(&format!(
        "{folder}: cluster {} at {}: authorities, keys, bootstrap token, cluster.toml",
        arguments.name, arguments.endpoint
    ));
    progress.line(&format!(
        "next: kimage cluster user-data --dir {folder} --role worker"
    ));
    progress.line(&format!(
        "      kimage cluster kubeconfig --dir {folder} --output {}.kubeconfig",
        arguments.name
    ));
    Ok(())
}

fn document(arguments: &ClusterUserData, context: &Context) -> Result<()> {
    let folder = Folder::open(&arguments.dir)?;
    let name = &folder.description.cluster.name;
    let mut order = Order {
        role: arguments.role,
        formation: formation(&arguments.formation, name)?,
        inventory: inventory(&arguments.formation, &folder)?,
        labels: Default::default(),
        taints: arguments.taint.clone(),
    };
    for (key, value) in &arguments.label {
        if order.labels.insert(key.clone(), value.clone()).is_some() {
            bail!(Failure::new(
                ExitCode::Usage,
                format!("label `{key}` stands twice")
            ));
        }
    }
    let role = arguments.role.as_str();
    if arguments.role == NodeRole::Worker && (order.formation.is_some() || order.inventory.is_some()) {
        bail!(
            Failure::new(ExitCode::Usage, "a worker has nothing to do with etcd")
                .hint("leave out the options under `etcd`")
        );
    }
    if arguments.role != NodeRole::Worker && order.formation.is_none() {
        bail!(
            Failure::new(
                ExitCode::Usage,
                format!("role {role} must know how members of etcd find each other")
            )
            .hint("add --etcd-members NAME=IP,... or --record s3://BUCKET/KEY --record-region REGION")
        );
    }
    let text = user_data(&folder, &order)?;
    warnings::user_data(&folder, arguments.role, &context.progress)?;
    let size = text.reveal().len();
    if size > SMALL_USER_DATA {
        context.progress.warn(&format!(
            "this NodeConfig has {}, and some platforms take {} of user-data (EC2) or 64 KiB (Azure, OpenStack)",
            bytes(size as u64),
            bytes(SMALL_USER_DATA as u64)
        ));
    }
    write(&text, &arguments.output, context)
}

fn credentials(arguments: &ClusterKubeconfig, context: &Context) -> Result<()> {
    let folder = Folder::open(&arguments.dir)?;
    let order = KubeconfigOrder {
        user: arguments.user.clone(),
        group: arguments.group.clone(),
        lifetime: arguments.lifetime,
        server: arguments.server.clone(),
    };
    let text = kubeconfig(&folder, &order, SystemTime::now())?;
    write(&text, &arguments.output, context)
}

fn write(text: &Secret, output: &OutputArguments, context: &Context) -> Result<()> {
    let Some(path) = &output.output else {
        return print(text.reveal().as_bytes());
    };
    private::write(path, text.reveal().as_bytes(), output.force)?;
    context
        .progress
        .line(&format!("{}: written, readable by you only", path.display()));
    Ok(())
}

/// What the options say; clap allows one of them at most.
fn formation(arguments: &FormationArguments, cluster: &str) -> Result<Option<Formation>> {
    if !arguments.etcd_members.is_empty() {
        return Ok(Some(Formation::Static(arguments.etcd_members.clone())));
    }
    let record = if let (Some((bucket, key)), Some(region)) = (&arguments.record, &arguments.record_region) {
        let endpoint = arguments.record_endpoint.clone();
        let credentials = arguments
            .record_credentials
            .as_deref()
            .map(access_key)
            .transpose()?;
        RecordStore::S3 {
            endpoint: endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com")),
            region: region.clone(),
            bucket: bucket.clone(),
            key: key.clone(),
            credentials,
        }
    } else if let Some(url) = &arguments.record_http {
        RecordStore::Http {
            url: url.clone(),
            token: arguments.record_token.as_deref().map(line).transpose()?,
        }
    } else if !arguments.record_etcd.is_empty() {
        let key = arguments.record_key.clone();
        RecordStore::Etcd {
            endpoints: arguments.record_etcd.clone(),
            key: key.unwrap_or_else(|| format!("/kimage/{cluster}")),
            ca_certificate: arguments.record_ca.as_deref().map(read).transpose()?,
        }
    } else if let Some(path) = &arguments.record_file {
        RecordStore::File { path: path.clone() }
    } else {
        return Ok(None);
    };
    Ok(Some(Formation::Record(record)))
}

fn inventory(arguments: &FormationArguments, folder: &Folder) -> Result<Option<Inventory>> {
    if !arguments.instances.is_empty() {
        return Ok(Some(Inventory::Static(arguments.instances.clone())));
    }
    let public_key = || folder.text("inventory.pub");
    Ok(if let Some(url) = &arguments.inventory_http {
        let (url, public_key) = (url.clone(), public_key()?);
        Some(Inventory::Http { url, public_key })
    } else if let Some(path) = &arguments.inventory_file {
        let (path, public_key) = (path.clone(), public_key()?);
        Some(Inventory::File { path, public_key })
    } else {
        None
    })
}

fn read(path: &Path) -> Result<String> {
    let context = || Failure::new(ExitCode::Usage, format!("read {}", path.display()));
    let size = fs::metadata(path).with_context(context)?.len();
    if size > MAX_CREDENTIAL {
        bail!("{} is too large for a credential", path.display());
    }
    fs::read_to_string(path).with_context(context)
}

fn line(path: &Path) -> Result<Secret> {
    Ok(Secret::new(read(path)?.trim()))
}

fn access_key(path: &Path) -> Result<Credentials> {
    let line = line(path)?;
    let Some((id, secret)) = line.reveal().split_once(':') else {
        bail!(Failure::new(
            ExitCode::Usage,
            format!(
                "{} is not one line ACCESS_KEY_ID:SECRET_ACCESS_KEY",
                path.display()
            )
        ));
    };
    Ok(Credentials {
        access_key_id: id.to_owned(),
        secret_access_key: Secret::new(secret),
    })
}
