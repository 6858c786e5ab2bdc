//! devenv through its front door, with Docker absent or played.

use crate::engine::{Container, Engine};
use crate::harness::Test;

/// A project with the configs and bundles of this repository.
fn project() -> Test {
    Test::new().copy("cluster-configs").copy("bundles")
}

#[test]
fn docker_is_not_there() {
    let ran = project().args(["up"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    [time] dev leaves out: victorialogs
    error: Docker isn't installed: nothing is at unix://[temp]/no-docker.sock, and there is no `docker` on PATH

    hint: install it: https://docs.docker.com/engine/install
    --- status 1
    ");
}

#[test]
fn docker_is_out_of_order() {
    let engine = Engine::start();
    engine.world().broken = Some((500, "no space left on device".to_owned()));
    let ran = project().docker(&engine).args(["up"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    [time] dev leaves out: victorialogs
    error: Docker at unix:[engine]/docker.sock answered with an error: Docker responded with status code 500: no space left on device

    hint: see what `docker version` says
    --- status 1
    ");
}

#[test]
fn an_error_is_json_on_request() {
    let ran = project().args(["up", "-o", "json"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r#"
    {"at":[time],"event":"notice","text":"dev leaves out: victorialogs"}
    {"event":"error","message":"Docker isn't installed: nothing is at unix://[temp]/no-docker.sock, and there is no `docker` on PATH","hint":"install it: https://docs.docker.com/engine/install","exit":1}
    --- stderr
    --- status 1
    "#);
}

#[test]
fn a_mistake_in_a_file_is_found_before_docker_is_asked() {
    let ran = project()
        .file(
            "cluster-configs/dev.yaml",
            "provider: kind\nconfgi: kind.yaml\n",
        )
        .args(["up"])
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: cluster-configs/dev.yaml:2:1: unknown key `confgi`, expected one of `provider`, `config`, `context`, `kubeconfig`, `registry`, `images`, `node-image`, `system-images`, `overlays`, `domain`, `hosts`, `exclude`, `image-names`, `addresses`
      |
    2 | confgi: kind.yaml
      | ^
    hint: did you mean `config`?
    --- status 2
    ");
}

#[test]
fn a_cluster_of_somebody_else_is_left_alone() {
    let engine = Engine::start();
    engine
        .world()
        .containers
        .push(Container::node("devenv-dev", "somebody-else"));
    for command in ["up", "down", "reset"] {
        let ran = project().docker(&engine).args([command]).start().wait();
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
        drop(world);
        assert_eq!(ran.status, 1, "{}", ran.transcript());
        if command == "up" {
            insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            [time] dev leaves out: victorialogs
            error: a kind cluster named devenv-dev exists that this environment didn't make (its nodes lack the mount /devenv/[id])

            hint: if nobody needs it: kind delete cluster --name devenv-dev; else give this environment another name by renaming [temp]/project/cluster-configs/dev.yaml
            --- status 1
            ");
        }
    }
}

#[test]
fn down_removes_what_is_ours_and_nothing_else() {
    let engine = Engine::start();
    let test = project().docker(&engine);
    let path = test.clone().args(["kubeconfig"]).start().wait().stdout;
    let id = path.trim_end().rsplit('/').nth(1).unwrap();
    engine.world().containers.extend([
        Container::node("devenv-dev", id),
        Container::node("devenv-other", "somebody-else"),
    ]);
    let ran = test.args(["down"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    [time] cluster
    [time] cluster: removed 1 container and its volumes ([time])
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
    let names: Vec<_> = engine
        .world()
        .containers
        .iter()
        .map(|container| container.name.clone())
        .collect();
    assert_eq!(names, ["devenv-other-control-plane"]);
}

#[test]
fn down_of_nothing_is_fine_twice() {
    let engine = Engine::start();
    let test = project().docker(&engine).args(["down"]);
    for _ in 0..2 {
        let ran = test.clone().start().wait();
        insta::allow_duplicates! {
            insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            [time] cluster
            [time] cluster: unchanged, no container of it ([time])
            [time] names
            [time] names: unchanged, none in the hosts file ([time])
            [time] files
            [time] files: unchanged, none ([time])

              phase     start     end    took  outcome
            = cluster  [time]  [time]  [time]  unchanged
            = names  [time]  [time]  [time]  unchanged
            = files  [time]  [time]  [time]  unchanged

            nothing to remove: dev isn't there
            --- status 0
            ");
        }
    }
}

#[test]
fn the_path_of_the_kubeconfig_is_data() {
    let test = project().args(["kubeconfig"]);
    let ran = test.clone().start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    [temp]/home/.local/share/devenv/environments/[id]/kubeconfig
    --- stderr
    --- status 0
    ");
    assert_eq!(test.without_readers().start().wait().status, 0);
}

#[test]
fn init_writes_the_defaults_and_never_over_a_file() {
    let test = Test::new()
        .file(
            "team/bundles/environment/environment.yaml",
            "# the team's own\n",
        )
        .args(["init", "team"]);
    let ran = test.clone().start().wait();
    let text = ran.transcript();
    assert!(
        text.contains("bundles/environment/environment.yaml was there and is left as it is"),
        "{text}"
    );
    assert!(
        text.contains("ready to edit, 1 of them as they were; devenv up brings it up\n"),
        "{text}"
    );
    let read = |path: &str| std::fs::read_to_string(test.path("project/team").join(path)).unwrap();
    assert_eq!(
        read("bundles/environment/environment.yaml"),
        "# the team's own\n"
    );
    for path in [
        "bundles/iam/keycloak/bundle.yaml",
        "bundles/infrastructure/istiod/overlays/prod/kustomization.yaml",
        "cluster-configs/dev.yaml",
    ] {
        let own =
            std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
                .unwrap();
        assert_eq!(read(path), own);
    }
    // All of it was there by now.
    let again = test.clone().start().wait().transcript();
    assert!(again.contains("0 written into"), "{again}");
    // And it is a project: its files are read without a mistake, as far as Docker, which isn't there.
    let up = test
        .args(["up", "-e", "team/cluster-configs/dev.yaml"])
        .start()
        .wait()
        .transcript();
    assert!(up.contains("error: Docker isn't installed"), "{up}");
}
