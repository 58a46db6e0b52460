//! What people change and delete in a cluster is theirs: no boot of a control plane takes it back, no older machine takes a
//! newer one's objects back, and an upgrade changes only what is still ours. Bench A, with a live API server.
//! About two minutes on a busy host.

#![expect(
    clippy::unwrap_used,
    reason = "what these tests need and do not find ends them"
)]

use std::time::Duration;

use kimage_firstboot::objects::DNS_IMAGE;
use kimage_qemu_tests::cluster::machine::Machine;
use kimage_qemu_tests::cluster::{Cluster, Shape, until};
use kimage_qemu_tests::namespaces::machine::Contained;
use kimage_roles::status::Phase;
use serde_json::{Value, json};

/// For a boot of a machine whose host may be busy.
const BOOT: Duration = Duration::from_secs(300);
/// For a single call.
const SOON: Duration = Duration::from_secs(60);
const ONE: Shape = Shape {
    etcd: 0,
    control_planes: 1,
    workers: 0,
};
const MACHINE: &str = "cp1";
const COREFILE: &str = "/api/v1/namespaces/kube-system/configmaps/coredns";
const COREDNS: &str = "/apis/apps/v1/namespaces/kube-system/deployments/coredns";
const RECORD: &str = "/api/v1/namespaces/kube-system/configmaps/kimage-objects";
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
/// Read by everybody, until somebody hardens the cluster as Kubernetes' documentation says.
const DISCOVERY: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-public/rolebindings/\
                         kubeadm%3Abootstrap-signer-clusterinfo";
/// What bootstrap tokens may read.
const GET_NODES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/kubeadm%3Aget-nodes";

/// A cluster of one control plane.
struct Bench {
    cluster: Cluster<Contained>,
}

impl Bench {
    fn new() -> Self {
        let mut cluster = Cluster::<Contained>::new(ONE).unwrap();
        cluster.machine(MACHINE).start().unwrap();
        let mut bench = Self { cluster };
        bench.await_service();
        bench
    }

    fn await_service(&mut self) {
        self.cluster.wait_for_one(MACHINE, BOOT).unwrap();
    }

    /// The control plane loses its power and comes back.
    fn reboot(&mut self) {
        let machine = self.cluster.machine(MACHINE);
        machine.kill().unwrap();
        machine.start().unwrap();
        self.await_service();
    }

    /// First boot runs again, as at the next boot.
    fn repeat_first_boot(&mut self) {
        let machine = self.cluster.machine(MACHINE);
        machine.repeat_first_boot().unwrap();
        machine.wait_for(Phase::InService, BOOT).unwrap();
    }

    fn get(&self, path: &str) -> Option<Value> {
        until(SOON, path, || self.cluster.get(path)).unwrap()
    }

    /// As `kubectl edit` does: reads an object, changes it, writes all of it.
    fn edit(&self, path: &str, change: impl Fn(&mut Value) + Sync) {
        let api = self.cluster.api().unwrap();
        let write = || {
            self.cluster.network().within(|| {
                let mut object = api.get(path)?.unwrap();
                change(&mut object);
                Ok(api.replace(&format!("{path}?fieldManager=kubectl-edit"), &object)?)
            })
        };
        until(SOON, path, write).unwrap();
    }

    fn delete(&self, path: &str) {
        let api = self.cluster.api().unwrap();
        let delete = || self.cluster.network().within(|| Ok(api.delete(path)?));
        assert!(until(SOON, path, delete).unwrap(), "{path}");
    }

    fn corefile(&self) -> String {
        let object = self.get(COREFILE).unwrap();
        object["data"]["Corefile"].as_str().unwrap().to_owned()
    }

    fn image(&self) -> Value {
        let pointer = "/spec/template/spec/containers/0/image";
        self.get(COREDNS).unwrap().pointer(pointer).unwrap().clone()
    }

    fn tokens(&self) -> Vec<String> {
        let secrets = self.cluster.items(SECRETS).unwrap().into_iter();
        let tokens = secrets.filter(|secret| secret["type"] == "bootstrap.kubernetes.io/token");
        tokens
            .map(|token| token["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Writes what an image of `version` would have noted, each object with `fingerprint` unless it is empty.
    fn pretend(&self, version: &str, fingerprint: &str) {
        self.edit(RECORD, |record| {
            record["data"]["version"] = json!(version);
            let objects = record["data"]["objects"].as_str().unwrap();
            let mut objects: Value = serde_json::from_str(objects).unwrap();
            for value in objects
                .as_object_mut()
                .unwrap()
                .values_mut()
                .filter(|_| !fingerprint.is_empty())
            {
                *value = json!(fingerprint);
            }
            record["data"]["objects"] = json!(objects.to_string());
        });
    }
}

#[test]
fn what_people_change_and_delete_survives_boots_and_upgrades_and_no_older_machine_takes_anything_back() {
    let mut bench = Bench::new();
    let ours = bench.corefile();
    let mine = ours.replace("cache 30", "cache 31");
    let tokens = bench.tokens();
    assert!(ours != mine && tokens.len() == 1, "{tokens:?}");
    bench.edit(COREFILE, |object| object["data"]["Corefile"] = json!(mine));
    let narrow =
        json!([{"apiGroups": [""], "resources": ["nodes"], "resourceNames": ["w1"], "verbs": ["get"]}]);
    bench.edit(GET_NODES, |role| role["rules"] = narrow.clone());
    bench.edit(COREDNS, |deployment| deployment["spec"]["replicas"] = json!(3));
    bench.delete(&format!("{SECRETS}/{}", tokens[0]));
    bench.delete(DISCOVERY);
    let untouched = |bench: &Bench, when: &str| {
        assert_eq!(bench.corefile(), mine, "{when}");
        assert_eq!(bench.get(GET_NODES).unwrap()["rules"], narrow, "{when}");
        assert_eq!(bench.get(COREDNS).unwrap()["spec"]["replicas"], 3, "{when}");
        assert_eq!(bench.tokens(), Vec::<String>::new(), "{when}");
        assert_eq!(bench.get(DISCOVERY), None, "{when}");
    };
    bench.reboot();
    untouched(&bench, "after a power cut");
    println!("a power cut changed nothing");

    // A machine of a newer image was here.
    let newer = "registry.k8s.io/coredns/coredns:v9.9.9";
    bench.pretend("v9.0.0-kimage.1", "");
    bench.edit(COREDNS, |object| {
        object["spec"]["template"]["spec"]["containers"][0]["image"] = json!(newer);
    });
    bench.repeat_first_boot();
    assert_eq!(bench.image(), newer);
    assert_eq!(bench.get(RECORD).unwrap()["data"]["version"], "v9.0.0-kimage.1");
    untouched(&bench, "after a boot of an older machine");
    println!("an older machine took nothing back");

    // The cluster is of an older image, which applied other objects. The service's label is one of ours.
    bench.edit(COREDNS, |object| {
        object["spec"]["template"]["spec"]["containers"][0]["image"] = json!(DNS_IMAGE);
    });
    let service = "/api/v1/namespaces/kube-system/services/kube-dns";
    bench.edit(service, |service| {
        service["metadata"]["labels"]
            .as_object_mut()
            .unwrap()
            .remove("k8s-app");
    });
    bench.pretend("v1.36.0-kimage.1", "sha256:of-another-version");
    bench.repeat_first_boot();
    untouched(&bench, "after an upgrade");
    assert_eq!(
        bench.get(service).unwrap()["metadata"]["labels"]["k8s-app"],
        "kube-dns"
    );
    let record = bench.get(RECORD).unwrap();
    let kept = record["data"]["kept"].as_str().unwrap();
    println!("kept:\n{kept}");
    for field in [
        "ConfigMap kube-system/coredns: .data.Corefile stays as kubectl-edit has it",
        "ClusterRole kubeadm:get-nodes: .rules stays as kubectl-edit has it",
        "Deployment kube-system/coredns: .spec.replicas stays as kubectl-edit has it",
    ] {
        assert!(kept.lines().any(|line| line == field), "{field}");
    }
    assert!(record["data"]["version"].as_str().unwrap().starts_with("v1.36."));
}
