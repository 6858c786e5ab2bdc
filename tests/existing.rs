//! Bad input and bad days with a cluster that is there already: what a user is told, and that nothing is written. The cluster's
//! API server is played, over plain HTTP; there is no Docker.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use serde_json::{Value, json};

use crate::bad_days::{BUILD, Project as _, free_port};
use crate::harness::Test;

/// An API server that is only played: it knows lists of objects and what a user may do, and writes down what is asked of it.
struct Server {
    port: u16,
    world: Arc<Mutex<World>>,
}

#[derive(Default)]
struct World {
    /// Lists by their paths. Any other list is empty.
    lists: BTreeMap<String, Vec<Value>>,
    /// What the user may do, as "create namespaces"; all of it, where nothing is said.
    rights: Option<Vec<String>>,
    /// Every request that could change something.
    writes: Vec<String>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            world: Arc::default(),
        };
        let world = Arc::clone(&server.world);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let world = Arc::clone(&world);
                // A client that goes away is its own affair.
                thread::spawn(move || drop(serve(&stream, &world)));
            }
        });
        server
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn has(&self, list: &str, objects: &[Value]) {
        self.world().lists.insert(list.to_owned(), objects.to_vec());
    }
}

/// Answers requests on one connection.
fn serve(stream: &TcpStream, world: &Mutex<World>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if line.trim_end().is_empty() {
                break;
            }
            let line = line.to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let mut words = request.split_whitespace();
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let body = serde_json::from_slice(&body).unwrap_or_default();
        let (status, answer) = answer(&mut world.lock().unwrap(), (method, path, query), &body);
        let mut stream = stream;
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        )?;
    }
}

fn answer(
    world: &mut World,
    (method, path, query): (&str, &str, &str),
    body: &Value,
) -> (&'static str, String) {
    if path.ends_with("/selfsubjectaccessreviews") {
        let asked = &body["spec"]["resourceAttributes"];
        let text = |key: &str| asked[key].as_str().unwrap_or("");
        let right = format!("{} {}", text("verb"), text("resource"));
        let allowed = match &world.rights {
            None => true,
            Some(rights) => rights.contains(&right),
        };
        let mut review = body.clone();
        review["status"] = json!({"allowed": allowed});
        return ("201 Created", review.to_string());
    }
    if path.starts_with("/v2/") {
        // A registry that has nothing.
        let nothing =
            json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
        return ("404 Not Found", nothing.to_string());
    }
    if method != "GET" {
        world.writes.push(format!("{method} {path}"));
    }
    match path {
        "/readyz" => return ("200 OK", "ok".to_owned()),
        "/version" => {
            let said = [
                "major",
                "minor",
                "gitCommit",
                "gitTreeState",
                "buildDate",
                "goVersion",
                "compiler",
                "platform",
            ];
            let mut version: Value = said
                .iter()
                .map(|key| ((*key).to_owned(), json!("1")))
                .collect();
            version["gitVersion"] = json!("v1.34.4");
            return ("200 OK", version.to_string());
        }
        _ => {}
    }
    let (list, name) = path.rsplit_once('/').unwrap_or_default();
    if let Some(objects) = world.lists.get(list)
        && let Some(object) = objects
            .iter()
            .find(|object| object["metadata"]["name"] == name)
    {
        return ("200 OK", object.to_string());
    }
    // What is known by a name is below what is a list.
    let is_object = world.lists.contains_key(list) || list.ends_with("/namespaces");
    if is_object && !world.lists.contains_key(path) {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": "not found"});
        return ("404 Not Found", status.to_string());
    }
    let mut items = world.lists.get(path).cloned().unwrap_or_default();
    if query.contains("labelSelector=devenv.environment") {
        items.retain(|item| item["metadata"]["labels"]["devenv.environment"].is_string());
    }
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
    ("200 OK", list.to_string())
}

fn object(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

const ENVIRONMENT: &str = "\
provider: existing
context: staging
images: packages
registry: 127.0.0.1:9/platform
addresses:
  https://raw.githubusercontent.com/argoproj/argo-cd/v3.2.11/manifests/install.yaml: https://test.devenv.test/install.yaml
";

const NAMESPACES: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: team}\n";
const CLAIM: &str = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data, namespace: team}\n\
                     spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n";

/// A project with one bundle, that makes a namespace; a kubeconfig with two contexts, of which one leads to the server.
fn project(server: &Server) -> Test {
    let test = Test::new()
        .tool("git")
        .file("cluster-configs/dev.yaml", ENVIRONMENT)
        .script("scripts/packages/build", BUILD)
        .bundle("infrastructure/namespaces", "wave: 1\nnamespace: default\n")
        .file(
            "bundles/infrastructure/namespaces/base/kustomization.yaml",
            "resources: [namespaces.yaml]\n",
        )
        .file(
            "bundles/infrastructure/namespaces/base/namespaces.yaml",
            NAMESPACES,
        );
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "production",
        "contexts": [
            {"name": "production", "context": {"cluster": "production", "user": "me"}},
            {"name": "staging", "context": {"cluster": "staging", "user": "me"}},
        ],
        "clusters": [
            {"name": "production", "cluster": {"server": "http://production.invalid"}},
            {"name": "staging", "cluster": {"server": format!("http://127.0.0.1:{}", server.port)}},
        ],
        "users": [{"name": "me", "user": {"token": "a-token-of-mine"}}],
    });
    let file = test.path("home").join(".kube/config");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, kubeconfig.to_string()).unwrap();
    test
}

fn told(test: &Test, args: &[&str]) -> String {
    test.clone()
        .args(args.iter().copied())
        .start()
        .wait()
        .transcript()
}

#[test]
fn keys_that_say_nothing_are_refused_at_their_places() {
    let server = Server::start();
    let test = project(&server).file(
        "cluster-configs/dev.yaml",
        "provider: existing\nconfig: kind.yaml\nnode-image: a:1\nimages: packages\nregistry: platform\n",
    );
    insta::assert_snapshot!(told(&test, &["up"]), @r"
    --- stderr
    error: cluster-configs/dev.yaml:2:1: `config` is for kind and k3d, which make nodes: those of an existing cluster are there already
      |
    2 | config: kind.yaml
      | ^
    hint: take it out

    error: cluster-configs/dev.yaml:3:1: `node-image` is for kind and k3d, which make nodes: those of an existing cluster are there already
      |
    3 | node-image: a:1
      | ^
    hint: take it out

    error: cluster-configs/dev.yaml:1:1: the key `context` is missing
      |
    1 | provider: existing
      | ^

    error: cluster-configs/dev.yaml:5:11: `platform` is no place in a registry: its host has neither a dot nor a port, expected its host and a path, such as `registry.example.org/platform`
      |
    5 | registry: platform
      |           ^
    --- status 2
    ");
    let test = test
        .file(
            "cluster-configs/dev.yaml",
            "provider: kind\nconfig: kind.yaml\nnode-image: kindest/node:v1.34.3\nimages: registry\ncontext: staging\n",
        )
        .publishing(free_port(), free_port());
    insta::assert_snapshot!(told(&test, &["up"]), @r"
    --- stderr
    error: cluster-configs/dev.yaml:5:1: `context` is for `provider: existing`
      |
    5 | context: staging
      | ^
    hint: take it out, or write `provider: existing` for a cluster that is there already
    --- status 2
    ");
    let test = test.file(
        "cluster-configs/dev.yaml",
        "provider: existing\ncontext: staging\nimages: packages\n",
    );
    insta::assert_snapshot!(told(&test, &["up"]), @r"
    --- stderr
    error: cluster-configs/dev.yaml:3:9: images that are built from packages are in no registry, and this cluster's nodes pull from one
      |
    3 | images: packages
      |         ^
    hint: name a registry of yours, `registry: registry.example.org/platform`; `devenv images push` fills it
    --- status 2
    ");
}

#[test]
fn a_context_that_has_vanished() {
    let server = Server::start();
    let test = project(&server).file(
        "cluster-configs/dev.yaml",
        &ENVIRONMENT.replace("context: staging", "context: stagin"),
    );
    for command in ["up", "down", "check"] {
        insta::allow_duplicates! {
            insta::assert_snapshot!(told(&test, &[command, "--quiet"]), @r"
            --- stderr
            error: cluster-configs/dev.yaml:2:10: there is no whole context `stagin` in ~/.kube/config
              |
            2 | context: stagin
              |          ^
            hint: did you mean `staging`?
            --- status 2
            ");
        }
    }
    fs::remove_file(test.path("home").join(".kube/config")).unwrap();
    insta::assert_snapshot!(told(&test, &["up"]), @r#"
    --- stderr
    [time] cluster
    [time] cluster: the cluster of the context stagin
    [time] cluster: failed ([time])
    error: cluster-configs/dev.yaml:2:10: can't read the kubeconfig ~/.kube/config: failed to read kubeconfig from '"[temp]/home/.kube/config"': No such file or directory (os error 2)
      |
    2 | context: stagin
      |          ^
    hint: set KUBECONFIG, or name the file here: `kubeconfig: PATH`
    --- status 2
    "#);
    assert_eq!(server.world().writes, [""; 0]);
}

#[test]
fn a_cluster_that_does_not_answer() {
    let gone = Server {
        port: free_port(),
        world: Arc::default(),
    };
    let test = project(&gone);
    let told = told(&test, &["up"]).replace(&gone.port.to_string(), "[port]");
    insta::assert_snapshot!(told, @r"
    --- stderr
    [time] cluster
    [time] cluster: the cluster of the context staging
    [time] cluster: failed ([time])
    error: the cluster of the context staging can't be used: ask the API server whether it is ready: ServiceError: client error (Connect): client error (Connect): tcp connect error: Connection refused (os error 111)

    hint: kubectl --context staging get --raw /readyz shows whether it is there and lets you in
    --- status 1
    ");
}

#[test]
fn each_missing_right_is_named() {
    let server = Server::start();
    server.world().rights = Some(
        [
            "list namespaces",
            "get namespaces",
            "create namespaces",
            "patch namespaces",
            "list nodes",
            "list services",
        ]
        .map(str::to_owned)
        .to_vec(),
    );
    let test = project(&server);
    insta::assert_snapshot!(told(&test, &["up", "--yes", "--quiet"]), @r"
    --- stderr
    error: in the cluster of the context staging this user has no right to
      delete namespaces
      list, get, create, patch, delete customresourcedefinitions (apiextensions.k8s.io)
      list, get, create, patch, delete, escalate, bind clusterroles (rbac.authorization.k8s.io)
      list, get, create, patch, delete clusterrolebindings (rbac.authorization.k8s.io)
      list storageclasses (storage.k8s.io)
      get, list, watch pods
      get, create, patch secrets
      get, create, patch, delete deployments (apps) in argocd
      get, create, patch, delete statefulsets (apps) in argocd
      get, create, patch, delete services in argocd
      get, create, patch, delete configmaps in argocd
      get, create, patch, delete serviceaccounts in argocd
      get, create, patch, delete roles (rbac.authorization.k8s.io) in argocd
      get, create, patch, delete rolebindings (rbac.authorization.k8s.io) in argocd
      get, create, patch, delete networkpolicies (networking.k8s.io) in argocd
      create pods/portforward in argocd
      list, watch, get, create, patch, delete applications (argoproj.io) in argocd
      get, create, patch, delete applicationsets (argoproj.io) in argocd
      get, create, patch, delete appprojects (argoproj.io) in argocd

    hint: whoever runs the cluster can give them, for instance by `kubectl --context staging create clusterrolebinding devenv --clusterrole cluster-admin --user NAME`; `kubectl --context staging auth whoami` says the NAME
    --- status 1
    ");
    assert_eq!(server.world().writes, [""; 0]);
}

#[test]
fn what_others_made_is_left_to_them() {
    let server = Server::start();
    let test = project(&server);
    // An Argo CD of somebody's.
    server.has("/api/v1/namespaces", &[object("argocd")]);
    server.has(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        &[
            object("applications.argoproj.io"),
            object("rollouts.argoproj.io"),
        ],
    );
    insta::assert_snapshot!(told(&test, &["up", "--yes", "--quiet"]), @r"
    --- stderr
    error: in the cluster of the context staging is an Argo CD that this environment didn't make: Namespace argocd, CustomResourceDefinition applications.argoproj.io

    hint: use another cluster, or take that Argo CD out first; `kubectl --context staging get namespace argocd --show-labels` says whose it is
    --- status 1
    ");
    // Another environment's.
    let mut argocd = object("argocd");
    argocd["metadata"]["labels"] = json!({"devenv.environment": "ba9876543210"});
    server.has("/api/v1/namespaces", &[argocd]);
    server.has(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        &[],
    );
    insta::assert_snapshot!(told(&test, &["up", "--yes", "--quiet"]), @r"
    --- stderr
    error: in the cluster of the context staging is an Argo CD that another environment of devenv's made: Namespace argocd

    hint: use another cluster, or take that Argo CD out first; `kubectl --context staging get namespace argocd --show-labels` says whose it is
    --- status 1
    ");
    // A namespace.
    server.has("/api/v1/namespaces", &[object("default"), object("team")]);
    insta::assert_snapshot!(told(&test, &["up", "--yes", "--quiet"]), @r"
    --- stderr
    error: in the cluster of the context staging are namespaces of the bundles' that this environment didn't make: team

    hint: give yours other names in the bundles; or hand one over to this environment, with all that is in it, which `devenv down` then removes: `kubectl --context staging label namespace team devenv.environment=[id]`
    --- status 1
    ");
    assert_eq!(server.world().writes, [""; 0]);
}

#[test]
fn volumes_that_the_cluster_cannot_make() {
    let server = Server::start();
    let claim = "bundles/infrastructure/namespaces/base/namespaces.yaml";
    let test = project(&server).file(claim, &format!("{NAMESPACES}---\n{CLAIM}"));
    insta::assert_snapshot!(told(&test, &["up", "--yes", "--quiet"]), @r"
    --- stderr
    error: the bundles need volumes, and the cluster of the context staging has no default StorageClass: it has none at all

    hint: whoever runs the cluster has to give it one; then: kubectl --context staging get storageclass
    --- status 1
    ");
    server.has(
        "/apis/storage.k8s.io/v1/storageclasses",
        &[object("fast"), object("slow")],
    );
    insta::assert_snapshot!(told(&test, &["up", "--plan"]), @r"
    --- stderr
    error: the bundles need volumes, and the cluster of the context staging has no default StorageClass: it has fast, slow

    hint: name one of those in the bundle; or make one the default: kubectl --context staging annotate storageclass fast storageclass.kubernetes.io/is-default-class=true
    --- status 1
    ");
    let named = CLAIM.replace("spec: {", "spec: {storageClassName: quick, ");
    let test = test.file(claim, &format!("{NAMESPACES}---\n{named}"));
    insta::assert_snapshot!(told(&test, &["up", "--yes", "--quiet"]), @r"
    --- stderr
    error: the bundles need volumes, and the cluster of the context staging has no StorageClass quick: it has fast, slow

    hint: name one of those in the bundle; or make one the default: kubectl --context staging annotate storageclass fast storageclass.kubernetes.io/is-default-class=true
    --- status 1
    ");
    assert_eq!(server.world().writes, [""; 0]);
}

#[test]
fn a_registry_that_lacks_the_images() {
    let server = Server::start();
    let registry = format!("127.0.0.1:{}", server.port);
    let test = project(&server).file(
        "cluster-configs/dev.yaml",
        &ENVIRONMENT.replace("127.0.0.1:9", &registry),
    );
    let told = told(&test, &["up", "--yes", "--quiet"]).replace(&registry, "[registry]");
    insta::assert_snapshot!(told, @r"
    --- stderr
    error: the registry lacks images: [registry]/platform/quay.io/argoproj/argocd:v3.2.11, [registry]/platform/public.ecr.aws/docker/library/redis:8.2.2-alpine

    hint: devenv images push --environment dev
    --- status 1
    ");
    assert_eq!(server.world().writes, [""; 0]);
}

#[test]
fn nothing_is_written_without_a_yes() {
    let server = Server::start();
    let test = project(&server);
    insta::assert_snapshot!(told(&test, &["up", "--quiet"]), @r"
    --- stderr
    whether 127.0.0.1:9/platform has the images can't be seen from here: error sending request for url (http://127.0.0.1:9/v2/platform/quay.io/argoproj/argocd/manifests/v3.2.11): client error (Connect): tcp connect error: Connection refused (os error 111)
    error: this would write into the cluster of the context staging, which isn't devenv's own, and there is nobody to ask

    hint: see what it would do: `devenv up --plan --environment dev`; and if that is meant: devenv up --yes --environment dev
    --- status 2
    ");
    insta::assert_snapshot!(told(&test, &["up", "--plan"]), @r"
    plan for dev (nothing was touched)
      cluster       use that of the context staging: Kubernetes v1.34.4, 0 node(s); it is neither made nor removed
      namespaces    create argocd, team
      argo cd       install 3.2.11; what it syncs may be anything in the cluster, so it has all rights
      applications  push the working tree; namespaces
      images        pulled by the nodes from 127.0.0.1:9/platform, which `devenv images push` fills
      storage       none that can be seen in the bundles' own files
      kubeconfig    write [temp]/home/.local/share/devenv/environments/[id]/kubeconfig
      down          `devenv down` removes what this makes, and nothing else
    --- stderr
    --- status 0
    ");

    let running = test.clone().args(["up"]).terminal(140, 40).start();
    running.wait_until_it_says(&["[y/N]"]);
    running.type_in("n\n");
    let ran = running.wait();
    assert_eq!(ran.status, 2);
    assert!(
        ran.screen()
            .contains("error: not begun: nothing was written into the cluster"),
        "{}",
        ran.screen()
    );
    assert_eq!(server.world().writes, [""; 0]);
}

#[test]
fn the_doctor_asks_the_cluster_and_no_docker() {
    let server = Server::start();
    let test = project(&server);
    let doctor = || {
        let ran = test.clone().args(["doctor", "-o", "json"]).start().wait();
        let findings: Vec<Value> = serde_json::from_str(&ran.stdout).unwrap();
        assert!(findings.iter().all(|finding| finding["name"] != "docker"));
        let cluster = findings
            .iter()
            .find(|finding| finding["name"] == "cluster")
            .unwrap();
        test.redacted(&cluster.to_string())
    };
    insta::assert_snapshot!(doctor(), @r#"{"name":"cluster","remedy":null,"saw":"staging: Kubernetes v1.34.4, 0 node(s), with all the rights and volumes that are needed","severity":"fine"}"#);
    server.has("/api/v1/namespaces", &[object("argocd")]);
    insta::assert_snapshot!(doctor(), @r#"{"name":"cluster","remedy":"kubectl --context staging get namespace argocd --show-labels","saw":"in the cluster of the context staging is an Argo CD that this environment didn't make: Namespace argocd","severity":"blocks"}"#);
}

#[test]
fn what_needs_nodes_of_ours_is_refused() {
    let server = Server::start();
    let test = project(&server);
    for args in [
        &["reset"][..],
        &["snapshot", "list"],
        &["snapshot", "save", "before"],
        &["down", "--keep"],
    ] {
        let told = told(&test, args);
        assert!(
            told.contains("aren't devenv's: the cluster of the context staging"),
            "{told}"
        );
        assert!(
            told.contains("hint: ") && told.ends_with("status 2"),
            "{told}"
        );
    }
    assert_eq!(server.world().writes, [""; 0]);
}

#[test]
fn where_it_is_not_there_is_nothing_to_see_or_to_remove() {
    let server = Server::start();
    server.has("/api/v1/namespaces", &[object("default")]);
    let test = project(&server);
    insta::assert_snapshot!(told(&test, &["down", "--quiet"]), @r"
    --- stderr
    nothing to remove: dev isn't there
    --- status 0
    ");
    insta::assert_snapshot!(told(&test, &["list"]), @r"
    environment  provider  state   age  size  file
    dev          existing  absent  -    -     cluster-configs/dev.yaml
    --- stderr
    [time] those on this machine can't be listed: Docker isn't installed: nothing is at unix://[temp]/no-docker.sock, and there is no `docker` on PATH
    --- status 0
    ");
    insta::assert_snapshot!(told(&test, &["check", "--quiet"]), @r"
    --- stderr
    error: the platform of dev isn't in the cluster of the context staging

    hint: devenv up --environment dev
    --- status 1
    ");
    insta::assert_snapshot!(told(&test, &["hosts", "show"]), @r"
    --- stderr
    error: the platform of dev isn't in the cluster of the context staging

    hint: devenv up --environment dev
    --- status 1
    ");
    let test = test.file(
        "cluster-configs/dev.yaml",
        "provider: existing\ncontext: staging\nimages: registry\n",
    );
    insta::assert_snapshot!(told(&test, &["images", "push"]), @r"
    --- stderr
    error: dev names no registry to push to

    hint: with `provider: existing`, write `registry: registry.example.org/platform` into [temp]/project/cluster-configs/dev.yaml
    --- status 2
    ");
    assert_eq!(server.world().writes, [""; 0]);
}
