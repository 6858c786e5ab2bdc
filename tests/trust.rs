//! `devenv trust` with the system's real programs. What they change lies in a mount namespace of the test's own, and in a
//! temporary home: no store of this machine is touched.

use std::fs;

use crate::harness::{Ran, Test};

/// What `update-ca-certificates` is made of, and the rest of a small system. Nothing else is on `PATH`, so that no browser of
/// this machine is found.
const SYSTEM: [&str; 25] = [
    "basename",
    "cat",
    "chmod",
    "cp",
    "find",
    "install",
    "ln",
    "mkdir",
    "mktemp",
    "mount",
    "mv",
    "openssl",
    "readlink",
    "rm",
    "run-parts",
    "sed",
    "sh",
    "sha256sum",
    "sort",
    "unshare",
    "update-ca-certificates",
    "wc",
    "grep",
    "xargs",
    "test",
];

/// Puts copies in the place of the system's store. $0 is devenv.
const OWN_STORE: &str = r#"
    mkdir -p "$HOME/store/certs" "$HOME/store/local"
    cp -rP /etc/ssl/certs/. "$HOME/store/certs"
    mount --bind "$HOME/store/certs" /etc/ssl/certs || exit 99
    mount --bind "$HOME/store/local" /usr/local/share/ca-certificates || exit 99
    # What other packages hang onto it is their business.
    test ! -d /etc/ca-certificates/update.d || mount -t tmpfs none /etc/ca-certificates/update.d
"#;

/// Hides the system's store, so that there are only browsers.
const NO_STORE: &str = r#"mount -t tmpfs none /usr/local/share || exit 99
"#;

fn in_namespace(test: Test, script: &str) -> Test {
    let test = SYSTEM.iter().fold(test, |test, name| match *name {
        "update-ca-certificates" => test.tool_at(name, "/usr/sbin/update-ca-certificates"),
        _ => test.tool(name),
    });
    test.under([
        "unshare",
        "--map-root-user",
        "--mount",
        "/bin/sh",
        "-c",
        script,
    ])
}

fn project() -> Test {
    Test::new().copy("cluster-configs")
}

fn read(ran: &Ran, path: &str) -> String {
    fs::read_to_string(ran.test.path(path)).unwrap()
}

#[test]
fn the_systems_store_takes_the_ca_and_gives_it_back() {
    let day = format!(
        r#"{OWN_STORE}
        list() {{ (cd /etc/ssl/certs && find . -type l -printf '%p -> %l\n' && find . -type f -print0 | xargs -0 sha256sum) | sort; }}
        sign() {{ openssl req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$HOME/key" -subj /CN=x \
            -addext "subjectAltName=DNS:$1" -addext basicConstraints=critical,CA:FALSE -CA "$ca/ca.pem" -CAkey "$ca/ca-key.pem" -days 1 -out "$HOME/$1.pem" 2>/dev/null; }}
        verify() {{ openssl verify -CApath /etc/ssl/certs -verify_hostname "$1" "$HOME/$1.pem" >/dev/null 2>&1 && echo "$1 is accepted" || echo "$1 is refused"; }}
        ca=$HOME/.local/share/devenv/ca/local
        update-ca-certificates --fresh > /dev/null 2>&1
        list > "$HOME/before"
        "$0" trust status; echo "exit $?"
        "$0" trust install --plan; echo "exit $?"
        list | cmp - "$HOME/before" && ls -A "$HOME/.local" 2>/dev/null
        "$0" trust install; echo "exit $?"
        "$0" trust install -q
        sign argocd.local; sign example.com
        verify argocd.local; verify example.com
        "$0" trust status | sed 's/(.*@.*), until .*/(somebody), until [day]/'
        "$0" trust uninstall; echo "exit $?"
        verify argocd.local
        list > "$HOME/after"
        "$0" trust uninstall -q
        ls -A /usr/local/share/ca-certificates; ls "$ca""#
    );
    let test = in_namespace(project(), &day).tool("cmp").tool("ls");
    let ran = test.start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    local has no CA yet; devenv up makes one
    signs   local and localhost with all names below them, no addresses, nothing else

    store   state        place
    system  not trusted  /usr/local/share/ca-certificates/devenv-local-root.crt
    exit 1
    this would be run:
      system (/usr/local/share/ca-certificates/devenv-local-root.crt)
        install -m 0644 [temp]/home/.local/share/devenv/ca/local/ca.pem /usr/local/share/ca-certificates/devenv-local-root.crt
        update-ca-certificates
    exit 0
    exit 0
    argocd.local is accepted
    example.com is refused
    ca      devenv CA for local (somebody), until [day]
    file    [temp]/home/.local/share/devenv/ca/local/ca.pem
    signs   local and localhost with all names below them, no addresses, nothing else

    store   state        place
    system  trusted      /usr/local/share/ca-certificates/devenv-local-root.crt

    curl --cacert [temp]/home/.local/share/devenv/ca/local/ca.pem https://argocd.local/
    exit 0
    argocd.local is refused
    ca-key.pem
    ca.pem
    --- stderr
    [time] this is run:
    [time]   system (/usr/local/share/ca-certificates/devenv-local-root.crt)
    [time]     install -m 0644 [temp]/home/.local/share/devenv/ca/local/ca.pem /usr/local/share/ca-certificates/devenv-local-root.crt
    [time]     update-ca-certificates
    [time] stores
    [time] stores: system
    [time] stores: system changed ([time])

      phase    start     end    took  outcome
    ✓ stores  [time]  [time]  [time]  done

    trusted by system; browsers that are open see it when they are started again
    trusted by system; browsers that are open see it when they are started again
    [time] this is run:
    [time]   system (/usr/local/share/ca-certificates/devenv-local-root.crt)
    [time]     rm -f /usr/local/share/ca-certificates/devenv-local-root.crt
    [time]     update-ca-certificates --fresh
    [time] stores
    [time] stores: system
    [time] stores: system changed ([time])

      phase    start     end    took  outcome
    ✓ stores  [time]  [time]  [time]  done

    no store of this machine trusts it; the CA itself stays in [temp]/home/.local/share/devenv/ca/local/ca.pem
    no store of this machine trusts it; the CA itself stays in [temp]/home/.local/share/devenv/ca/local/ca.pem
    --- status 0
    ");
    assert_eq!(read(&ran, "home/before"), read(&ran, "home/after"));
}

#[test]
fn half_done_and_former_ones_are_found_and_mended() {
    let day = format!(
        r#"{OWN_STORE}
        state() {{ "$0" trust status | grep ^system; }}
        ca=$HOME/.local/share/devenv/ca/local
        file=/usr/local/share/ca-certificates/devenv-local-root.crt
        "$0" trust install -q
        rm "$file"
        state
        "$0" trust install -q; state
        mv "$ca" "$HOME/former"
        state
        "$0" trust install -q; state
        openssl verify -CApath /etc/ssl/certs "$HOME/former/ca.pem" > /dev/null 2>&1 || echo "the former is refused"
        mv "$ca" "$HOME/second"
        "$0" trust uninstall -q
        "$0" trust status | grep ^system
        ls -A /usr/local/share/ca-certificates"#
    );
    let test = in_namespace(project(), &day).tool("ls");
    insta::assert_snapshot!(test.start().wait().transcript(), @r"
    system  half done    /usr/local/share/ca-certificates/devenv-local-root.crt: devenv trust install finishes it
    system  trusted      /usr/local/share/ca-certificates/devenv-local-root.crt
    system  another CA   /usr/local/share/ca-certificates/devenv-local-root.crt: a former one of this domain; devenv trust install replaces it
    system  trusted      /usr/local/share/ca-certificates/devenv-local-root.crt
    the former is refused
    system  not trusted  /usr/local/share/ca-certificates/devenv-local-root.crt
    --- stderr
    this is run:
      system (/usr/local/share/ca-certificates/devenv-local-root.crt)
        install -m 0644 [temp]/home/.local/share/devenv/ca/local/ca.pem /usr/local/share/ca-certificates/devenv-local-root.crt
        update-ca-certificates
    trusted by system; browsers that are open see it when they are started again
    this is run:
      system (/usr/local/share/ca-certificates/devenv-local-root.crt)
        install -m 0644 [temp]/home/.local/share/devenv/ca/local/ca.pem /usr/local/share/ca-certificates/devenv-local-root.crt
        update-ca-certificates --fresh
    trusted by system; browsers that are open see it when they are started again
    this is run:
      system (/usr/local/share/ca-certificates/devenv-local-root.crt)
        install -m 0644 [temp]/home/.local/share/devenv/ca/local/ca.pem /usr/local/share/ca-certificates/devenv-local-root.crt
        update-ca-certificates --fresh
    trusted by system; browsers that are open see it when they are started again
    this is run:
      system (/usr/local/share/ca-certificates/devenv-local-root.crt)
        rm -f /usr/local/share/ca-certificates/devenv-local-root.crt
        update-ca-certificates --fresh
    no store of this machine trusts it
    --- status 0
    ");
}

/// devenv as a user who is not root, in the mount namespace of one who is.
const AS_USER: &str = r#"exec unshare --user --map-user=54321 "$0" "$@""#;

/// Lets everybody, as sudo with a password does who is asked.
const SUDO: &str = r#"[ "$1" = -n ] && shift
exec "$@""#;

#[test]
fn an_ordinary_user_needs_sudo_for_the_systems_store_only() {
    let script = format!("{OWN_STORE}{AS_USER}");
    let test = in_namespace(project(), &script).args(["trust", "install"]);
    let missing = test.clone().start().wait();
    insta::assert_snapshot!(missing.transcript(), @r"
    --- stderr
    [time] this is run:
    [time]   system (/usr/local/share/ca-certificates/devenv-local-54321.crt)
    [time]     sudo -n install -m 0644 [temp]/home/.local/share/devenv/ca/local/ca.pem /usr/local/share/ca-certificates/devenv-local-54321.crt
    [time]     sudo -n update-ca-certificates
    [time] stores
    [time] stores: system
    [time] stores: failed ([time])
    error: change the store system: sudo is not on PATH

    hint: become root and run the commands that `devenv trust install --plan` shows
    --- status 1
    ");

    let refused = test
        .clone()
        .fake("sudo", "echo 'sudo: a password is required' >&2; exit 1");
    insta::assert_snapshot!(refused.start().wait().transcript(), @r"
    --- stderr
    [time] this is run:
    [time]   system (/usr/local/share/ca-certificates/devenv-local-54321.crt)
    [time]     sudo -n install -m 0644 [temp]/home/.local/share/devenv/ca/local/ca.pem /usr/local/share/ca-certificates/devenv-local-54321.crt
    [time]     sudo -n update-ca-certificates
    [time] stores
    [time] stores: system
    [time] stores: failed ([time])
    error: change the store system: `sudo -n install -m 0644 [temp]/home/.local/share/devenv/ca/local/ca.pem /usr/local/share/ca-certificates/devenv-local-54321.crt` failed (exit status 1)
      | sudo: a password is required

    hint: run it on a terminal, where sudo can ask for a password (CI must not be set), or run the commands that --plan shows as root
    --- status 1
    ");

    let ran = test.fake("sudo", SUDO).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    [time] this is run:
    [time]   system (/usr/local/share/ca-certificates/devenv-local-54321.crt)
    [time]     sudo -n install -m 0644 [temp]/home/.local/share/devenv/ca/local/ca.pem /usr/local/share/ca-certificates/devenv-local-54321.crt
    [time]     sudo -n update-ca-certificates
    [time] stores
    [time] stores: system
    [time] stores: system changed ([time])

      phase    start     end    took  outcome
    ✓ stores  [time]  [time]  [time]  done

    trusted by system; browsers that are open see it when they are started again
    --- status 0
    ");
    assert_eq!(ran.test.calls("sudo").len(), 3);
}

#[test]
fn on_a_terminal_sudo_may_ask() {
    let script = format!("{OWN_STORE}{AS_USER}");
    // Only the terminal's foreground process group may read from it.
    let asks = r#"read -r pid name state parent group session terminal front rest < /proc/$$/stat
        [ -t 0 ] && [ "$group" = "$front" ] && echo "[sudo] password for me:" >&2
        exec "$@""#;
    let test = in_namespace(project(), &script)
        .fake("sudo", asks)
        .args(["trust", "install"]);
    let on_terminal = test.clone().before(["setsid", "--ctty", "--wait"]);
    let ran = on_terminal.terminal(150, 40).start().wait();
    let screen = ran.screen();
    let places: Vec<_> = [
        "this is run:\n  system (",
        "    sudo update-ca-certificates\n",
        "[sudo] password for me:",
        "1 added, 0 removed",
        "trusted by system",
    ]
    .map(|text| screen.find(text))
    .into();
    assert!(places.is_sorted() && places[0].is_some(), "{screen}");
    assert_eq!(ran.status, 0);

    // In CI nobody is there, terminal or not.
    let ran = test
        .env("CI", "true")
        .before(["setsid", "--ctty", "--wait"])
        .args(["trust", "uninstall", "--plan"])
        .terminal(150, 40)
        .start()
        .wait();
    insta::assert_snapshot!(ran.screen(), @r"
    this would be run:
      system (/usr/local/share/ca-certificates/devenv-local-54321.crt)
        sudo -n rm -f /usr/local/share/ca-certificates/devenv-local-54321.crt
        sudo -n update-ca-certificates --fresh
    ");
}

/// Plays certutil: a database is a folder with a file for each certificate.
const CERTUTIL: &str = r#"
    what=$1 folder=${3#sql:}; shift 3
    case $what in
    -N) : > "$folder/cert9.db" ;;
    -A) cp "$6" "$folder/ca" ;;
    -D) rm "$folder/ca" ;;
    -L) [ -e "$folder/ca" ] || exit 0
        if [ $# = 0 ]; then echo 'devenv CA for local      C,,  '; else cat "$folder/ca"; fi ;;
    esac"#;

#[test]
fn browsers_have_stores_of_their_own() {
    let day = format!(
        r#"{NO_STORE}
        "$0" trust status; echo "exit $?"
        "$0" trust install; echo "exit $?"
        "$0" trust status -o json; echo "exit $?"
        "$0" trust uninstall; echo "exit $?""#
    );
    let test = in_namespace(browsers(project()), &day).fake("certutil", CERTUTIL);
    let ran = test.start().wait();
    let text = ran.transcript();
    let text = regex::Regex::new(r#"\([^()@]+@[^()]*\)|\d{4}-\d\d-\d\d"#)
        .unwrap()
        .replace_all(&text, "[…]");
    insta::assert_snapshot!(text, @r#"
    local has no CA yet; devenv up makes one
    signs   local and localhost with all names below them, no addresses, nothing else

    store                   state        place
    Chromium                not trusted  [temp]/home/.pki/nssdb
    Firefox (k3j2.default)  not trusted  [temp]/home/.mozilla/firefox/k3j2.default
    exit 1
    exit 0
    {"domain":"local","certificate":{"name":"devenv CA for local […]","file":"[temp]/home/.local/share/devenv/ca/local/ca.pem","until":"[…]"},"stores":[{"name":"Chromium","place":"[temp]/home/.pki/nssdb","state":"trusted","detail":""},{"name":"Firefox (k3j2.default)","place":"[temp]/home/.mozilla/firefox/k3j2.default","state":"trusted","detail":""}],"trusted":true,"curl":"curl --cacert [temp]/home/.local/share/devenv/ca/local/ca.pem https://argocd.local/"}
    exit 0
    exit 0
    --- stderr
    [time] this is run:
    [time]   Chromium ([temp]/home/.pki/nssdb): made for it, as it would make it itself, and left there
    [time]     mkdir -p -m 0700 [temp]/home/.pki/nssdb
    [time]     certutil -N -d sql:[temp]/home/.pki/nssdb --empty-password
    [time]     certutil -A -d sql:[temp]/home/.pki/nssdb -n 'devenv CA for local' -t C,, -i [temp]/home/.local/share/devenv/ca/local/ca.pem
    [time]   Firefox (k3j2.default) ([temp]/home/.mozilla/firefox/k3j2.default)
    [time]     certutil -A -d sql:[temp]/home/.mozilla/firefox/k3j2.default -n 'devenv CA for local' -t C,, -i [temp]/home/.local/share/devenv/ca/local/ca.pem
    [time] stores
    [time] stores: Chromium
    [time] stores: Chromium, Firefox (k3j2.default) changed ([time])

      phase    start     end    took  outcome
    ✓ stores  [time]  [time]  [time]  done

    trusted by Chromium, Firefox (k3j2.default); browsers that are open see it when they are started again
    [time] this is run:
    [time]   Chromium ([temp]/home/.pki/nssdb)
    [time]     certutil -D -d sql:[temp]/home/.pki/nssdb -n 'devenv CA for local'
    [time]   Firefox (k3j2.default) ([temp]/home/.mozilla/firefox/k3j2.default)
    [time]     certutil -D -d sql:[temp]/home/.mozilla/firefox/k3j2.default -n 'devenv CA for local'
    [time] stores
    [time] stores: Chromium
    [time] stores: Chromium, Firefox (k3j2.default) changed ([time])

      phase    start     end    took  outcome
    ✓ stores  [time]  [time]  [time]  done

    no store of this machine trusts it; the CA itself stays in [temp]/home/.local/share/devenv/ca/local/ca.pem
    --- status 0
    "#);
    let changes: Vec<_> = ran
        .test
        .calls("certutil")
        .into_iter()
        .filter(|call| !call.starts_with("certutil -L"))
        .collect();
    insta::assert_debug_snapshot!(changes, @r#"
    [
        "certutil -N -d sql:[temp]/home/.pki/nssdb --empty-password",
        "certutil -A -d sql:[temp]/home/.pki/nssdb -n devenv CA for local -t C,, -i [temp]/home/.local/share/devenv/ca/local/ca.pem",
        "certutil -A -d sql:[temp]/home/.mozilla/firefox/k3j2.default -n devenv CA for local -t C,, -i [temp]/home/.local/share/devenv/ca/local/ca.pem",
        "certutil -D -d sql:[temp]/home/.pki/nssdb -n devenv CA for local",
        "certutil -D -d sql:[temp]/home/.mozilla/firefox/k3j2.default -n devenv CA for local",
    ]
    "#);
}

/// Chromium is installed and has never run, Firefox has run.
fn browsers(test: Test) -> Test {
    let profile = test.path("home/.mozilla/firefox/k3j2.default");
    fs::create_dir_all(&profile).unwrap();
    fs::write(profile.join("cert9.db"), "").unwrap();
    test.fake("chromium", "exit 1")
}

#[test]
fn certutil_is_missing() {
    let script = format!("{NO_STORE}\"$0\" trust status; exec \"$0\" trust install");
    let ran = in_namespace(browsers(project()), &script).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    local has no CA yet; devenv up makes one
    signs   local and localhost with all names below them, no addresses, nothing else

    store                   state        place
    Chromium                not trusted  [temp]/home/.pki/nssdb
    Firefox (k3j2.default)  unknown      [temp]/home/.mozilla/firefox/k3j2.default: certutil is not on PATH
    --- stderr
    [time] this is run:
    [time]   Chromium ([temp]/home/.pki/nssdb): made for it, as it would make it itself, and left there
    [time]     mkdir -p -m 0700 [temp]/home/.pki/nssdb
    [time]     certutil -N -d sql:[temp]/home/.pki/nssdb --empty-password
    [time]     certutil -A -d sql:[temp]/home/.pki/nssdb -n 'devenv CA for local' -t C,, -i [temp]/home/.local/share/devenv/ca/local/ca.pem
    [time]   Firefox (k3j2.default) ([temp]/home/.mozilla/firefox/k3j2.default)
    [time]     certutil -D -d sql:[temp]/home/.mozilla/firefox/k3j2.default -n 'devenv CA for local'
    [time]     certutil -A -d sql:[temp]/home/.mozilla/firefox/k3j2.default -n 'devenv CA for local' -t C,, -i [temp]/home/.local/share/devenv/ca/local/ca.pem
    [time] stores
    [time] stores: Chromium
    [time] change the store Firefox (k3j2.default): certutil is not on PATH
    [time] stores: failed ([time])
    error: change the store Chromium: certutil is not on PATH

    hint: install it (`sudo apt-get install libnss3-tools`; Fedora calls the package nss-tools, Arch nss), then run the same command again
    --- status 1
    ");
}

#[test]
fn a_real_database_of_a_browser() {
    if which::which("certutil").is_err() {
        eprintln!("there is no certutil here (libnss3-tools): only the commands were compared");
        return;
    }
    let day = format!(
        r#"{NO_STORE}
        state() {{ "$0" trust status | sed -n 's, */.*,,; /^Firefox/p; /^Chromium/p'; }}
        profile=$HOME/.mozilla/firefox/k3j2.default
        ca=$HOME/.local/share/devenv/ca/local
        sign() {{ openssl req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$HOME/key" -subj /CN=x \
            -addext "subjectAltName=$1" -addext basicConstraints=critical,CA:FALSE -CA "$ca/ca.pem" -CAkey "$ca/ca-key.pem" -days 1 -out "$HOME/leaf.pem" 2>/dev/null
            certutil -A -d "sql:$profile" -n leaf -t ,, -i "$HOME/leaf.pem"
            certutil -V -d "sql:$profile" -n leaf -u V > /dev/null 2>&1 && echo "$1 is accepted" || echo "$1 is refused"
            certutil -D -d "sql:$profile" -n leaf; }}
        rm "$profile/cert9.db"
        certutil -N -d "sql:$profile" --empty-password
        certutil -L -d "sql:$profile" > "$HOME/before"
        "$0" trust install -q; state
        sign DNS:argocd.local; sign DNS:example.com; sign IP:127.0.0.1
        certutil -M -d "sql:$profile" -n 'devenv CA for local' -t ,,
        state
        "$0" trust install -q; state
        mv "$ca" "$HOME/former"
        state
        "$0" trust install -q; state
        certutil -A -d "sql:$profile" -n 'devenv CA for local' -t C,, -i "$HOME/former/ca.pem"
        state
        "$0" trust uninstall -q; state
        certutil -L -d "sql:$profile" | cmp - "$HOME/before" && echo as before"#
    );
    let test = in_namespace(browsers(project()), &day)
        .tool("cmp")
        .tool("certutil");
    insta::assert_snapshot!(test.start().wait().transcript(), @r"
    Chromium                trusted
    Firefox (k3j2.default)  trusted
    DNS:argocd.local is accepted
    DNS:example.com is refused
    IP:127.0.0.1 is refused
    Chromium                trusted
    Firefox (k3j2.default)  half done
    Chromium                trusted
    Firefox (k3j2.default)  trusted
    Chromium                another CA
    Firefox (k3j2.default)  another CA
    Chromium                trusted
    Firefox (k3j2.default)  trusted
    Chromium                trusted
    Firefox (k3j2.default)  half done
    Chromium                not trusted
    Firefox (k3j2.default)  not trusted
    as before
    --- stderr
    this is run:
      Chromium ([temp]/home/.pki/nssdb): made for it, as it would make it itself, and left there
        mkdir -p -m 0700 [temp]/home/.pki/nssdb
        certutil -N -d sql:[temp]/home/.pki/nssdb --empty-password
        certutil -A -d sql:[temp]/home/.pki/nssdb -n 'devenv CA for local' -t C,, -i [temp]/home/.local/share/devenv/ca/local/ca.pem
      Firefox (k3j2.default) ([temp]/home/.mozilla/firefox/k3j2.default)
        certutil -A -d sql:[temp]/home/.mozilla/firefox/k3j2.default -n 'devenv CA for local' -t C,, -i [temp]/home/.local/share/devenv/ca/local/ca.pem
    trusted by Chromium, Firefox (k3j2.default); browsers that are open see it when they are started again
    this is run:
      Firefox (k3j2.default) ([temp]/home/.mozilla/firefox/k3j2.default)
        certutil -D -d sql:[temp]/home/.mozilla/firefox/k3j2.default -n 'devenv CA for local'
        certutil -A -d sql:[temp]/home/.mozilla/firefox/k3j2.default -n 'devenv CA for local' -t C,, -i [temp]/home/.local/share/devenv/ca/local/ca.pem
    trusted by Chromium, Firefox (k3j2.default); browsers that are open see it when they are started again
    this is run:
      Chromium ([temp]/home/.pki/nssdb)
        certutil -D -d sql:[temp]/home/.pki/nssdb -n 'devenv CA for local'
        certutil -A -d sql:[temp]/home/.pki/nssdb -n 'devenv CA for local' -t C,, -i [temp]/home/.local/share/devenv/ca/local/ca.pem
      Firefox (k3j2.default) ([temp]/home/.mozilla/firefox/k3j2.default)
        certutil -D -d sql:[temp]/home/.mozilla/firefox/k3j2.default -n 'devenv CA for local'
        certutil -A -d sql:[temp]/home/.mozilla/firefox/k3j2.default -n 'devenv CA for local' -t C,, -i [temp]/home/.local/share/devenv/ca/local/ca.pem
    trusted by Chromium, Firefox (k3j2.default); browsers that are open see it when they are started again
    this is run:
      Chromium ([temp]/home/.pki/nssdb)
        certutil -D -d sql:[temp]/home/.pki/nssdb -n 'devenv CA for local'
      Firefox (k3j2.default) ([temp]/home/.mozilla/firefox/k3j2.default)
        certutil -D -d sql:[temp]/home/.mozilla/firefox/k3j2.default -n 'devenv CA for local'
        certutil -D -d sql:[temp]/home/.mozilla/firefox/k3j2.default -n 'devenv CA for local'
    no store of this machine trusts it; the CA itself stays in [temp]/home/.local/share/devenv/ca/local/ca.pem
    --- status 0
    ");
}
