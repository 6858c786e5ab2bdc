//! Bad input and bad days with k3d: as in [`crate::bad_days`], with a fake `k3d` on a played Docker engine.

use std::collections::BTreeMap;

use crate::bad_days::{BUILD, Project as _, free_port, to_come};
use crate::engine::{Container, Engine};
use crate::harness::Test;

const NETWORK: &str = "network k3d-devenv-dev";
const VOLUME: &str = "volume k3d-devenv-dev-images";

const ENVIRONMENT: &str = "\
provider: k3d
config: k3d.yaml
images: packages
node-image: test.devenv.test/k3s:1
addresses:
  https://raw.githubusercontent.com/argoproj/argo-cd/v3.2.11/manifests/install.yaml: https://test.devenv.test/install.yaml
";

/// Says its version; makes the node, where the engine has one to come, and fails.
const FAILS: &str = r#"
[ "$1" != version ] || { echo "k3d version v5.8.3"; exit; }
touch "$ENGINE/k3d-devenv-dev-server-0"
echo "INFO[0000] Prep: Network" >&2
echo "FATA[0001] Cluster creation FAILED, rollback deactivated." >&2
exit 1"#;

fn project() -> Test {
    Test::new()
        .tool("git")
        .file("cluster-configs/dev.yaml", ENVIRONMENT)
        .file(
            "cluster-configs/k3d.yaml",
            &config(free_port(), free_port()),
        )
        .script("scripts/packages/build", BUILD)
        .bundle("infrastructure/namespaces", "wave: 1\nnamespace: default\n")
}

fn config(http: u16, https: u16) -> String {
    format!(
        "apiVersion: k3d.io/v1alpha5\nkind: Simple\nkubeAPI: {{hostIP: \"127.0.0.1\"}}\nports:\n  \
         - {{port: \"127.0.0.1:{http}:80\", nodeFilters: [\"server:0:direct\"]}}\n  \
         - {{port: \"127.0.0.1:{https}:443\", nodeFilters: [\"server:0:direct\"]}}\n"
    )
}

fn node(test: &Test) -> Container {
    Container {
        image: "test.devenv.test/k3s:1".to_owned(),
        ..Container::k3d_node("devenv-dev", &test.id())
    }
}

/// The container that k3d makes for a moment; it carries no label of ours.
fn tools() -> Container {
    let node = Container::k3d_node("devenv-dev", "");
    let mut labels = node.labels;
    labels.remove("devenv.environment");
    labels.insert("k3d.role".to_owned(), "noRole".to_owned());
    Container {
        name: "k3d-devenv-dev-tools".to_owned(),
        labels,
        ports: Vec::new(),
        ..node
    }
}

/// The labels of the network and the volume that an environment makes for k3d.
fn marked(id: &str) -> BTreeMap<String, String> {
    [
        ("app", "k3d"),
        ("k3d.cluster", "devenv-dev"),
        ("devenv.environment", id),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn told(test: &Test, args: &[&str]) -> String {
    test.clone()
        .args(args.iter().copied())
        .start()
        .wait()
        .transcript()
}

#[test]
fn k3d_is_not_there() {
    let engine = Engine::start();
    let test = project().docker(&engine);
    insta::assert_snapshot!(told(&test, &["up"]), @r"
    --- stderr
    error: k3d is not on PATH

    hint: scripts/up installs it (built from its Go module, checked against go.sum); or: brew install k3d, or: go install github.com/k3d-io/k3d/v5@v5.8.3
    --- status 1
    ");
    assert_eq!(test.calls("build"), [""; 0]);
}

#[test]
fn k3d_is_too_old() {
    let engine = Engine::start();
    let test = project()
        .docker(&engine)
        .fake("k3d", "echo 'k3d version v5.4.9'");
    insta::assert_snapshot!(told(&test, &["up"]), @r"
    --- stderr
    error: [temp]/bin/k3d is too old: it says `k3d version v5.4.9`, and devenv needs 5.8.3 or newer

    hint: scripts/up installs it (built from its Go module, checked against go.sum); or: brew install k3d, or: go install github.com/k3d-io/k3d/v5@v5.8.3
    --- status 1
    ");
    assert_eq!(test.calls("k3d"), ["k3d version"]);
    assert!(engine.world().things.is_empty());
}

#[test]
fn k3d_fails() {
    let engine = Engine::start();
    let test = project().docker(&engine).fake("k3d", FAILS);
    engine.world().containers.push(to_come(Container {
        state: "created".to_owned(),
        ..node(&test)
    }));
    insta::assert_snapshot!(told(&test, &["up", "--quiet"]), @r"
    --- stderr
    error: create the cluster devenv-dev: `TMPDIR=[scratch] K3D_IMAGE_TOOLS=ghcr.io/k3d-io/k3d-tools:5.8.3 [temp]/bin/k3d cluster create devenv-dev --no-rollback --config [temp]/project/cluster-configs/k3d.yaml --image test.devenv.test/k3s:1 --network k3d-devenv-dev --runtime-label devenv.environment=[id]@all --kubeconfig-update-default=false --kubeconfig-switch-context=false --no-lb` failed (exit status 1)
      | INFO[0000] Prep: Network
      | FATA[0001] Cluster creation FAILED, rollback deactivated.

    hint: what k3d made is kept: `docker logs k3d-devenv-dev-server-0` shows how far it came, `devenv up --environment dev` makes it anew, `devenv down --environment dev` removes it
    --- status 1
    ");
    // What was made before k3d started is ours and known as ours, whatever k3d did.
    let things = engine.world().things.clone();
    assert_eq!(things.keys().collect::<Vec<_>>(), [NETWORK, VOLUME]);
    assert!(things.values().all(|labels| *labels == marked(&test.id())));

    insta::assert_snapshot!(told(&test, &["status"]), @r"
    environment  dev
    cluster      devenv-dev (k3d), half-made: node k3d-devenv-dev-server-0 was never started; devenv up makes it anew
    --- stderr
    --- status 1
    ");
    insta::assert_snapshot!(told(&test, &["up", "--quiet"]), @r"
    --- stderr
    the cluster devenv-dev is half-made (node k3d-devenv-dev-server-0 was never started): it is made anew
    error: create the cluster devenv-dev: `TMPDIR=[scratch] K3D_IMAGE_TOOLS=ghcr.io/k3d-io/k3d-tools:5.8.3 [temp]/bin/k3d cluster create devenv-dev --no-rollback --config [temp]/project/cluster-configs/k3d.yaml --image test.devenv.test/k3s:1 --network k3d-devenv-dev --runtime-label devenv.environment=[id]@all --kubeconfig-update-default=false --kubeconfig-switch-context=false --no-lb` failed (exit status 1)
      | INFO[0000] Prep: Network
      | FATA[0001] Cluster creation FAILED, rollback deactivated.

    hint: what k3d made is kept: `docker logs k3d-devenv-dev-server-0` shows how far it came, `devenv up --environment dev` makes it anew, `devenv down --environment dev` removes it
    --- status 1
    ");
    engine.world().containers.push(Container {
        state: "created".to_owned(),
        ..node(&test)
    });
    insta::assert_snapshot!(told(&test, &["down", "--quiet"]), @r"
    --- stderr
    dev is gone
    --- status 0
    ");
    assert!(engine.world().containers.is_empty() && engine.world().things.is_empty());
}

#[test]
fn a_variable_does_not_stand_above_the_config() {
    let engine = Engine::start();
    let test = project()
        .docker(&engine)
        .fake(
            "k3d",
            &FAILS.replace("touch", "env | grep ^K3D_KUBE >&2; touch"),
        )
        .env("K3D_KUBEAPI_HOSTIP", "0.0.0.0");
    insta::assert_snapshot!(told(&test, &["up", "--quiet"]), @r"
    --- stderr
    error: create the cluster devenv-dev: `env -u K3D_KUBEAPI_HOSTIP TMPDIR=[scratch] K3D_IMAGE_TOOLS=ghcr.io/k3d-io/k3d-tools:5.8.3 [temp]/bin/k3d cluster create devenv-dev --no-rollback --config [temp]/project/cluster-configs/k3d.yaml --image test.devenv.test/k3s:1 --network k3d-devenv-dev --runtime-label devenv.environment=[id]@all --kubeconfig-update-default=false --kubeconfig-switch-context=false --no-lb` failed (exit status 1)
      | INFO[0000] Prep: Network
      | FATA[0001] Cluster creation FAILED, rollback deactivated.

    hint: what k3d made is kept: `docker logs k3d-devenv-dev-server-0` shows how far it came, `devenv up --environment dev` makes it anew, `devenv down --environment dev` removes it
    --- status 1
    ");
}

#[test]
fn k3d_was_killed_before_it_made_a_node() {
    let engine = Engine::start();
    let test = project().docker(&engine);
    let id = test.id();
    engine
        .world()
        .things
        .insert(NETWORK.to_owned(), marked(&id));
    insta::assert_snapshot!(told(&test, &["status"]), @r"
    environment  dev
    cluster      devenv-dev (k3d), half-made: k3d was stopped before it made a node; devenv up makes it anew
    --- stderr
    --- status 1
    ");

    // Its tools container belongs to whom the network belongs.
    engine.world().things.insert(VOLUME.to_owned(), marked(&id));
    engine.world().containers.push(tools());
    insta::assert_snapshot!(told(&test, &["status"]), @r"
    environment  dev
    cluster      devenv-dev (k3d), half-made: k3d was stopped before it made a node; devenv up makes it anew
    --- stderr
    --- status 1
    ");
    insta::assert_snapshot!(told(&test, &["down"]), @r"
    --- stderr
    [time] cluster
    [time] cluster: removed 1 container and its volumes, and the network ([time])
    [time] names
    [time] names: unchanged, none in the hosts file ([time])
    [time] files
    [time] files: unchanged, none ([time])

      phase     start     end    took  outcome
    ✓ cluster  [time]  [time]  [time]  done
    = names  [time]  [time]  [time]  unchanged
    = files  [time]  [time]  [time]  unchanged

    dev is gone
    --- status 0
    ");
    assert!(engine.world().containers.is_empty() && engine.world().things.is_empty());
    insta::assert_snapshot!(told(&test, &["down", "--quiet"]), @r"
    --- stderr
    nothing to remove: dev isn't there
    --- status 0
    ");
}

#[test]
fn its_load_balancer_is_gone() {
    let engine = Engine::start();
    let test = project().docker(&engine);
    let id = test.id();
    engine
        .world()
        .things
        .insert(NETWORK.to_owned(), marked(&id));
    engine.world().containers.push(Container {
        ports: Vec::new(),
        ..node(&test)
    });
    insta::assert_snapshot!(told(&test, &["status"]), @r"
    environment  dev
    cluster      devenv-dev (k3d), half-made: it has no control plane that publishes its API server; devenv up makes it anew
    --- stderr
    --- status 1
    ");
}

#[test]
fn what_somebody_else_made_is_left_alone_by_every_command() {
    let commands = [
        vec!["up"],
        vec!["up", "--plan"],
        vec!["down"],
        vec!["reset"],
        vec!["sync"],
        vec!["status"],
        vec!["check"],
    ];
    let engine = Engine::start();
    let test = project().docker(&engine).fake("k3d", FAILS);
    let theirs = Container::k3d_node("devenv-dev", "another");
    engine.world().containers.push(theirs);
    insta::assert_snapshot!(told(&test, &["up"]), @r"
    --- stderr
    error: a k3d cluster named devenv-dev exists that this environment didn't make (its containers lack the label devenv.environment=[id])

    hint: if nobody needs it: k3d cluster delete devenv-dev; else give this environment another name by renaming [temp]/project/cluster-configs/dev.yaml
    --- status 1
    ");
    let all_say = |first: &str| {
        for command in &commands {
            let said = told(&test, command);
            let error = said.split_once("error: ").unwrap().1;
            assert_eq!(error, first.split_once("error: ").unwrap().1, "{command:?}");
        }
    };
    all_say(&told(&test, &["up"]));
    assert_eq!(engine.world().containers.len(), 1);

    engine.world().containers.clear();
    for (thing, what) in [(NETWORK, "network"), (VOLUME, "volume")] {
        engine.world().things = [(thing.to_owned(), BTreeMap::new())].into();
        let first = told(&test, &["up"]);
        match what {
            "network" => insta::assert_snapshot!(&first, @r"
            --- stderr
            error: a network named k3d-devenv-dev exists that this environment didn't make (it lacks the label devenv.environment=[id])

            hint: if nobody needs it: docker network rm k3d-devenv-dev; else give this environment another name by renaming [temp]/project/cluster-configs/dev.yaml
            --- status 1
            "),
            _ => insta::assert_snapshot!(&first, @r"
            --- stderr
            error: a volume named k3d-devenv-dev-images exists that this environment didn't make (it lacks the label devenv.environment=[id])

            hint: if nobody needs it: docker volume rm k3d-devenv-dev-images; else give this environment another name by renaming [temp]/project/cluster-configs/dev.yaml
            --- status 1
            "),
        }
        all_say(&first);
        assert_eq!(engine.world().things.len(), 1);
    }
    // A tools container alone says nothing about whose it is.
    engine.world().things.clear();
    engine.world().containers.push(tools());
    assert!(told(&test, &["down"]).contains("that this environment didn't make"));
    assert_eq!(test.calls("k3d"), [""; 0]);
}

#[test]
fn a_config_that_names_what_devenv_must_own() {
    let engine = Engine::start();
    let test = project().docker(&engine).file(
        "cluster-configs/k3d.yaml",
        "apiVersion: k3d.io/v1alpha5\nkind: Simple\nnetwork: mine\nports:\n  - {port: \"80:80\", nodeFilters: [loadbalancer]}\n  \
         - {port: \"443:443\", nodeFilters: [\"server:0:direct\"]}\n",
    );
    insta::assert_snapshot!(told(&test, &["up"]), @r#"
    --- stderr
    error: cluster-configs/k3d.yaml:3:1: `network` is devenv's own: it makes the cluster's network, so that it knows it as its own
      |
    3 | network: mine
      | ^
    hint: leave the key out; Docker's `default-address-pools` say which addresses it takes

    error: cluster-configs/k3d.yaml:5:34: this port leads through k3d's load balancer, which devenv leaves out
      |
    5 |   - {port: "80:80", nodeFilters: [loadbalancer]}
      |                                  ^
    hint: write `nodeFilters: ["server:0:direct"]`; or ask for the load balancer, which costs six seconds: `options: {k3d: {disableLoadbalancer: false}}`

    error: cluster-configs/k3d.yaml:6:12: this port has no address, and would be reachable from other machines
      |
    6 |   - {port: "443:443", nodeFilters: ["server:0:direct"]}
      |            ^
    hint: write the address first: `127.0.0.1:80:80`

    error: cluster-configs/k3d.yaml: `kubeAPI` names no `hostIP`: the API server would be reachable from other machines
    hint: write `kubeAPI: {hostIP: "127.0.0.1"}`: k3d's default is 0.0.0.0
    --- status 2
    "#);
    assert_eq!(engine.world().requests, [""; 0]);
}

#[test]
fn a_plan_touches_nothing() {
    let engine = Engine::start();
    let test = project()
        .docker(&engine)
        .file("cluster-configs/k3d.yaml", &config(8080, 8443));
    insta::assert_snapshot!(told(&test, &["up", "--plan"]), @r"
    plan for dev (nothing was touched)
      cluster       create devenv-dev from cluster-configs/k3d.yaml: 1 node(s) of test.devenv.test/k3s:1
      port          publish 127.0.0.1:8080
      port          publish 127.0.0.1:8443
      store         fetch test.devenv.test/k3s:1
      store         fetch ghcr.io/k3d-io/k3d-tools:5.8.3
      store         fetch quay.io/argoproj/argocd:v3.2.11
      store         fetch public.ecr.aws/docker/library/redis:8.2.2-alpine
      store         fetch https://test.devenv.test/install.yaml
      images        load quay.io/argoproj/argocd:v3.2.11 where a node lacks it
      images        load public.ecr.aws/docker/library/redis:8.2.2-alpine where a node lacks it
      argo cd       install 3.2.11
      argo cd       push the working tree; applications: namespaces
      kubeconfig    write [temp]/home/.local/share/devenv/environments/[id]/kubeconfig
    --- stderr
    --- status 0
    ");
    let requests = engine.world().requests.clone();
    assert!(
        requests.iter().all(|request| request.starts_with("GET ")),
        "{requests:?}"
    );
}
