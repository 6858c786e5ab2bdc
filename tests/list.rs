//! Several environments: all of them are listed, and none takes what is another's.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use base64::Engine as _;

use crate::engine::{Answer, Container, Engine};
use crate::harness::{Test, wait_for};

const ENVIRONMENT: &str =
    "provider: kind\nconfig: kind.yaml\nimages: packages\nnode-image: test.devenv.test/node:1\n";

fn project() -> Test {
    Test::new()
        .tool("git")
        .fake("kind", "")
        .copy("bundles")
        .copy("cluster-configs")
        .file("cluster-configs/dev.yaml", ENVIRONMENT)
        .file("cluster-configs/packages.yaml", ENVIRONMENT)
}

trait Project {
    fn id(&self, environment: &str) -> String;
    fn node(&self, environment: &str, seconds: u64) -> Container;
    fn labelled(&self, environment: &str) -> Container;
    fn elsewhere(&self, name: &str, id: &str, is_there: bool) -> Container;
    fn node_of(&self, file: &Path, name: &str, id: &str) -> Container;
}

impl Project for Test {
    fn id(&self, environment: &str) -> String {
        let test = self.clone().args(["kubeconfig", "-e", environment]);
        let path = test.start().wait().stdout;
        path.trim_end().rsplit('/').nth(1).unwrap().to_owned()
    }

    /// A node of one of the project's environments, as old as that.
    fn node(&self, environment: &str, seconds: u64) -> Container {
        let volume = format!("/volumes/{environment}");
        let mut node = Container {
            created: now() - seconds,
            written: 10 << 20,
            ..Container::node(&format!("devenv-{environment}"), &self.id(environment))
        };
        node.mounts.push((volume, "/var".to_owned()));
        node
    }

    /// A node of one of the project's environments, with its label.
    fn labelled(&self, environment: &str) -> Container {
        let file = format!("project/cluster-configs/{environment}.yaml");
        self.node_of(&self.path(&file), environment, &self.id(environment))
    }

    /// A node of an environment in another folder, with its label.
    fn elsewhere(&self, name: &str, id: &str, is_there: bool) -> Container {
        let file = self.path(&format!("other/cluster-configs/{name}.yaml"));
        if is_there {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
        }
        self.node_of(&file, name, id)
    }

    fn node_of(&self, file: &Path, name: &str, id: &str) -> Container {
        let folder = self.path("home/.local/share/devenv/environments").join(id);
        fs::create_dir_all(folder.join("mark")).unwrap();
        fs::write(folder.join("file"), format!("{}\n", file.display())).unwrap();
        let mark = folder.join("mark").display().to_string();
        Container {
            created: now() - 90,
            mounts: vec![(mark, format!("/devenv/{id}"))],
            ..Container::node(&format!("devenv-{name}"), id)
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs()
}

fn exited(node: Container) -> Container {
    Container {
        state: "exited".to_owned(),
        ..node
    }
}

/// How a node answers whose API server doesn't answer yet.
fn whole() -> [Answer; 2] {
    let made = rcgen::generate_simple_self_signed(["test".to_owned()]).unwrap();
    let encoded = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
    let (certificate, key) = (
        encoded(made.cert.pem()),
        encoded(made.signing_key.serialize_pem()),
    );
    let config = serde_json::json!({
        "clusters": [{"name": "c", "cluster": {"server": "https://c", "certificate-authority-data": certificate}}],
        "users": [{"name": "u", "user": {"client-certificate-data": certificate, "client-key-data": key}}],
    });
    let answer = |program: &str, stdout: String| Answer {
        argv: vec![program.to_owned()],
        stdout,
        ..Answer::default()
    };
    [
        answer("grep", String::new()),
        answer("sh", format!("{config}\n---\n")),
    ]
}

#[test]
fn every_environment_is_listed_with_what_is_known_of_it() {
    let engine = Engine::start();
    let test = project()
        .docker(&engine)
        .file("cluster-configs/broken.yaml", "provider: kind\nconfgi: x\n")
        .args(["list"]);
    engine.world().answers = whole().into();
    engine.world().volumes = vec![("dev".to_owned(), 3 << 30), ("team".to_owned(), 5)];
    engine.world().containers.extend([
        test.node("dev", 3 * 86400),
        exited(test.elsewhere("team", "0123456789ab", true)),
        Container {
            state: "created".to_owned(),
            ..test.elsewhere("old", "ba9876543210", false)
        },
        // Somebody's own cluster.
        Container {
            mounts: Vec::new(),
            ..Container::node("theirs", "")
        },
        // Another user's, whose folder can't be read.
        Container {
            created: now() - 7200,
            ..Container::node("devenv-guest", "999999999999")
        },
    ]);
    test.elsewhere("left", "000000000001", true);
    insta::assert_snapshot!(test.clone().start().wait().transcript(), @r"
    environment   provider  state      age  size     file
    broken        -         wrong      -    -        cluster-configs/broken.yaml (devenv status --environment broken says what is wrong with it)
    dev           kind      running    3d   3.0 GiB  cluster-configs/dev.yaml
    dev-k3d       k3d       absent     -    -        cluster-configs/dev-k3d.yaml
    packages      kind      absent     -    -        cluster-configs/packages.yaml
    packages-k3d  k3d       absent     -    -        cluster-configs/packages-k3d.yaml
    guest         kind      running    2h   0 MiB    - (another user's, or its label is gone)
    old           kind      half-made  1m   0 MiB    [temp]/other/cluster-configs/old.yaml (its file is gone; to remove it: docker rm --force --volumes devenv-old-control-plane)
    team          kind      stopped    1m   0 MiB    [temp]/other/cluster-configs/team.yaml
    left          -         absent     -    -        [temp]/other/cluster-configs/left.yaml (only [temp]/home/.local/share/devenv/environments/[id] is left)
    --- stderr
    --- status 0
    ");
    let json = test.args(["list", "-o", "json"]).start().wait();
    let listed: Vec<serde_json::Value> = serde_json::from_str(&json.stdout).unwrap();
    let ages = regex::Regex::new(r#""ageSeconds":\d+"#).unwrap();
    insta::assert_snapshot!(
        ages.replace_all(&json.redacted(&listed.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")), r#""ageSeconds":[age]"#),
        @r#"
    {"ageSeconds":null,"detail":"devenv status --environment broken says what is wrong with it","file":"[temp]/project/cluster-configs/broken.yaml","id":"[id]","name":"broken","provider":null,"sizeBytes":null,"state":"wrong","thisProject":true}
    {"ageSeconds":[age],"detail":"","file":"[temp]/project/cluster-configs/dev.yaml","id":"[id]","name":"dev","provider":"kind","sizeBytes":3231711232,"state":"running","thisProject":true}
    {"ageSeconds":null,"detail":"","file":"[temp]/project/cluster-configs/dev-k3d.yaml","id":"[id]","name":"dev-k3d","provider":"k3d","sizeBytes":null,"state":"absent","thisProject":true}
    {"ageSeconds":null,"detail":"","file":"[temp]/project/cluster-configs/packages.yaml","id":"[id]","name":"packages","provider":"kind","sizeBytes":null,"state":"absent","thisProject":true}
    {"ageSeconds":null,"detail":"","file":"[temp]/project/cluster-configs/packages-k3d.yaml","id":"[id]","name":"packages-k3d","provider":"k3d","sizeBytes":null,"state":"absent","thisProject":true}
    {"ageSeconds":[age],"detail":"another user's, or its label is gone","file":null,"id":"[id]","name":"guest","provider":"kind","sizeBytes":0,"state":"running","thisProject":false}
    {"ageSeconds":[age],"detail":"its file is gone; to remove it: docker rm --force --volumes devenv-old-control-plane","file":"[temp]/other/cluster-configs/old.yaml","id":"[id]","name":"old","provider":"kind","sizeBytes":0,"state":"half-made","thisProject":false}
    {"ageSeconds":[age],"detail":"","file":"[temp]/other/cluster-configs/team.yaml","id":"[id]","name":"team","provider":"kind","sizeBytes":0,"state":"stopped","thisProject":false}
    {"ageSeconds":null,"detail":"only [temp]/home/.local/share/devenv/environments/[id] is left","file":"[temp]/other/cluster-configs/left.yaml","id":"[id]","name":"left","provider":null,"sizeBytes":null,"state":"absent","thisProject":false}
    "#
    );
}

#[test]
fn there_is_nothing_to_list() {
    let engine = Engine::start();
    let ran = Test::new().docker(&engine).args(["list"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    environment  provider  state  age  size  file
    --- stderr
    --- status 0
    ");
}

#[test]
fn the_name_of_an_environment_elsewhere_is_not_taken() {
    let engine = Engine::start();
    let test = project().docker(&engine);
    engine
        .world()
        .containers
        .push(test.elsewhere("dev", "0123456789ab", true));
    for command in ["up", "status"] {
        let ran = test.clone().args([command]).start().wait();
        insta::allow_duplicates! {
            insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            error: the cluster devenv-dev belongs to the environment dev of [temp]/other/cluster-configs/dev.yaml: two environments of one name can't be up side by side

            hint: give this one another name: `mv [temp]/project/cluster-configs/dev.yaml [temp]/project/cluster-configs/dev-2.yaml`; or remove the other: `devenv down --environment [temp]/other/cluster-configs/dev.yaml`
            --- status 1
            ");
        }
    }
    assert_eq!(test.clone().args(["down"]).start().wait().status, 1);
    assert_eq!(engine.world().containers.len(), 1);
    insta::assert_snapshot!(test.clone().args(["list"]).start().wait().transcript(), @r"
    environment   provider  state      age  size   file
    dev           kind      absent     -    -      cluster-configs/dev.yaml (its cluster's name is taken by the environment dev of [temp]/other/cluster-configs/dev.yaml)
    dev-k3d       k3d       absent     -    -      cluster-configs/dev-k3d.yaml
    packages      kind      absent     -    -      cluster-configs/packages.yaml
    packages-k3d  k3d       absent     -    -      cluster-configs/packages-k3d.yaml
    dev           kind      half-made  1m   0 MiB  [temp]/other/cluster-configs/dev.yaml (kubeadm was stopped before it finished)
    --- stderr
    --- status 0
    ");
    assert_eq!(test.calls("kind"), [""; 0]);
    // And where the other's file is gone, devenv can't be asked to remove it.
    fs::remove_dir_all(test.path("other")).unwrap();
    insta::assert_snapshot!(test.args(["up"]).start().wait().transcript(), @r"
    --- stderr
    error: the cluster devenv-dev belongs to the environment dev of [temp]/other/cluster-configs/dev.yaml (which is gone): two environments of one name can't be up side by side

    hint: give this one another name: `mv [temp]/project/cluster-configs/dev.yaml [temp]/project/cluster-configs/dev-2.yaml`; or remove the other: `docker rm --force --volumes devenv-dev-control-plane`
    --- status 1
    ");
}

#[test]
fn the_ports_of_a_stopped_environment_are_not_taken() {
    let engine = Engine::start();
    let kind = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/cluster-configs/kind.yaml"
    ))
    .unwrap()
    .replace("hostPort: 80\n", "hostPort: 21080\n")
    .replace("hostPort: 443\n", "hostPort: 21443\n");
    let test = project()
        .docker(&engine)
        .file("cluster-configs/kind.yaml", &kind);
    let local = |inside, outside| (inside, "127.0.0.1".to_owned(), outside);
    engine.world().containers.push(exited(Container {
        image: "test.devenv.test/node:1".to_owned(),
        ports: vec![local(80, 21080), local(443, 21443), local(6443, 40123)],
        ..test.labelled("packages")
    }));
    let ran = test.clone().args(["up"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: port 21080 on 127.0.0.1 is taken by the environment packages of [temp]/project/cluster-configs/packages.yaml, which needs it when it is started again

    hint: if nobody needs it: `devenv down --environment [temp]/project/cluster-configs/packages.yaml`, or publish ports that are free, in [temp]/project/cluster-configs/kind.yaml (or in a copy of it, where other environments name it too):
          - {listenAddress: 127.0.0.1, hostPort: 22080, containerPort: 80}
          - {listenAddress: 127.0.0.1, hostPort: 22443, containerPort: 443}
    the names are then https://argocd.local:22443, https://grafana.local:22443, https://keycloak.local:22443, https://logs.local:22443
    --- status 1
    ");
    assert_eq!(test.calls("kind"), [""; 0]);
    // Of two that were made for the same ports, whichever starts first has them.
    engine.world().containers.push(exited(Container {
        ports: vec![local(80, 21080), local(443, 21443)],
        ..test.elsewhere("old", "0123456789ab", true)
    }));
    engine.world().containers.reverse();
    engine.world().containers[0].state = "running".to_owned();
    let ran = test.clone().args(["up", "-e", "packages"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    [time] cluster
    [time] cluster: failed ([time])
    error: port 21080 on 127.0.0.1 is taken by the environment old of [temp]/other/cluster-configs/old.yaml, which runs

    hint: if nobody needs it: `devenv down --environment [temp]/other/cluster-configs/old.yaml`, or publish ports that are free, in [temp]/project/cluster-configs/kind.yaml (or in a copy of it, where other environments name it too):
          - {listenAddress: 127.0.0.1, hostPort: 22080, containerPort: 80}
          - {listenAddress: 127.0.0.1, hostPort: 22443, containerPort: 443}
    the names are then https://argocd.local:22443, https://grafana.local:22443, https://keycloak.local:22443, https://logs.local:22443
    --- status 1
    ");
    engine.world().containers[0].state = "exited".to_owned();
    let up = test.args(["up", "-e", "packages"]).start();
    wait_for("the start of the node", || {
        let world = engine.world();
        (world.containers[1].state == "running").then_some(())
    });
    drop(up);
}
