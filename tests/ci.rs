//! What a CI system gets: results, one folder that tells why, groups, annotations and a summary in GitHub Actions.

use std::fs;
use std::path::Path;

use clap::Parser as _;
use devenv::cli::{Cli, Command};
use serde_json::Value;

use crate::bad_days::{KIND_FAILS, Project as _, project, to_come};
use crate::e2e::program;
use crate::engine::{Answer, Engine};
use crate::harness::{Ran, Test};
use crate::run::{assert_nothing_is_left, played};

fn read(test: &Test, path: &str) -> String {
    fs::read_to_string(test.path("project").join(path)).unwrap()
}

/// The files below a folder of the project.
fn files(test: &Test, folder: &str) -> Vec<String> {
    let root = test.path("project").join(folder);
    let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path.strip_prefix(&root).unwrap().display().to_string()),
            }
        }
    }
    found.sort();
    found
}

fn without_date(text: &str) -> String {
    regex::Regex::new(r"\d{4}-\d\d-\d\dT[\d:]+Z")
        .unwrap()
        .replace_all(text, "[date]")
        .into_owned()
}

/// A journal that holds what looks like a token, and no other program.
fn journal(engine: &Engine) {
    engine.world().answers.push(Answer {
        argv: vec!["journalctl".to_owned()],
        stdout:
            "kubelet: token eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJpc3MiOiJrdWJlIn0.c2lnbmF0dXJl\n"
                .to_owned(),
        ..Answer::default()
    });
}

#[test]
fn what_can_not_be_written_is_refused_before_anything_is_made() {
    for (command, option, at) in [
        ("up", "--junit", "no/such/results.xml"),
        ("run", "--junit", "/proc/results.xml"),
        ("check", "--artifacts", "/proc/why"),
        ("up", "--artifacts", "/proc/why"),
    ] {
        let engine = Engine::start();
        let mut args = vec![command, option, at];
        if command == "run" {
            args.extend(["--", "true"]);
        }
        let test = project().docker(&engine).fake("kind", "").tool("true");
        let ran = test.args(args).start().wait();
        assert_eq!(ran.status, 2, "{}", ran.transcript());
        assert_eq!(engine.world().requests, [""; 0]);
        assert_eq!(ran.test.traces(), [""; 0]);
        match (command, option) {
            ("up", "--junit") => insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            error: can't write no/such/results.xml: No such file or directory (os error 2)

            hint: give --junit a file in a folder that exists and that you can write to
            --- status 2
            "),
            ("check", _) => insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            error: can't write into /proc/why: No such file or directory (os error 2)

            hint: give --artifacts a folder that you can write to; it is made if it isn't there
            --- status 2
            "),
            _ => {}
        }
    }
}

#[test]
fn an_up_that_fails_leaves_results_and_a_folder_that_tells_why() {
    let engine = Engine::start();
    let test = project().docker(&engine).fake("kind", KIND_FAILS);
    engine.world().containers.push(to_come(test.node()));
    journal(&engine);
    let args = [
        "up",
        "--quiet",
        "--junit",
        "results.xml",
        "--artifacts",
        "why/it/failed",
    ];
    let ran = test.args(args).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    what there is to tell why is in why/it/failed: begin with its README.txt
    error: create the cluster devenv-dev: `[temp]/bin/kind create cluster --retain --name devenv-dev --image test.devenv.test/node:1 --config [scratch]/kind.yaml --kubeconfig [scratch]/kubeconfig` failed (exit status 1)
      | Ensuring node image
      | ERROR: failed to create cluster: failed to init node with kubeadm

    hint: what kind made is kept: `docker logs devenv-dev-control-plane` shows how far it came, `devenv up --environment dev` makes it anew, `devenv down --environment dev` removes it
    --- status 1
    ");
    insta::assert_debug_snapshot!(files(&ran.test, "why/it/failed"), @r#"
    [
        "README.txt",
        "checks.json",
        "events.jsonl",
        "nodes/devenv-dev-control-plane/containerd.log",
        "nodes/devenv-dev-control-plane/journal.log",
        "nodes/devenv-dev-control-plane/kubelet.log",
        "timeline.json",
    ]
    "#);
    let readme = read(&ran.test, "why/it/failed/README.txt");
    insta::assert_snapshot!(redacted(&ran, &without_date(&readme)), @r"
    devenv up dev failed: create the cluster devenv-dev: `[temp]/bin/kind create cluster --retain --name devenv-dev --image test.devenv.test/node:1 --config [scratch]/kind.yaml --kubeconfig [scratch]/kubeconfig` failed (exit status 1)
      | Ensuring node image
      | ERROR: failed to create cluster: failed to init node with kubeadm
    [date]

    events.jsonl        what devenv did, an event a line
    timeline.json       the same as steps, with when each began and ended
    checks.json         the checks, with what each saw
    manifests/          Argo CD's Applications, and the objects that aren't well
    pods.txt            all pods
    logs/               what the containers say that aren't ready or were started again, or where there are none, all of
                        the platform; previous.log: before they were started again
    cluster-events.txt  what the cluster noticed, in order
    nodes/              journals of the nodes, of the kubelet and of containerd, containers, disks

    Could not be had:
      nodes/devenv-dev-control-plane/containers.txt: `docker exec devenv-dev-control-plane ctr --namespace k8s.io tasks list` failed (exit status 127)
          | ctr --namespace k8s.io tasks list: not found
      nodes/devenv-dev-control-plane/disk.txt: `docker exec devenv-dev-control-plane df -h` failed (exit status 127)
          | df -h: not found
      the cluster: its API server doesn't answer, or there is none

    Masked as ********: 0 secret values, tokens, private keys.
    ");
    assert_eq!(
        read(
            &ran.test,
            "why/it/failed/nodes/devenv-dev-control-plane/kubelet.log"
        ),
        "kubelet: token ********\n"
    );
    insta::assert_snapshot!(redacted(&ran, &read(&ran.test, "results.xml")), @r#"
    <?xml version="1.0" encoding="UTF-8"?>
    <testsuite name="devenv up dev" tests="1" failures="1" errors="0" skipped="0" time="[time]">
      <testcase classname="devenv.up" name="up" time="[time]"><failure message="create the cluster devenv-dev: `[temp]/bin/kind create cluster --retain --name devenv-dev --image test.devenv.test/node:1 --config [scratch]/kind.yaml --kubeconfig [scratch]/kubeconfig` failed (exit status 1)&#10;  | Ensuring node image&#10;  | ERROR: failed to create cluster: failed to init node with kubeadm">it would prove: everything that the environment describes is there
    by: devenv up</failure></testcase>
    </testsuite>
    "#);
    let events = read(&ran.test, "why/it/failed/events.jsonl");
    let first: serde_json::Value = serde_json::from_str(events.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["event"], &first["name"]),
        (&"started".into(), &"store".into())
    );
    let timeline: serde_json::Value =
        serde_json::from_str(&read(&ran.test, "why/it/failed/timeline.json")).unwrap();
    assert_eq!(timeline[0]["outcome"], "done");
}

fn redacted(ran: &Ran, text: &str) -> String {
    let times = regex::Regex::new(r#"time="[\d.]+""#).unwrap();
    let text = times.replace_all(text, r#"time="[time]""#);
    ran.test.redacted(&text)
}

#[test]
fn a_run_whose_command_fails_is_collected_before_it_is_removed() {
    let engine = Engine::start();
    journal(&engine);
    let checked = r#"[{"name": "gateway a.local", "proves": "", "how": "", "verdict": "passed", "saw": "200", "seconds": 0.1}]"#;
    let test = played(&engine)
        .env("PATH", "/usr/bin:/bin")
        .env("TRIAL_CHECKED", checked);
    let options = ["run", "--junit", "results.xml", "--artifacts", "why"];
    let ran = test
        .clone()
        .args(options.into_iter().chain(["--", "sh", "-c", "exit 9"]))
        .start()
        .wait();
    assert_eq!(ran.status, 9, "{}", ran.transcript());
    assert_nothing_is_left(&ran.test, &engine);
    insta::assert_snapshot!(redacted(&ran, &read(&ran.test, "results.xml")), @r#"
    <?xml version="1.0" encoding="UTF-8"?>
    <testsuite name="devenv run dev" tests="2" failures="1" errors="0" skipped="0" time="[time]">
      <testcase classname="devenv.gateway" name="gateway a.local" time="[time]"><system-out>200</system-out></testcase>
      <testcase classname="devenv.command" name="command" time="[time]"><failure message="exit status 9">it would prove: the command of `devenv run` succeeds
    by: sh -c 'exit 9'</failure></testcase>
    </testsuite>
    "#);
    insta::assert_snapshot!(without_date(&read(&ran.test, "why/README.txt")), @r"
    devenv run dev failed: sh -c 'exit 9': exit status 9
    [date]

    events.jsonl        what devenv did, an event a line
    timeline.json       the same as steps, with when each began and ended
    checks.json         the checks, with what each saw
    manifests/          Argo CD's Applications, and the objects that aren't well
    pods.txt            all pods
    logs/               what the containers say that aren't ready or were started again, or where there are none, all of
                        the platform; previous.log: before they were started again
    cluster-events.txt  what the cluster noticed, in order
    nodes/              journals of the nodes, of the kubelet and of containerd, containers, disks

    Could not be had:
      nodes/devenv-dev-control-plane/containers.txt: `docker exec devenv-dev-control-plane ctr --namespace k8s.io tasks list` failed (exit status 127)
          | ctr --namespace k8s.io tasks list: not found
      nodes/devenv-dev-control-plane/disk.txt: `docker exec devenv-dev-control-plane df -h` failed (exit status 127)
          | df -h: not found
      the cluster: its API server doesn't answer, or there is none

    Masked as ********: 0 secret values, tokens, private keys.
    ");
    // One that succeeds makes no folder.
    fs::remove_dir_all(test.path("project/why")).unwrap();
    fs::remove_file(engine.folder().join("devenv-dev-control-plane")).unwrap_or_default();
    let ran = test
        .args(options.into_iter().chain(["--", "true"]))
        .start()
        .wait();
    assert_eq!(ran.status, 0, "{}", ran.transcript());
    assert!(!ran.test.path("project/why").exists());
}

#[test]
fn github_actions_gets_groups_annotations_and_a_summary() {
    let engine = Engine::start();
    let checked = r#"[
        {"name": "gateway a.local", "proves": "https://a.local opens", "how": "", "verdict": "passed", "saw": "200", "seconds": 0.1},
        {"name": "name a.local", "proves": "", "how": "", "verdict": "not-wired", "saw": "a|b", "seconds": 0.1}
    ]"#;
    let test = played(&engine)
        .env("PATH", "/usr/bin:/bin")
        .env("CI", "true")
        .env("GITHUB_ACTIONS", "true")
        .env("TRIAL_CHECKED", checked);
    let summary = test.path("project/summary.md").display().to_string();
    let test = test.env("GITHUB_STEP_SUMMARY", &summary);
    let ran = test
        .args([
            "run",
            "--",
            "sh",
            "-c",
            "echo ::notice::of the command; exit 1",
        ])
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    ::notice::of the command
    --- stderr
    ::group::cluster
    [time] cluster
    ::endgroup::
    [time] cluster: played ([time])
    ::group::command
    [time] command
    [time] command: sh -c 'echo ::notice::of the command; exit 1'
    ::endgroup::
    [time] command: failed, exit status 1 ([time])
    ::group::down
    [time] down
    [time] down > cluster
    [time] down > cluster: removed 1 container and its volumes ([time])
    [time] down > names
    [time] down > names: unchanged, none in the hosts file ([time])
    [time] down > files
    [time] down > files: kubeconfig and pushed commits removed ([time])
    ::endgroup::
    [time] down: removed ([time])

      phase     start     end    took  outcome
    ✓ cluster  [time]  [time]  [time]  done
    ✗ command  [time]  [time]  [time]  failed
    ✓ down  [time]  [time]  [time]  done

    sh -c 'echo ::notice::of the command; exit 1': exit status 1; dev is gone
    --- status 1
    ");
    insta::assert_snapshot!(redacted(&ran, &read(&ran.test, "summary.md")), @r"
    ### devenv run

    **sh -c 'echo ::notice::of the command; exit 1': exit status 1; dev is gone**

    | phase | start | end | took | |
    |---|--:|--:|--:|---|
    | cluster | [time] | [time] | [time] | done |
    | command | [time] | [time] | [time] | failed |
    | down | [time] | [time] | [time] | done |
    ");
}

#[test]
fn github_actions_shows_mistakes_where_they_are() {
    let test = project().file(
        "cluster-configs/dev.yaml",
        "provider: kind\nconfgi: kind.yaml\n",
    );
    let workspace = test.path("project").display().to_string();
    let ran = test
        .env("GITHUB_ACTIONS", "true")
        .env("GITHUB_WORKSPACE", &workspace)
        .args(["up"])
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    ::error file=cluster-configs/dev.yaml,line=2,col=1,title=devenv::cluster-configs/dev.yaml:2:1: unknown key `confgi`, expected one of `provider`, `config`, `context`, `kubeconfig`, `registry`, `images`, `node-image`, `system-images`, `overlays`, `domain`, `hosts`, `exclude`, `image-names`, `addresses`%0A  |%0A2 | confgi: kind.yaml%0A  | ^%0Ahint: did you mean `config`?
    --- status 2
    ");
}

// The key, and what it is of.

#[test]
fn the_key_changes_exactly_when_something_else_is_needed() {
    let test = project();
    let key = |test: &Test| {
        let ran = test.clone().args(["images", "key"]).start().wait();
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        ran.stdout
    };
    let first = key(&test);
    let form = regex::Regex::new(r"^packages-[a-z0-9_]+-[0-9a-f]{32}\n$").unwrap();
    assert!(form.is_match(&first), "{first}");
    assert_eq!(key(&test), first);
    let bundle = |text: &str| {
        let text = format!("wave: 1\nnamespace: default\n{text}");
        test.clone()
            .file("bundles/infrastructure/namespaces/bundle.yaml", &text)
    };
    // Words, not needs.
    assert_eq!(key(&bundle("# a comment\n")), first);
    let node = fs::read_to_string(test.path("project/cluster-configs/dev.yaml")).unwrap();
    let other_ports = test.clone().publishing(81, 444);
    assert_eq!(key(&other_ports), first);
    // Another image, another pin, another recipe.
    let mut keys = vec![first.clone()];
    let mut is_new = |key: String| {
        assert!(!keys.contains(&key), "{key} again");
        keys.push(key);
    };
    is_new(key(&bundle("images: [a.test/b:1]\n")));
    is_new(key(&bundle("images: [a.test/b:2]\n")));
    assert_eq!(key(&bundle("")), first);
    let recipe = |text: &str| test.clone().file("scripts/packages/recipe", text);
    is_new(key(&recipe("one")));
    is_new(key(&recipe("two")));
    fs::remove_file(test.path("project/scripts/packages/recipe")).unwrap();
    assert_eq!(key(&test), first);
    let environment = |text: &str| test.clone().file("cluster-configs/dev.yaml", text);
    is_new(key(&environment(&node.replace("node:1", "node:2"))));
    is_new(key(&environment(
        &node.replace("images: packages", "images: registry"),
    )));
    assert_eq!(key(&environment(&node)), first);
}

#[test]
fn what_is_needed_is_listed_with_what_is_there() {
    let engine = Engine::start();
    let test = project().docker(&engine).fake("kind", KIND_FAILS);
    let before = test.traces();
    let list = |args: &[&str]| test.clone().args(args.iter().copied()).start().wait();
    insta::assert_snapshot!(list(&["images", "list"]).transcript(), @r"
    image  test.devenv.test/node:1                           not in the store
    image  quay.io/argoproj/argocd:v3.2.11                   not in the store
    image  public.ecr.aws/docker/library/redis:8.2.2-alpine  not in the store
    file   https://test.devenv.test/install.yaml             not in the store

    0 of 4 in the store, 0 B of it; layers that images share counted once
    --- stderr
    --- status 0
    ");
    assert_eq!(test.traces(), before);
    test.clone().args(["up"]).start().wait();
    insta::assert_snapshot!(list(&["images", "list"]).transcript(), @r"
    image  test.devenv.test/node:1                           100 kB
    image  quay.io/argoproj/argocd:v3.2.11                   100 kB
    image  public.ecr.aws/docker/library/redis:8.2.2-alpine  100 kB
    file   https://test.devenv.test/install.yaml             16 B

    4 of 4 in the store, 101 kB of it; layers that images share counted once
    --- stderr
    --- status 0
    ");
    insta::assert_snapshot!(list(&["images", "list", "-o", "json"]).transcript(), @r#"
    [{"name":"test.devenv.test/node:1","kind":"image","origin":"packages","inStore":true,"size":100445},{"name":"quay.io/argoproj/argocd:v3.2.11","kind":"image","origin":"packages","inStore":true,"size":100453},{"name":"public.ecr.aws/docker/library/redis:8.2.2-alpine","kind":"image","origin":"packages","inStore":true,"size":100471},{"name":"https://test.devenv.test/install.yaml","kind":"file","origin":"packages","inStore":true,"size":16}]
    --- stderr
    --- status 0
    "#);
}

#[test]
fn what_changes_is_told_as_it_changes() {
    let engine = Engine::start();
    let test = project().docker(&engine);
    let node = test.node();
    let running = test.args(["status", "--watch"]).start();
    running.wait_until_it_says(&["absent"]);
    engine.world().containers.push(node);
    running.wait_until_it_says(&["half-made"]);
    engine.world().broken = Some((500, "out of order".to_owned()));
    running.wait_until_it_says(&["out of order"]);
    engine.world().containers[0].state = "exited".to_owned();
    engine.world().broken = None;
    running.wait_until_it_says(&["devenv up starts it\n[", "not all is ready"]);
    running.signal(nix::sys::signal::Signal::SIGINT);
    insta::assert_snapshot!(running.wait().transcript(), @r"
    [time] cluster devenv-dev: absent: devenv up makes it
    [time] not all is ready
    [time] cluster devenv-dev: half-made: kubeadm was stopped before it finished; devenv up makes it anew
    [time] Docker at unix:[engine]/docker.sock answered with an error: Docker responded with status code 500: out of order
    [time] cluster devenv-dev: stopped: devenv-dev-control-plane doesn't run; devenv up starts it
    [time] not all is ready
    --- stderr
    --- status 130
    ");
}

#[test]
fn at_a_terminal_the_status_is_drawn_over_itself() {
    let engine = Engine::start();
    let test = project().docker(&engine);
    let node = test.node();
    let running = test.args(["status", "--watch"]).terminal(60, 10).start();
    running.screen_with(&["absent"]);
    engine.world().containers.push(node);
    insta::assert_snapshot!(running.screen_with(&["half-made"]), @r"
    environment  dev
    cluster      devenv-dev (kind), half-made: kubeadm was stop…
    ");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(running.wait().status, 143);
}

#[test]
fn a_watch_goes_on_after_an_error() {
    let engine = Engine::start();
    let test = project().docker(&engine);
    let running = test.clone().args(["sync", "--watch"]).start();
    running.wait_until_it_says(&["all bundles: not applied: the cluster devenv-dev doesn't run"]);
    let test = test.file(
        "bundles/infrastructure/namespaces/bundle.yaml",
        "wave: 9\nnamespace: default\n",
    );
    running.wait_until_it_says(&["bundle.yaml: not applied: ", "expected 1, 2, 3 or 4"]);
    drop(test.file(
        "bundles/infrastructure/namespaces/bundle.yaml",
        "wave: 1\nnamespace: default\n# again\n",
    ));
    running.wait_until_it_says(&["bundle.yaml: not applied: the cluster devenv-dev doesn't run"]);
    running.signal(nix::sys::signal::Signal::SIGINT);
    let ran = running.wait();
    assert_eq!((ran.status, ran.stdout.as_str()), (130, ""));
}

// The workflow of the README.

/// Its steps, as the README has them.
pub(crate) fn workflow() -> Value {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let (_, section) = readme.split_once("\n## In CI\n").unwrap();
    let (_, block) = section.split_once("```yaml\n").unwrap();
    let (block, _) = block.split_once("```\n").unwrap();
    let mut documents = devenv::yaml::documents("README.md", block).unwrap();
    assert_eq!(documents.len(), 1);
    documents.remove(0)
}

/// Runs the steps as GitHub does, by `bash -e`, with programs that only write down how they were called.
#[test]
fn the_workflow_of_the_readme_is_one_that_devenv_understands() {
    const NOTE: &str = "for word; do printf '%s\\n' \"$word\"; done >> \"$CALLS/words\"; echo --- >> \"$CALLS/words\"; echo a-key";
    let test = Test::new()
        .fake("devenv", NOTE)
        .fake("cargo", "")
        .fake("go", "echo /go");
    let workflow = workflow();
    let job = &workflow["jobs"]["test"];
    let steps = job["steps"].as_array().unwrap();
    let folder = test.path("project");
    for run in steps.iter().filter_map(|step| step["run"].as_str()) {
        let ran = program("bash")
            .args(["--noprofile", "--norc", "-e", "-o", "pipefail", "-c", run])
            .current_dir(&folder)
            .env_clear()
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", test.path("bin").display()),
            )
            .env("CALLS", test.path("calls"))
            .env("GITHUB_OUTPUT", folder.join("output"))
            .env("GITHUB_PATH", folder.join("path"))
            .output()
            .unwrap();
        assert!(
            ran.status.success(),
            "{run}: {}",
            String::from_utf8_lossy(&ran.stderr)
        );
    }
    assert_eq!(
        fs::read_to_string(folder.join("output")).unwrap(),
        "key=a-key\n"
    );
    assert_eq!(test.calls("cargo"), ["cargo install --path . --locked"]);
    let kind = &test.calls("go")[0];
    let here = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cluster/mod.rs"));
    assert!(
        here.unwrap().contains(kind.as_str()),
        "{kind} is what devenv advises"
    );

    // Every call of devenv is one that it takes, and the files are the same all over.
    let words = fs::read_to_string(test.path("calls/words")).unwrap();
    let commands: Vec<Command> = words
        .split_terminator("---\n")
        .map(|call| {
            let words = ["devenv"].into_iter().chain(call.lines());
            Cli::try_parse_from(words)
                .unwrap_or_else(|error| panic!("{error}"))
                .command
        })
        .collect();
    let [Command::Images { .. }, Command::Run(run)] = commands.as_slice() else {
        panic!("{commands:?}");
    };
    let uploaded: Vec<_> = steps
        .iter()
        .filter(|step| {
            step["uses"]
                .as_str()
                .unwrap_or_default()
                .starts_with("actions/upload-artifact@")
        })
        .map(|step| {
            (
                step["if"].as_str().unwrap(),
                step["with"]["path"].as_str().unwrap(),
            )
        })
        .collect();
    let (junit, artifacts) = (
        run.evidence.junit.as_ref().unwrap(),
        run.evidence.artifacts.as_ref().unwrap(),
    );
    assert_eq!(
        uploaded,
        [
            ("always()", junit.to_str().unwrap()),
            ("failure()", artifacts.to_str().unwrap()),
        ]
    );
    let find = |name: &str| {
        let uses = |step: &&Value| step["uses"].as_str().unwrap_or_default().starts_with(name);
        steps.iter().find(uses).unwrap()
    };
    let cache = &find("actions/cache@")["with"];
    assert_eq!(cache["path"], "~/.cache/devenv/store");
    assert_eq!(cache["key"], "devenv-${{ steps.images.outputs.key }}");
    let key = steps.iter().find(|step| step["id"] == "images").unwrap();
    assert!(
        key["run"]
            .as_str()
            .unwrap()
            .contains("key=$(devenv images key)")
    );
    let environment = job["env"]["DEVENV_ENVIRONMENT"].as_str().unwrap();
    let file = format!("cluster-configs/{environment}.yaml");
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(file).is_file());
    let pinned = regex::Regex::new(r"^actions/[a-z-]+@v\d+$").unwrap();
    for uses in steps.iter().filter_map(|step| step["uses"].as_str()) {
        assert!(pinned.is_match(uses), "{uses}");
    }
}
