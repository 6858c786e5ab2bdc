//! Bad input and bad days: what a user is told, and what is left alone, when something isn't as it should be.
//!
//! Docker is played, kind and the build of images are fakes; everything between them is devenv itself. Argo CD's manifest is
//! the real one, since its digest is pinned: `gzip -9n` of upstream's install.yaml, in `tests/data`.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::time::Duration;
use std::{fs, process};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::engine::{Answer, Container, Engine, Exec};
use crate::harness::{Running, Test, is_alive, wait_for};

const NODE: &str = "devenv-dev-control-plane";

/// Builds whatever is asked for: a manifest that stands for Argo CD's, and images of one layer.
pub(crate) const BUILD: &str = r#"
store=$2
shift 2
blobs=$store/blobs/sha256
add() { hex=$(sha256sum "$store/new" | cut -c -64); size=$(wc -c < "$store/new"); mv "$store/new" "$blobs/$hex"; }
tell() { echo "{\"name\": \"$1\", \"digest\": \"sha256:$hex\", \"size\": $size, \"mediaType\": \"$2\"}"; }
for name; do
    echo "building $name" >&2
    case $name in
    *://*)
        echo 'kind: ConfigMap' > "$store/new"
        add
        tell "$name" application/octet-stream
        ;;
    *)
        head -c 100000 /dev/zero > "$store/new"
        add
        layer="{\"mediaType\": \"application/vnd.oci.image.layer.v1.tar\", \"digest\": \"sha256:$hex\", \"size\": $size}"
        echo "{\"architecture\": \"amd64\", \"os\": \"linux\", \"config\": {}, \"of\": \"$name\"}" > "$store/new"
        add
        config="{\"mediaType\": \"application/vnd.oci.image.config.v1+json\", \"digest\": \"sha256:$hex\", \"size\": $size}"
        echo "{\"schemaVersion\": 2, \"config\": $config, \"layers\": [$layer]}" > "$store/new"
        add
        tell "$name" application/vnd.oci.image.manifest.v1+json
        ;;
    esac
done"#;

/// Makes the node, where the engine has one to come, and then goes on until it is told to end.
pub(crate) const SLOW_KIND: &str = r#"
touch "$ENGINE/devenv-dev-control-plane"
sleep 300 &
trap 'echo asked > "$CALLS/asked"; exit 1' TERM
echo $! > "$CALLS/sleep"
echo $$ > "$CALLS/pid"
while [ ! -e "$CALLS/end" ]; do sleep 0.02; done
kill $!
echo "ERROR: told to end" >&2
exit 1"#;

pub(crate) const KIND_FAILS: &str = r#"
touch "$ENGINE/devenv-dev-control-plane"
echo "Ensuring node image" >&2
echo "ERROR: failed to create cluster: failed to init node with kubeadm" >&2
exit 1"#;

pub(crate) const ENVIRONMENT: &str = "\
provider: kind
config: kind.yaml
images: packages
node-image: test.devenv.test/node:1
addresses:
  https://raw.githubusercontent.com/argoproj/argo-cd/v3.2.11/manifests/install.yaml: https://test.devenv.test/install.yaml
";

const KIND_CONFIG: &str = "\
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
  - role: control-plane
    extraPortMappings:
      - {listenAddress: 127.0.0.1, hostPort: HTTP, containerPort: 80}
      - {listenAddress: 127.0.0.1, hostPort: HTTPS, containerPort: 443}
";

/// A config of kind's with one node, which publishes these ports of the machine as 80 and 443.
pub(crate) fn kind_config(http: u16, https: u16) -> String {
    KIND_CONFIG
        .replace("HTTPS", &https.to_string())
        .replace("HTTP", &http.to_string())
}

/// A small project: one node, one bundle without images, everything built.
pub(crate) fn project() -> Test {
    Test::new()
        .tool("git")
        .file("cluster-configs/dev.yaml", ENVIRONMENT)
        .publishing(free_port(), free_port())
        .script("scripts/packages/build", BUILD)
        .bundle("infrastructure/namespaces", "wave: 1\nnamespace: default\n")
}

pub(crate) trait Project {
    fn bundle(self, name: &str, text: &str) -> Self;
    fn publishing(self, http: u16, https: u16) -> Self;
    fn id(&self) -> String;
    fn node(&self) -> Container;
}

impl Project for Test {
    fn bundle(self, name: &str, text: &str) -> Self {
        self.file(&format!("bundles/{name}/bundle.yaml"), text)
            .file(
                &format!("bundles/{name}/base/kustomization.yaml"),
                "resources: []\n",
            )
    }

    /// The node publishes these ports of the machine as 80 and 443.
    fn publishing(self, http: u16, https: u16) -> Self {
        self.file("cluster-configs/kind.yaml", &kind_config(http, https))
    }

    /// By which the environment's nodes are marked.
    fn id(&self) -> String {
        let path = self.clone().args(["kubeconfig"]).start().wait().stdout;
        path.trim_end().rsplit('/').nth(1).unwrap().to_owned()
    }

    /// The environment's node.
    fn node(&self) -> Container {
        Container {
            image: "test.devenv.test/node:1".to_owned(),
            ..Container::node("devenv-dev", &self.id())
        }
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

pub(crate) fn to_come(node: Container) -> Container {
    Container {
        is_to_come: true,
        ..node
    }
}

fn kill(pid: &str) {
    signal::kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
}

/// `up` while kind is at work: the pids of kind and of its child.
fn creating(test: &Test) -> (Running, String, String) {
    let running = test.clone().args(["up"]).start();
    let kind = running.wait_for_line_in("calls/pid");
    let sleep = running.wait_for_line_in("calls/sleep");
    (running, kind, sleep)
}

// What was written.

#[test]
fn the_mistakes_of_all_files_are_told_together_and_docker_is_not_asked() {
    let engine = Engine::start();
    let ran = project()
        .docker(&engine)
        .file(
            "cluster-configs/dev.yaml",
            "provider: kind\nconfig: kind.yaml\nimages: packages\nnode-image: [node:1]\n",
        )
        .file(
            "cluster-configs/kind.yaml",
            "kind: Cluster\nkind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n",
        )
        .bundle(
            "infrastructure/namespaces",
            "wave: 1\nnamespace: default\nwavee: 2\n",
        )
        .bundle("infrastructure/gateway", "wave: two\nnamespace: gateway\n")
        .bundle("iam/keycloak", "wave: 4\nneeds:\n\t- gateway\n")
        .bundle("observability/logs", "")
        .args(["up"])
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r#"
    --- stderr
    error: cluster-configs/dev.yaml:4:13: `node-image` is a list, expected a text
      |
    4 | node-image: [node:1]
      |             ^

    error: cluster-configs/kind.yaml:2:1: `kind` is given twice
      |
    2 | kind: Cluster
      | ^
    hint: keep one of the two

    error: bundles/iam/keycloak/bundle.yaml:3:1: a tab in the indentation, expected spaces
      |
    3 | →- gateway
      | ^
    hint: YAML allows no tab there; set your editor to indent with spaces

    error: bundles/infrastructure/gateway/bundle.yaml:1:7: `wave` is the text "two", expected a whole number
      |
    1 | wave: two
      |       ^

    error: bundles/infrastructure/namespaces/bundle.yaml:3:1: unknown key `wavee`, expected one of `wave`, `namespace`, `needs`, `images`, `upstream`, `secrets`, `certificate`, `logins`
      |
    3 | wavee: 2
      | ^
    hint: did you mean `wave`?

    error: bundles/observability/logs/bundle.yaml: the file is empty, expected a mapping (`key: value` lines)
    --- status 2
    "#);
    assert_eq!(engine.world().requests, [""; 0]);
}

#[test]
fn bundles_that_do_not_fit_together() {
    let engine = Engine::start();
    let ran = project()
        .docker(&engine)
        .bundle(
            "infrastructure/gateway",
            "wave: 2\nnamespace: a\nneeds: [postgres]\n",
        )
        .bundle(
            "infrastructure/postgres",
            "wave: 2\nnamespace: b\nneeds: [gateway]\n",
        )
        .bundle(
            "iam/keycloak",
            "wave: 4\nnamespace: iam-c\nneeds: [gatway]\n",
        )
        .bundle("iam/gateway", "wave: 4\nnamespace: iam-d\n")
        .args(["up"])
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: bundles/iam/keycloak/bundle.yaml:3:9: there is no bundle `gatway`
      |
    3 | needs: [gatway]
      |         ^
    hint: did you mean `gateway`?

    error: bundles/infrastructure/gateway: the project iam has a bundle `gateway` too
    hint: rename one of the two: a bundle's name is its Application's

    error: bundles/infrastructure/postgres/bundle.yaml:3:9: `gateway` is in wave 4, after this bundle's wave 2
      |
    3 | needs: [gateway]
      |         ^
    hint: a bundle can need only those of its own wave and earlier ones

    error: bundles/infrastructure/postgres/bundle.yaml:3:9: needs make a circle: gateway -> postgres -> gateway
      |
    3 | needs: [gateway]
      |         ^
    hint: each of these would wait for the next one; take one of the needs out
    --- status 2
    ");
    assert_eq!(engine.world().requests, [""; 0]);
}

#[test]
fn a_project_with_a_mistake_is_not_reset() {
    let engine = Engine::start();
    let test = project().docker(&engine);
    engine.world().containers.push(test.node());
    let ran = test
        .bundle("infrastructure/gateway", "wave: 5\nnamespace: gateway\n")
        .args(["reset"])
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: bundles/infrastructure/gateway/bundle.yaml:1:7: `wave` is 5, expected 1, 2, 3 or 4
      |
    1 | wave: 5
      |       ^
    --- status 2
    ");
    assert_eq!(engine.world().requests, [""; 0]);
}

#[test]
fn an_environment_that_is_not_there() {
    for (name, file) in [("prod", false), ("de", false), ("x", true)] {
        let test = match file {
            true => Test::new(),
            false => project().file("cluster-configs/ci.yaml", "provider: kind\n"),
        };
        let ran = test.args(["up", "--environment", name]).start().wait();
        match name {
            "prod" => insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            error: there is no environment `prod` in [temp]/project/cluster-configs

            hint: the environments here: ci, dev
            --- status 2
            "),
            "de" => insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            error: there is no environment `de` in [temp]/project/cluster-configs

            hint: did you mean `dev`?
            --- status 2
            "),
            _ => insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            error: there is no `cluster-configs/` in [temp]/project or any folder above it

            hint: run devenv in the folder of the repository that holds it, or begin one: devenv init
            --- status 2
            "),
        }
    }
}

// Docker.

#[test]
fn docker_is_stopped() {
    let test = project().args(["up"]);
    drop(UnixListener::bind(test.path("stopped.sock")).unwrap());
    let address = format!("unix://{}", test.path("stopped.sock").display());
    let ran = test.clone().env("DOCKER_HOST", &address).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: Docker isn't running: nobody listens at unix://[temp]/stopped.sock

    hint: start it: `sudo systemctl start docker`
    --- status 1
    ");
    let ran = test.fake("docker", "").start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: Docker isn't running: nothing is at unix://[temp]/no-docker.sock

    hint: start it: `sudo systemctl start docker`
    --- status 1
    ");
}

#[test]
fn docker_does_not_let_us_in() {
    let engine = Engine::start();
    let socket = engine.folder().join("docker.sock");
    fs::set_permissions(socket, fs::Permissions::from_mode(0o0)).unwrap();
    let mut test = project().docker(&engine).args(["up"]);
    if nix::unistd::geteuid().is_root() {
        test = test.under(["setpriv", "--bounding-set=-all", "--"]);
    }
    insta::assert_snapshot!(test.start().wait().transcript(), @r#"
    --- stderr
    error: Docker doesn't let us in: no permission to use unix:[engine]/docker.sock

    hint: join the group that may: `sudo usermod -aG docker "$USER"`, then log in again
    --- status 1
    "#);
    assert_eq!(engine.world().requests, [""; 0]);
}

#[test]
fn docker_forbids_it() {
    let engine = Engine::start();
    engine.world().broken = Some((403, "authorization denied by plugin".to_owned()));
    let ran = project().docker(&engine).args(["up"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: Docker at unix:[engine]/docker.sock answered with an error: Docker responded with status code 403: authorization denied by plugin

    hint: see what `docker version` says
    --- status 1
    ");
}

// kind.

#[test]
fn kind_is_not_there() {
    let engine = Engine::start();
    let test = project().docker(&engine);
    let ran = test.clone().args(["up"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: kind is not on PATH

    hint: scripts/up installs it (built from its Go module, checked against go.sum); or: brew install kind, or: go install sigs.k8s.io/kind@v0.33.0
    --- status 1
    ");
    assert_eq!(ran.test.calls("build"), [""; 0]);

    // What is there isn't taken away when it could not be made again.
    engine.world().containers.push(test.node());
    let ran = test.args(["reset", "--rebuild"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: kind is not on PATH

    hint: scripts/up installs it (built from its Go module, checked against go.sum); or: brew install kind, or: go install sigs.k8s.io/kind@v0.33.0
    --- status 1
    ");
    assert_eq!(engine.world().containers.len(), 1);
}

#[test]
fn kind_fails() {
    let engine = Engine::start();
    let test = project().docker(&engine).fake("kind", KIND_FAILS);
    engine.world().containers.push(to_come(test.node()));
    let ran = test.clone().args(["up", "--quiet"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: create the cluster devenv-dev: `[temp]/bin/kind create cluster --retain --name devenv-dev --image test.devenv.test/node:1 --config [scratch]/kind.yaml --kubeconfig [scratch]/kubeconfig` failed (exit status 1)
      | Ensuring node image
      | ERROR: failed to create cluster: failed to init node with kubeadm

    hint: what kind made is kept: `docker logs devenv-dev-control-plane` shows how far it came, `devenv up --environment dev` makes it anew, `devenv down --environment dev` removes it
    --- status 1
    ");
    assert_eq!(engine.world().containers.len(), 1, "the node is kept");

    let ran = test.clone().args(["up", "--quiet"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    the cluster devenv-dev is half-made (kubeadm was stopped before it finished): it is made anew
    error: create the cluster devenv-dev: `[temp]/bin/kind create cluster --retain --name devenv-dev --image test.devenv.test/node:1 --config [scratch]/kind.yaml --kubeconfig [scratch]/kubeconfig` failed (exit status 1)
      | Ensuring node image
      | ERROR: failed to create cluster: failed to init node with kubeadm

    hint: what kind made is kept: `docker logs devenv-dev-control-plane` shows how far it came, `devenv up --environment dev` makes it anew, `devenv down --environment dev` removes it
    --- status 1
    ");
    assert_eq!(ran.test.calls("kind").len(), 2);
    assert_eq!(ran.test.calls("build").len(), 1);

    engine.world().containers.push(test.node());
    let ran = test.args(["down"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    [time] cluster
    [time] cluster: removed 1 container and its volumes ([time])
    [time] names
    [time] names: unchanged, none in the hosts file ([time])
    [time] files
    [time] files: kubeconfig and pushed commits removed ([time])

      phase     start     end    took  outcome
    ✓ cluster  [time]  [time]  [time]  done
    = names  [time]  [time]  [time]  unchanged
    ✓ files  [time]  [time]  [time]  done

    dev is gone
    --- status 0
    ");
    assert_eq!(engine.world().containers.len(), 0);
}

// Several nodes.

#[test]
fn images_go_into_every_node_at_once() {
    const KIND: &str = r#"
        touch "$ENGINE/devenv-dev-control-plane" "$ENGINE/devenv-dev-worker"
        exec sleep 60"#;
    let engine = Engine::start();
    let config = kind_config(free_port(), free_port());
    let test = project().docker(&engine).fake("kind", KIND).file(
        "cluster-configs/kind.yaml",
        &(config + "  - role: worker\n"),
    );
    let control_plane = to_come(test.node());
    let mut worker = Container {
        name: "devenv-dev-worker".to_owned(),
        ports: Vec::new(),
        ..control_plane.clone()
    };
    let role = "io.x-k8s.kind.role".to_owned();
    worker.labels.insert(role, "worker".to_owned());
    engine.world().containers.extend([control_plane, worker]);
    let answer = |program: &str, stdout: &str, after| Answer {
        argv: vec![program.to_owned()],
        stdout: stdout.to_owned(),
        after: Duration::from_millis(after),
        ..Answer::default()
    };
    // A node has nothing yet, and takes its time over everything.
    engine
        .world()
        .answers
        .extend([answer("ctr", "", 0), answer("sh", "== blobs ==\n", 1000)]);

    let up = test.args(["up"]).start();
    let is_import = |exec: &&Exec| exec.argv.iter().any(|word| word.contains("images import"));
    let imports = wait_for("an import into both nodes", || {
        let imports: Vec<_> = engine
            .world()
            .execs
            .iter()
            .filter(is_import)
            .cloned()
            .collect();
        (imports.len() == 2).then_some(imports)
    });
    let mut into: Vec<_> = imports.iter().map(|exec| exec.container.as_str()).collect();
    into.sort_unstable();
    assert_eq!(into, [NODE, "devenv-dev-worker"]);
    // Neither had ended when the other began.
    assert!(
        imports.iter().all(|exec| exec.stdin.is_empty()),
        "{imports:?}"
    );
    up.signal(Signal::SIGTERM);
    assert_eq!(up.wait().status, 143);
}

// Ports and clusters of others.

#[test]
fn a_port_is_taken() {
    let engine = Engine::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let test = project()
        .docker(&engine)
        .fake("kind", "")
        .publishing(port, free_port())
        .args(["up"]);
    let comm = fs::read_to_string("/proc/self/comm").unwrap_or_default();
    let told = |test: &Test| {
        test.clone()
            .start()
            .wait()
            .transcript()
            .replace(&port.to_string(), "PORT")
            .replace(comm.trim_end(), "[this test]")
    };
    let offered = regex::Regex::new(r"hostPort: \d+").unwrap();
    let told = |test: &Test| {
        offered
            .replace_all(&told(test), "hostPort: [free]")
            .into_owned()
    };
    if cfg!(target_os = "linux") {
        let pid = format!("(pid {})", process::id());
        assert!(test.clone().start().wait().stderr.contains(&pid));
        insta::assert_snapshot!(told(&test), @r"
        --- stderr
        error: port PORT on 127.0.0.1 is taken by [this test] (pid [pid])

        hint: end it (`kill [pid]`), or publish ports that are free, in [temp]/project/cluster-configs/kind.yaml (or in a copy of it, where other environments name it too):
              - {listenAddress: 127.0.0.1, hostPort: [free], containerPort: 80}
              - {listenAddress: 127.0.0.1, hostPort: [free], containerPort: 443}
        --- status 1
        ");
    }
    engine.world().containers.push(Container {
        name: "web".to_owned(),
        image: "nginx:1".to_owned(),
        state: "running".to_owned(),
        ports: vec![(80, "127.0.0.1".to_owned(), port)],
        ..Container::default()
    });
    insta::assert_snapshot!(told(&test), @r"
    --- stderr
    error: port PORT on 127.0.0.1 is taken by the container web (nginx:1)

    hint: `docker stop web`, or publish ports that are free, in [temp]/project/cluster-configs/kind.yaml (or in a copy of it, where other environments name it too):
          - {listenAddress: 127.0.0.1, hostPort: [free], containerPort: 80}
          - {listenAddress: 127.0.0.1, hostPort: [free], containerPort: 443}
    --- status 1
    ");
    assert_eq!((test.calls("kind"), test.calls("build")), (vec![], vec![]));
}

#[test]
fn a_cluster_of_somebody_else_is_left_alone_by_every_command() {
    let commands = [
        vec!["up"],
        vec!["up", "--plan"],
        vec!["down"],
        vec!["reset"],
        vec!["sync"],
        vec!["status"],
    ];
    for command in commands {
        let engine = Engine::start();
        engine
            .world()
            .containers
            .push(Container::node("devenv-dev", "somebody-else"));
        let ran = project()
            .docker(&engine)
            .fake("kind", "")
            .args(command.iter().copied())
            .start()
            .wait();
        let world = engine.world();
        assert_eq!(world.containers.len(), 1);
        assert!(
            world
                .requests
                .iter()
                .all(|request| request.starts_with("GET ")),
            "{:?}",
            world.requests
        );
        assert_eq!(ran.test.calls("kind"), [""; 0]);
        match command.as_slice() {
            ["down"] => insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            [time] cluster
            [time] cluster: failed ([time])
            error: a kind cluster named devenv-dev exists that this environment didn't make (its nodes lack the mount /devenv/[id])

            hint: if nobody needs it: kind delete cluster --name devenv-dev; else give this environment another name by renaming [temp]/project/cluster-configs/dev.yaml
            --- status 1
            "),
            ["reset"] => insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            error: a kind cluster named devenv-dev exists that this environment didn't make (its nodes lack the mount /devenv/[id])

            hint: if nobody needs it: kind delete cluster --name devenv-dev; else give this environment another name by renaming [temp]/project/cluster-configs/dev.yaml
            --- status 1
            "),
            _ => insta::allow_duplicates! { insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            error: a kind cluster named devenv-dev exists that this environment didn't make (its nodes lack the mount /devenv/[id])

            hint: if nobody needs it: kind delete cluster --name devenv-dev; else give this environment another name by renaming [temp]/project/cluster-configs/dev.yaml
            --- status 1
            ") },
        }
    }
}

// At the same time, and broken off.

#[test]
fn a_second_up_says_for_whom_it_waits_and_goes_on_then() {
    let engine = Engine::start();
    let test = project().docker(&engine).fake("kind", SLOW_KIND);
    let (first, ..) = creating(&test);
    let second = test.clone().args(["up", "--timeout", "1m"]).start();
    second.wait_until_it_says(&["waiting for `devenv up` (pid"]);
    fs::write(test.path("calls/end"), "").unwrap();
    assert_eq!(first.wait().status, 1);
    let ran = second.wait();
    let lines: Vec<_> = ran
        .transcript()
        .lines()
        .take(4)
        .map(str::to_owned)
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    --- stderr
    [time] lock
    [time] lock: waiting for `devenv up` (pid [pid]), which has just begun
    [time] lock: it is our turn ([time])
    ");
    assert_eq!((ran.status, test.calls("kind").len()), (1, 2));
}

#[test]
fn a_signal_during_kind_create_leaves_no_process_and_the_next_up_goes_on() {
    for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let engine = Engine::start();
        let test = project().docker(&engine).fake("kind", SLOW_KIND);
        engine.world().containers.push(to_come(test.node()));
        let running = test.clone().args(["up", "--quiet"]).start();
        let kind = running.wait_for_line_in("calls/pid");
        let sleep = running.wait_for_line_in("calls/sleep");
        running.signal(signal);
        let ran = running.wait();
        assert_eq!(ran.status, status);
        assert!(!is_alive(&kind) && !is_alive(&sleep));
        let asked = ran.test.path("calls/asked");
        assert!(asked.exists(), "kind was killed without being asked first");
        match signal {
            Signal::SIGINT => insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            error: interrupted

            hint: what was made is still there: `devenv up` resumes, `devenv down` removes it
            --- status 130
            "),
            _ => insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            error: terminated

            hint: what was made is still there: `devenv up` resumes, `devenv down` removes it
            --- status 143
            "),
        }

        let ran = test
            .fake("kind", KIND_FAILS)
            .args(["up", "--quiet"])
            .start()
            .wait();
        assert!(
            ran.stderr
                .starts_with("the cluster devenv-dev is half-made ("),
            "{}",
            ran.stderr
        );
        assert_eq!(ran.test.calls("kind").len(), 2);
    }
}

#[test]
fn what_a_killed_up_left_running_is_waited_for() {
    let engine = Engine::start();
    let test = project().docker(&engine).fake("kind", SLOW_KIND);
    engine.world().containers.push(to_come(test.node()));
    let (running, kind, sleep) = creating(&test);
    running.signal(Signal::SIGKILL);
    assert_eq!(running.wait().status, -9);
    assert!(is_alive(&kind));

    let next = test.fake("kind", KIND_FAILS).args(["up"]).start();
    next.wait_until_it_says(&["itself gone) left running"]);
    kill(&kind);
    kill(&sleep);
    let ran = next.wait();
    wait_for("the orphan's end", || (!is_alive(&kind)).then_some(()));
    let lines: Vec<_> = ran
        .transcript()
        .lines()
        .take(6)
        .map(str::to_owned)
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    --- stderr
    [time] lock
    [time] lock: waiting for what `devenv up` (pid [pid], itself gone) left running
    [time] lock: it is our turn ([time])
    [time] store
    [time] store: unchanged, all 4 entries are there ([time])
    ");
    assert_eq!((ran.status, ran.test.calls("kind").len()), (1, 2));
    assert_eq!(
        engine.world().containers.len(),
        0,
        "the half-made node was removed"
    );
}

// The store.

#[test]
fn a_build_that_fails() {
    let engine = Engine::start();
    let ran = project()
        .docker(&engine)
        .fake("kind", "")
        .script(
            "scripts/packages/build",
            "echo 'go: no network' >&2; exit 3",
        )
        .args(["up"])
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    [time] store
    [time] store: building 4 images and files from package registries; the first time takes minutes
    [time] store: failed ([time])
    error: can't build the images from package registries: `[temp]/project/scripts/packages/build --store [temp]/home/.cache/devenv/store test.devenv.test/node:1 quay.io/argoproj/argocd:v3.2.11 public.ecr.aws/docker/library/redis:8.2.2-alpine https://test.devenv.test/install.yaml` failed (exit status 3)
      | go: no network

    hint: run the same command again with -v to see every line of its output
    --- status 1
    ");
    assert_eq!(ran.test.calls("kind"), [""; 0]);
}

#[test]
fn a_build_that_lies() {
    let engine = Engine::start();
    let test = project()
        .docker(&engine)
        .fake("kind", "")
        .args(["up", "--quiet"]);
    // Not what it says it is: the blob's name isn't its digest.
    let lies = BUILD.replace(
        "head -c 100000 /dev/zero > \"$store/new\"\n        add",
        "hex=$(printf '%064d' 7); size=3; echo no > \"$blobs/$hex\"",
    );
    let ran = test
        .clone()
        .script("scripts/packages/build", &lies)
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: scripts/packages/build says that test.devenv.test/node:1 is built, but [temp]/home/.cache/devenv/store/blobs/sha256/[id]: its digest is sha256:[digest]

    hint: that file was removed; run the same command again with -v to see how it is built
    --- status 1
    ");
    // What it says, but not what Argo CD's manifest is known to be.
    let environment = ENVIRONMENT.split("addresses:").next().unwrap();
    let ran = test
        .clone()
        .script("scripts/packages/build", BUILD)
        .file("cluster-configs/dev.yaml", environment)
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: scripts/packages/build built https://raw.githubusercontent.com/argoproj/argo-cd/v3.2.11/manifests/install.yaml with the digest sha256:[digest], expected sha256:[digest]

    hint: see that scripts/packages is of the same version as devenv: `git status scripts/packages`, `cargo install --path . --locked`
    --- status 1
    ");
    // Nothing at all.
    let ran = test
        .clone()
        .script("scripts/packages/build", "exit 0")
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: scripts/packages/build built everything but test.devenv.test/node:1, quay.io/argoproj/argocd:v3.2.11, public.ecr.aws/docker/library/redis:8.2.2-alpine, https://raw.githubusercontent.com/argoproj/argo-cd/v3.2.11/manifests/install.yaml

    hint: run the same command again with -v to see what it says; a name that no recipe makes must not be in a bundle of an environment with `images: packages`
    --- status 1
    ");
    assert_eq!(test.calls("kind"), [""; 0]);
    // Then it tells the truth, and nothing of the lies is left.
    let ran = test
        .fake("kind", KIND_FAILS)
        .file("cluster-configs/dev.yaml", ENVIRONMENT)
        .script("scripts/packages/build", BUILD)
        .start()
        .wait();
    assert_eq!(ran.test.calls("kind").len(), 1, "{}", ran.transcript());
}

#[test]
fn a_damaged_blob_is_named_and_fetched_anew() {
    let engine = Engine::start();
    let test = project().docker(&engine).fake("kind", KIND_FAILS);
    test.clone().args(["up"]).start().wait();
    let blobs = test.path("home/.cache/devenv/store/blobs/sha256");
    let blob = |size: u64| {
        let mut blobs = fs::read_dir(&blobs).unwrap().map(|entry| entry.unwrap());
        blobs
            .find(|blob| blob.metadata().unwrap().len() == size)
            .unwrap()
            .path()
    };
    let whole = fs::read(blob(100_000)).unwrap();

    // Found when it is sent: the size is as it was.
    let mut other = whole.clone();
    other[500] = 1;
    fs::write(blob(100_000), &other).unwrap();
    engine.world().images.clear();
    let ran = test.clone().args(["up"]).start().wait();
    let about = |ran: &crate::harness::Ran| {
        let lines: Vec<_> = ran
            .transcript()
            .lines()
            .filter(|line| line.contains("damaged"))
            .map(str::to_owned)
            .collect();
        lines.join("\n")
    };
    insta::assert_snapshot!(about(&ran), @r"
    [time] cluster > the store's copy of test.devenv.test/node:1 is damaged: [temp]/home/.cache/devenv/store/blobs/sha256/[id]: its digest is sha256:[digest]
    [time] cluster > the store's copy of test.devenv.test/node:1 is damaged: [temp]/home/.cache/devenv/store/blobs/sha256/[id]: its digest is sha256:[digest]: building 1 images and files from package registries; the last build, of 4, took 0s
    [time] cluster > the store's copy of test.devenv.test/node:1 is damaged: [temp]/home/.cache/devenv/store/blobs/sha256/[id]: its digest is sha256:[digest]: fetched anew ([time])
    ");
    assert_eq!(fs::read(blob(100_000)).unwrap(), whole);
    assert_eq!(
        (test.calls("build").len(), test.calls("kind").len()),
        (2, 2)
    );

    // Found at once: a part of it is gone.
    let path = blob(100_000);
    fs::write(&path, &whole[..700]).unwrap();
    let ran = test.clone().args(["up"]).start().wait();
    insta::assert_snapshot!(about(&ran), @r"
    [time] store > the store's copy of test.devenv.test/node:1 is damaged: [temp]/home/.cache/devenv/store/blobs/sha256/[id]: 700 bytes, 100000 were expected
    [time] store > the store's copy of test.devenv.test/node:1 is damaged: [temp]/home/.cache/devenv/store/blobs/sha256/[id]: 700 bytes, 100000 were expected: fetched anew ([time])
    ");
    assert_eq!(fs::read(&path).unwrap(), whole);
    assert_eq!(
        (test.calls("build").len(), test.calls("kind").len()),
        (3, 3)
    );
}

#[cfg(target_os = "linux")]
#[test]
fn the_disk_is_full() {
    // A small disk, in a mount namespace that ends with the test. $0 is devenv.
    const DAY: &str = r#"
        system=$PATH:/usr/sbin:/usr/bin:/sbin:/bin
        mkdirs() { PATH=$system mkdir -p "$@"; }
        mkdirs "$HOME/.cache"
        PATH=$system mount -t tmpfs -o size=3m none "$HOME/.cache" || exit
        mkdirs "$HOME/.cache/devenv/store"
        "$0" up --quiet
        echo "exit $?" >&2
        PATH=$system rm "$HOME/.cache/filler"
        "$0" up --quiet"#;
    let engine = Engine::start();
    let fills_up = format!(
        "{BUILD}
        [ -e \"$CALLS/filled\" ] || head -c 9000000 /dev/zero > \"$HOME/.cache/filler\" 2> \"$CALLS/filled\"
        exit 0"
    );
    let ran = project()
        .docker(&engine)
        .fake("kind", KIND_FAILS)
        .script("scripts/packages/build", &fills_up)
        .under([
            "unshare",
            "--map-root-user",
            "--mount",
            "/bin/sh",
            "-c",
            DAY,
        ])
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: the disk is full: can't write [temp]/home/.cache/devenv/store/index.json, 1 MiB more were needed

    hint: free some space there (`df -h '[temp]/home/.cache/devenv/store'`), then run the same command again: it goes on where it stopped
    exit 1
    error: create the cluster devenv-dev: `[temp]/bin/kind create cluster --retain --name devenv-dev --image test.devenv.test/node:1 --config [scratch]/kind.yaml --kubeconfig [scratch]/kubeconfig` failed (exit status 1)
      | Ensuring node image
      | ERROR: failed to create cluster: failed to init node with kubeadm

    hint: what kind made is kept: `docker logs devenv-dev-control-plane` shows how far it came, `devenv up --environment dev` makes it anew, `devenv down --environment dev` removes it
    --- status 1
    ");
}

// How it is shown.

#[test]
fn nobody_reads_stdout() {
    let engine = Engine::start();
    let test = project().docker(&engine);
    for args in [
        vec!["up", "--plan"],
        vec!["kubeconfig"],
        vec!["completions", "zsh"],
        vec!["--help"],
    ] {
        let ran = test
            .clone()
            .args(args.iter().copied())
            .without_readers()
            .start()
            .wait();
        assert_eq!(ran.status, 0, "{args:?}");
    }
    let closed = test
        .clone()
        .under(["sh", "-c", "exec \"$0\" \"$@\" >&- 2>&-"])
        .args(["down"]);
    assert_eq!(closed.start().wait().status, 0);
    let full = test
        .under(["sh", "-c", "exec \"$0\" \"$@\" > /dev/full"])
        .args(["kubeconfig"]);
    insta::assert_snapshot!(full.start().wait().transcript(), @r"
    --- stderr
    error: can't write to stdout: No space left on device (os error 28)

    hint: `df -h` shows which disk is full; with some of it free run the same command again
    --- status 1
    ");
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let test = project().fake("docker", "").args(["up"]);
    assert!(
        test.clone()
            .terminal(80, 24)
            .start()
            .wait()
            .stdout
            .contains("\u{1b}[1m")
    );
    for test in [
        test.clone().env("NO_COLOR", "1").terminal(80, 24),
        test.clone(),
        test.args(["up", "--color", "never"]).terminal(80, 24),
    ] {
        let ran = test.start().wait();
        let all = ran.stdout + &ran.stderr;
        assert!(all.contains("error: Docker isn't running"), "{all:?}");
        assert!(
            !all.contains("\u{1b}[1m") && !all.contains("\u{1b}[3"),
            "{all:?}"
        );
    }
}

#[test]
fn a_terminal_of_40_columns() {
    let engine = Engine::start();
    let test = project().docker(&engine).fake("kind", SLOW_KIND);
    let running = test.args(["up"]).terminal(40, 24).start();
    let texts = ["kind create", "nodes run", "control plane"];
    let lines = running.screen_with(&texts);
    let still = regex::Regex::new("[⠀-⣿]").unwrap();
    insta::assert_snapshot!(still.replace_all(&lines, "*"), @r"
    ✓  [time]  store  4 entries fetched, 0 …
    *  [time]  cluster  kind create cluster
    *  [time]  images  0 of 1 nodes run
    *  [time]  argo cd  no control plane ru…
    ");
    running.signal(Signal::SIGINT);
    let ran = running.wait();
    let mut lines: Vec<_> = ran.screen().lines().map(str::to_owned).collect();
    lines[1..4].sort(); // they end at the same time
    insta::assert_snapshot!(lines.join("\n"), @r"
    ✓  [time]  store  4 entries fetched, 0 …
    -  [time]  argo cd  stopped
    -  [time]  cluster  stopped
    -  [time]  images  stopped
    error: interrupted

    hint: what was made is still there: `dev
    env up` resumes, `devenv down` removes i
    t
    ");
    assert_eq!(ran.status, 130);
}

// What only looks.

#[test]
fn a_plan_touches_nothing() {
    let engine = Engine::start();
    let test = project()
        .docker(&engine)
        .fake("kind", "")
        .publishing(8080, 8443);
    let before = test.traces();
    let ran = test.clone().args(["up", "--plan"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    plan for dev (nothing was touched)
      cluster       create devenv-dev from cluster-configs/kind.yaml: 1 node(s) of test.devenv.test/node:1
      port          publish 127.0.0.1:8080
      port          publish 127.0.0.1:8443
      store         fetch test.devenv.test/node:1
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
    assert_eq!(test.traces(), before);
    assert_eq!((test.calls("kind"), test.calls("build")), (vec![], vec![]));
    let requests = engine.world().requests.clone();
    assert!(
        requests.iter().all(|request| request.starts_with("GET ")),
        "{requests:?}"
    );
}

#[test]
fn the_status_of_what_is_not_there_or_half_made_or_stopped() {
    let engine = Engine::start();
    let test = project().docker(&engine).publishing(8080, 8443);
    let local = |inside, outside| (inside, "127.0.0.1".to_owned(), outside);
    let node = Container {
        ports: vec![local(6443, 40123), local(80, 8080), local(443, 8443)],
        ..test.node()
    };
    let told = |args: &[&str]| {
        test.clone()
            .args(args.iter().copied())
            .start()
            .wait()
            .transcript()
    };
    let text = || told(&["status"]);
    let json = || told(&["status", "--output", "json"]);
    insta::assert_snapshot!(text(), @r"
    environment  dev
    cluster      devenv-dev (kind), absent: devenv up makes it
    --- stderr
    --- status 1
    ");
    insta::assert_snapshot!(json(), @r#"
    {"environment":"dev","cluster":{"name":"devenv-dev","provider":"kind","state":"absent","detail":"devenv up makes it","nodes":[],"kubeconfig":"[temp]/home/.local/share/devenv/environments/[id]/kubeconfig"},"argoCd":[],"applications":[],"ready":false}
    --- stderr
    --- status 1
    "#);
    engine.world().containers.push(node);
    insta::assert_snapshot!(text(), @r"
    environment  dev
    cluster      devenv-dev (kind), half-made: kubeadm was stopped before it finished; devenv up makes it anew
    --- stderr
    --- status 1
    ");
    insta::assert_snapshot!(json(), @r#"
    {"environment":"dev","cluster":{"name":"devenv-dev","provider":"kind","state":"half-made","detail":"kubeadm was stopped before it finished; devenv up makes it anew","nodes":["devenv-dev-control-plane"],"kubeconfig":"[temp]/home/.local/share/devenv/environments/[id]/kubeconfig"},"argoCd":[],"applications":[],"ready":false}
    --- stderr
    --- status 1
    "#);
    engine.world().containers[0].state = "created".to_owned();
    insta::assert_snapshot!(text(), @r"
    environment  dev
    cluster      devenv-dev (kind), half-made: node devenv-dev-control-plane was never started; devenv up makes it anew
    --- stderr
    --- status 1
    ");
    engine.world().containers[0].state = "exited".to_owned();
    insta::assert_snapshot!(text(), @r"
    environment  dev
    cluster      devenv-dev (kind), stopped: devenv-dev-control-plane doesn't run; devenv up starts it
    --- stderr
    --- status 1
    ");
    insta::assert_snapshot!(json(), @r#"
    {"environment":"dev","cluster":{"name":"devenv-dev","provider":"kind","state":"stopped","detail":"devenv-dev-control-plane doesn't run; devenv up starts it","nodes":["devenv-dev-control-plane"],"kubeconfig":"[temp]/home/.local/share/devenv/environments/[id]/kubeconfig"},"argoCd":[],"applications":[],"ready":false}
    --- stderr
    --- status 1
    "#);
    insta::assert_snapshot!(told(&["up", "--plan"]), @r"
    plan for dev (nothing was touched)
      cluster       start devenv-dev-control-plane
      store         fetch test.devenv.test/node:1
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
    assert_eq!(test.traces(), [""; 0]);
    insta::assert_snapshot!(told(&["sync"]), @r"
    --- stderr
    error: the cluster devenv-dev doesn't run

    hint: devenv up --environment dev
    --- status 1
    ");
    assert_eq!(engine.world().containers[0].name, NODE);
}

// What can be typed.

#[test]
fn a_command_that_is_not_there() {
    let ran = project().args(["upp"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: unrecognized subcommand 'upp'

      tip: a similar subcommand exists: 'up'

    Usage: devenv [OPTIONS] <COMMAND>

    For more information, try '--help'.
    --- status 2
    ");
    let ran = project().args(["up", "--timeout", "soon"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: invalid value 'soon' for '--timeout <DURATION>': expected number at 0; such as 90s or 10m

    For more information, try '--help'.
    --- status 2
    ");
}

#[test]
fn help_and_completions() {
    let told = |args: &[&str]| Test::new().args(args.iter().copied()).start().wait();
    let short = told(&["-h"]);
    insta::assert_snapshot!(short.transcript(), @r"
    Brings a team's whole platform to proven ready on a local Kubernetes cluster

    Usage: devenv [OPTIONS] <COMMAND>

    Commands:
      up           Create or repair the environment until everything is proven ready
      down         Remove everything that `up` made, and nothing else
      reset        Back to the last state that passed all checks, in place
      snapshot     Save, list, restore or remove named states of the environment
      status       Show what is: the cluster, Argo CD, each application and what it waits for
      list         Show all environments: this project's, and whatever of yours is up elsewhere
      doctor       Show what on this machine would get in the way, before anything is touched
      check        Prove again, through the front door, that what is up works
      run          Bring the environment up, run a command in it, remove the environment again
      secrets      Show the generated logins, with their addresses
      sync         Push the working tree, uncommitted changes included, and wait until it is applied
      images       Show which images and files are needed, or a key for a cache; fill a registry
      hosts        Show, apply or remove the environment's names in the hosts file
      trust        Let this machine trust the CA that signs the platform's certificates, or no longer
      init         Write the default bundles and cluster configs into a folder, ready to edit
      kubeconfig   Print the path of the environment's kubeconfig
      completions  Print a shell's completion script
      help         Print this message or the help of the given subcommand(s)

    Options:
      -h, --help     Print help (see more with '--help')
      -V, --version  Print version

    Options of every command:
      -e, --environment <NAME|FILE>  The environment: the name of a file in cluster-configs/, or a path
                                     to one [env: DEVENV_ENVIRONMENT=] [default: dev]
      -o, --output <OUTPUT>          How results are written: for people, or as JSON lines for programs
                                     [default: text] [possible values: text, json]
      -q, --quiet                    Say only what matters: notices, the verdict, errors
      -v, --verbose...               Show every line of the programs that run (-vv: the library logs
                                     too)
          --color <COLOR>            When to use colours [default: auto] [possible values: auto, always,
                                     never]
          --timeout <DURATION>       How long one wait may last before it is given up [default: 10m]
    --- stderr
    --- status 0
    ");
    let long = told(&["--help"]);
    assert_eq!(long.status, 0);
    let (_, last) = long.stdout.split_once("Examples:").unwrap();
    insta::assert_snapshot!(last, @r"
      devenv up                        create or repair the environment `dev`
      devenv up --plan                 what `up` would do, touching nothing
      devenv sync                      push the working tree, wait until it is applied
      devenv sync --watch              the same on every change of a file, until Ctrl-C
      devenv doctor                    what on this machine would get in the way
      devenv list                      all environments, with their state, age and size
      devenv status -o json            what is there, for a program
      devenv hosts show                the names in the hosts file, and what is in their way
      devenv check                     prove again that everything works
      devenv run -- scripts/e2e        up, the command with KUBECONFIG and addresses set, down
      devenv secrets --show            the logins
      KUBECONFIG=$(devenv kubeconfig) kubectl get pods -A
      devenv down                      remove all that `up` made

    Exit codes:
      0    proven ready                        3    up, but a check failed
      1    a step failed                       4    up, but the names are not wired
      2    the input is wrong (nothing was     130  interrupted
           touched)                            143  terminated
      `devenv run` ends with its command's.
    ");
    for (shell, part) in [
        ("bash", "complete -F _devenv"),
        ("zsh", "#compdef devenv"),
        ("fish", "complete -c devenv"),
    ] {
        let ran = told(&["completions", shell]);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        assert!(ran.stdout.contains(part), "{shell}: {}", ran.stdout);
    }
}
