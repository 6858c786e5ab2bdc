//! What is printed, where, seen from outside.

use crate::harness::Test;

#[test]
fn elsewhere_there_are_plain_lines_on_stderr() {
    let ran = Test::new().trial("talk").start().wait();
    let lines: Vec<_> = ran
        .transcript()
        .lines()
        .filter(|line| !line.contains("image-1"))
        .map(str::to_owned)
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    --- stderr
    [time] store
    [time] cluster
    [time] store > fetch packages.devenv.test/team/image-2:1.2.3
    [time] store > fetch packages.devenv.test/team/image-2:1.2.3: fetched ([time], 100 MB)
    [time] store > fetch packages.devenv.test/team/image-3:1.2.3
    [time] store > fetch packages.devenv.test/team/image-3:1.2.3: fetched ([time], 100 MB)
    [time] store > fetch packages.devenv.test/team/image-4:1.2.3
    [time] store > fetch packages.devenv.test/team/image-4:1.2.3: fetched ([time], 100 MB)
    [time] store > fetch packages.devenv.test/team/image-5:1.2.3
    [time] store > fetch packages.devenv.test/team/image-5:1.2.3: fetched ([time], 100 MB)
    [time] store > fetch packages.devenv.test/team/image-6:1.2.3
    [time] store > fetch packages.devenv.test/team/image-6:1.2.3: fetched ([time], 100 MB)
    [time] store > fetch packages.devenv.test/team/image-7:1.2.3
    [time] store > fetch packages.devenv.test/team/image-7:1.2.3: fetched ([time], 100 MB)
    [time] store > fetch packages.devenv.test/team/image-8:1.2.3
    [time] store > fetch packages.devenv.test/team/image-8:1.2.3: fetched ([time], 100 MB)
    [time] store > fetch packages.devenv.test/team/image-9:1.2.3
    [time] store > fetch packages.devenv.test/team/image-9:1.2.3: fetched ([time], 100 MB)
    [time] store > fetch packages.devenv.test/team/image-20:1.2.3
    [time] store > fetch packages.devenv.test/team/image-20:1.2.3: fetched ([time], 100 MB)
    [time] cluster: Starting control-plane 日本語 🕹
    [time] store: unchanged, 20 images ([time])
    [time] no image registry answers, so images are built from packages
    [time] cluster: created ([time])

      phase     start     end    took  outcome
    = store  [time]  [time]  [time]  unchanged
    ✓ cluster  [time]  [time]  [time]  done

    ready: 2 of 2 applications healthy at 4f2a91c
    --- status 0
    ");
}

#[test]
fn quiet_is_notices_and_the_verdict() {
    Test::new()
        .trial("talk")
        .env("TRIAL_QUIET", "1")
        .stderr("no image registry answers, so images are built from packages\nready: 2 of 2 applications healthy at 4f2a91c\n")
        .run();
}

#[test]
fn json_is_one_object_per_line_on_stdout_and_nothing_else() {
    let ran = Test::new()
        .trial("talk")
        .env("TRIAL_JSON", "1")
        .start()
        .wait();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let events: Vec<serde_json::Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events.last().unwrap()["event"], "verdict");
    assert!(events.iter().all(|event| event["at"].is_number()));
    assert!(!ran.stdout.contains("a line for -v"));
}

#[test]
fn the_lines_of_children_come_with_v_even_on_a_terminal() {
    let ran = Test::new()
        .trial("talk")
        .env("TRIAL_VERBOSE", "1")
        .terminal(100, 100)
        .start()
        .wait();
    assert!(
        ran.screen().contains("cluster | a line for -v"),
        "{}",
        ran.screen()
    );
}

#[test]
fn a_terminal_of_100_columns() {
    let ran = Test::new().trial("talk").terminal(100, 30).start().wait();
    assert!(ran.stdout.contains("image-20") && ran.stdout.contains("\u{1b}["));
    insta::assert_snapshot!(ran.screen(), @r"
    =  [time]  store  20 images
    no image registry answers, so images are built from packages
    ✓  [time]  cluster  created

      phase     start     end    took  outcome
    = store  [time]  [time]  [time]  unchanged
    ✓ cluster  [time]  [time]  [time]  done

    ready: 2 of 2 applications healthy at 4f2a91c
    ");
}

#[test]
fn a_terminal_of_40_columns_and_few_rows() {
    let ran = Test::new().trial("talk").terminal(40, 12).start().wait();
    insta::assert_snapshot!(ran.screen(), @r"
    =  [time]  store  20 images
    no image registry answers, so images are
     built from packages
    ✓  [time]  cluster  created

      phase     start     end    took
    = store  [time]  [time]  [time]
    ✓ cluster  [time]  [time]  [time]

    ready: 2 of 2 applications healthy at 4f
    2a91c
    ");
}

#[test]
fn no_color_on_a_terminal() {
    let ran = Test::new()
        .trial("talk")
        .env("NO_COLOR", "1")
        .terminal(100, 30)
        .start()
        .wait();
    // Not the cursor's way up by three lines, `[3A`.
    let colored = regex::Regex::new("\u{1b}\\[(3[0-9]|9[0-9]|[12])(;[0-9]+)*m").unwrap();
    assert!(!colored.is_match(&ran.stdout), "{:?}", ran.stdout);
}

#[test]
fn a_dumb_terminal_and_ci_get_plain_lines() {
    for (name, value) in [("TERM", "dumb"), ("CI", "true")] {
        let ran = Test::new()
            .trial("talk")
            .env(name, value)
            .terminal(100, 100)
            .start()
            .wait();
        assert!(!ran.stdout.contains("\u{1b}[K"), "{name}");
        assert!(ran.screen().contains("[time] cluster"), "{}", ran.screen());
    }
}

#[test]
fn readers_who_go_away_are_no_failure() {
    for (trial, json) in [("data", ""), ("talk", ""), ("talk", "1")] {
        let mut test = Test::new().trial(trial).without_readers();
        if !json.is_empty() {
            test = test.env("TRIAL_JSON", json);
        }
        assert_eq!(test.start().wait().status, 0, "{trial}");
    }
}

#[test]
fn data_that_can_not_be_written_is_a_failure() {
    let ran = Test::new().trial("full").start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: can't write to stdout: No space left on device (os error 28)

    hint: `df -h` shows which disk is full; with some of it free run the same command again
    --- status 1
    ");
}
