//! `devenv trust`: whether this machine trusts the CA of the environment's domain ([`crate::names::tls`]).
//!
//! A store is a place where programs look for the CAs they trust: the system's, and those of browsers that don't look there.
//! What is in them is observed, what has to be run follows from that alone (`install`, `uninstall`), is shown, and is then
//! run: by programs of the system's own, each as it could be typed by hand. Nothing is remembered: a certificate is ours by
//! the name under which it lies in the store.
//!
//! Firefox on macOS looks into the system's keychain, so only Linux has stores of browsers here.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::cli::{Output, Stores, Trust};
use crate::context::Context;
use crate::environment::Domain;
use crate::error::{Exit, Failure};
use crate::exec::{self, Cmd};
use crate::names::tls::{self, Authority};
use crate::{inputs, report};

/// Carries out `devenv trust …`.
pub async fn trust(context: &Context, command: Trust, output: Output) -> anyhow::Result<Exit> {
    let environment = inputs::environment(&context.selector, &context.directory)?;
    let domain = &environment.domain;
    let authority = tls::find(&context.paths, domain)?;
    let machine = Machine::from_process(domain)?;
    match command {
        Trust::Status => {
            let stores = observe(context, &machine, authority.as_ref()).await?;
            let told = Told::new(context, domain, authority.as_ref(), &stores, |_| Vec::new());
            told.print(output)?;
            Ok(match told.trusted {
                true => Exit::Ready,
                false => Exit::StepFailed,
            })
        }
        Trust::Install(Stores { plan: true }) => {
            let stores = observe(context, &machine, authority.as_ref()).await?;
            let file = tls::certificate_file(&context.paths, domain);
            let commands = |store: &Store| install(store, &machine, &file);
            Told::new(context, domain, authority.as_ref(), &stores, commands).print_plan(output)?;
            Ok(Exit::Ready)
        }
        Trust::Uninstall(Stores { plan: true }) => {
            let stores = observe(context, &machine, authority.as_ref()).await?;
            let commands = |store: &Store| uninstall(store, &machine);
            Told::new(context, domain, authority.as_ref(), &stores, commands).print_plan(output)?;
            Ok(Exit::Ready)
        }
        Trust::Install(_) => {
            if authority.is_none() {
                refuse_another_users(std::env::var("SUDO_USER").ok())?;
            }
            let authority = tls::authority(&context.paths, domain)?;
            if let Some(news) = authority.news() {
                context.events.notice(news);
            }
            let file = authority.certificate_file();
            let stores = observe(context, &machine, Some(&authority)).await?;
            if stores.is_empty() {
                return Err(no_store(&authority, domain).into());
            }
            let commands = |store: &Store| install(store, &machine, file);
            change(context, &machine, Some(&authority), &stores, commands).await?;
            context.events.verdict(format!(
                "trusted by {}; browsers that are open see it when they are started again",
                names_of(&stores)
            ));
            Ok(Exit::Ready)
        }
        Trust::Uninstall(_) => {
            let stores = observe(context, &machine, authority.as_ref()).await?;
            let commands = |store: &Store| uninstall(store, &machine);
            change(context, &machine, authority.as_ref(), &stores, commands).await?;
            context.events.verdict(match &authority {
                Some(authority) => format!(
                    "no store of this machine trusts it; the CA itself stays in {}",
                    authority.certificate_file().display()
                ),
                None => "no store of this machine trusts it".to_owned(),
            });
            Ok(Exit::Ready)
        }
    }
}

/// What `sudo devenv trust install` would make known is a CA of root's, with which no certificate of the user's is signed.
fn refuse_another_users(sudo_user: Option<String>) -> Result<(), Failure> {
    match sudo_user.filter(|user| !user.is_empty() && *user != tls::user()) {
        None => Ok(()),
        Some(user) => Err(Failure::Usage {
            message: format!(
                "under sudo this is about a CA of {}, not of {user}",
                tls::user()
            ),
            hint: "run `devenv trust install` without sudo: it asks for it where it needs it"
                .to_owned(),
        }),
    }
}

fn no_store(authority: &Authority, domain: &Domain) -> Failure {
    Failure::Other {
        message: "this machine has no store of CAs that devenv knows".to_owned(),
        hint: format!(
            "install one (`sudo apt-get install ca-certificates`), or name the file: {}",
            authority.curl(&example(domain))
        ),
    }
}

/// A name that every environment has.
fn example(domain: &Domain) -> String {
    format!("argocd.{domain}")
}

/// What matters of the machine and of who asks.
struct Machine {
    home: PathBuf,
    data: PathBuf,
    rights: Rights,
    /// The certificate's name in a browser's store.
    nickname: String,
    /// The name of its file in a system's store, without an extension; stores are shared by all users of a machine.
    stem: String,
}

/// How the system's store can be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    /// We may ourselves.
    Root,
    /// sudo may ask for a password.
    Ask,
    /// Nobody is there to be asked, so sudo lets us or doesn't.
    Silent,
}

impl Machine {
    fn from_process(domain: &Domain) -> anyhow::Result<Self> {
        let folder = |name| std::env::var_os(name).map(PathBuf::from);
        let home = folder("HOME").context("find the browsers' stores: HOME names no folder")?;
        let is_ci = std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false");
        let is_watched = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        Ok(Self {
            data: folder("XDG_DATA_HOME").unwrap_or_else(|| home.join(".local/share")),
            home,
            rights: if nix::unistd::geteuid().is_root() {
                Rights::Root
            } else if is_watched && !is_ci {
                Rights::Ask
            } else {
                Rights::Silent
            },
            nickname: format!("devenv CA for {domain}"),
            stem: stem(domain, &tls::user()),
        })
    }
}

fn stem(domain: &Domain, user: &str) -> String {
    let plain = |character: char| match character {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => character,
        _ => '-', // what update-ca-certificates would change in its own way
    };
    let user: String = user.chars().map(plain).collect();
    format!("devenv-{domain}-{user}")
}

/// A store on this machine, and what of ours is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Store {
    kind: Kind,
    /// "system", "Firefox (k3j2.default)".
    name: String,
    /// The file or folder that is it.
    place: PathBuf,
    /// Whether there is such a place already.
    exists: bool,
    state: State,
    /// How many certificates lie there under our name.
    count: usize,
    /// Those of them that could be read.
    certificates: Vec<CertificateDer<'static>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The system's, where a folder of files is turned into what programs read.
    System(&'static System),
    /// The system's on macOS.
    Keychain,
    /// A browser's on Linux: a database of Mozilla's NSS library.
    Nss,
}

/// How a store stands to our CA.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Trusted,
    NotTrusted,
    /// It is there, but not (or no longer) in what programs read.
    Partly,
    /// What is there under our name is another certificate.
    Former,
    /// It can't be looked into; says why.
    Unknown(String),
}

/// The system's store of a family of Linux distributions.
#[derive(Debug, PartialEq, Eq)]
struct System {
    folder: &'static str,
    extension: &'static str,
    /// The program that makes of the folder what programs read.
    program: &'static str,
    /// How it takes a new file in.
    update: &'static [&'static str],
    /// How it takes a removed file out.
    undo: &'static [&'static str],
    /// What programs read.
    bundle: &'static str,
    /// Whether it was ever tried.
    tried: bool,
}

/// The first whose folder exists is this machine's.
static SYSTEMS: [System; 4] = [
    // Debian, Ubuntu, Alpine. Without `--fresh` the link to a removed file stays.
    System {
        folder: "/usr/local/share/ca-certificates",
        extension: "crt",
        program: "update-ca-certificates",
        update: &[],
        undo: &["--fresh"],
        bundle: "/etc/ssl/certs/ca-certificates.crt",
        tried: true,
    },
    // Fedora, RHEL.
    System {
        folder: "/etc/pki/ca-trust/source/anchors",
        extension: "pem",
        program: "update-ca-trust",
        update: &["extract"],
        undo: &["extract"],
        bundle: "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        tried: false,
    },
    // Arch.
    System {
        folder: "/etc/ca-certificates/trust-source/anchors",
        extension: "crt",
        program: "trust",
        update: &["extract-compat"],
        undo: &["extract-compat"],
        bundle: "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
        tried: false,
    },
    // openSUSE.
    System {
        folder: "/usr/share/pki/trust/anchors",
        extension: "pem",
        program: "update-ca-certificates",
        update: &[],
        undo: &[],
        bundle: "/var/lib/ca-certificates/ca-bundle.pem",
        tried: false,
    },
];

const KEYCHAIN: &str = "/Library/Keychains/System.keychain";
/// The file that makes a folder a database of NSS, since Firefox 58.
const DATABASE: &str = "cert9.db";
/// The database of Chromium, Chrome and their kin, below the home folder; they make it when they first need it.
const CHROMIUM: &str = ".pki/nssdb";
const CHROMIUMS: [&str; 5] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "microsoft-edge",
];

/// What has to be run so that the store trusts the CA in the file. Pure.
fn install(store: &Store, machine: &Machine, file: &Path) -> Vec<Cmd> {
    if store.state == State::Trusted {
        return Vec::new();
    }
    match store.kind {
        Kind::System(system) => {
            let copy = privileged(machine.rights, "install")
                .args(["-m", "0644"])
                .args([file, &store.place]);
            // What lay there before may have left its links.
            let update = match store.state {
                State::NotTrusted => system.update,
                _ => system.undo,
            };
            vec![
                copy,
                privileged(machine.rights, system.program).args(update.iter().copied()),
            ]
        }
        Kind::Keychain => {
            let mut commands = uninstall(store, machine);
            let add = privileged(machine.rights, "security")
                .args(["add-trusted-cert", "-d", "-r", "trustRoot", "-k", KEYCHAIN])
                .arg(file);
            commands.push(add);
            commands
        }
        Kind::Nss => {
            let mut commands = Vec::new();
            if !store.exists {
                let folder = Cmd::new("mkdir").args(["-p", "-m", "0700"]);
                commands.push(folder.arg(&store.place));
                commands.push(certutil("-N", &store.place).arg("--empty-password"));
            }
            commands.extend(uninstall(store, machine));
            let add = certutil("-A", &store.place)
                .args(["-n", &machine.nickname, "-t", "C,,", "-i"])
                .arg(file);
            commands.push(add);
            commands
        }
    }
}

/// What has to be run so that nothing of ours is in the store. Pure.
fn uninstall(store: &Store, machine: &Machine) -> Vec<Cmd> {
    if store.state == State::NotTrusted {
        return Vec::new();
    }
    match store.kind {
        Kind::System(system) => vec![
            privileged(machine.rights, "rm").arg("-f").arg(&store.place),
            privileged(machine.rights, system.program).args(system.undo.iter().copied()),
        ],
        Kind::Keychain => store
            .certificates
            .iter()
            .map(|certificate| {
                let hash: String = Sha256::digest(certificate)
                    .iter()
                    .map(|byte| format!("{byte:02X}"))
                    .collect();
                privileged(machine.rights, "security").args([
                    "delete-certificate",
                    "-Z",
                    &hash,
                    "-t",
                    KEYCHAIN,
                ])
            })
            .collect(),
        // Each call removes one.
        Kind::Nss => (0..store.count)
            .map(|_| certutil("-D", &store.place).args(["-n", &machine.nickname]))
            .collect(),
    }
}

/// The program with the rights of root.
fn privileged(rights: Rights, program: &'static str) -> Cmd {
    let sudo = || {
        Cmd::new("sudo")
            .hint("become root and run the commands that `devenv trust install --plan` shows")
    };
    match rights {
        Rights::Root => Cmd::new(program),
        Rights::Ask => sudo().arg(program),
        Rights::Silent => sudo().args(["-n", program]).when_it_fails(
            "run it on a terminal, where sudo can ask for a password (CI must not be set), or run the commands that --plan shows as root",
        ),
    }
}

fn certutil(what: &'static str, folder: &Path) -> Cmd {
    let mut database = std::ffi::OsString::from("sql:");
    database.push(folder);
    Cmd::new("certutil")
        .arg(what)
        .arg("-d")
        .arg(database)
        .hint("install it (`sudo apt-get install libnss3-tools`; Fedora calls the package nss-tools, Arch nss), then run the same command again")
        .when_it_fails("if the browser asks for a primary password, take it off while you run this; else see what certutil says")
}

/// Every store of this machine, with what is in it.
async fn observe(
    context: &Context,
    machine: &Machine,
    authority: Option<&Authority>,
) -> anyhow::Result<Vec<Store>> {
    let ours = authority.map(Authority::certificate);
    let mut stores = Vec::new();
    if cfg!(target_os = "macos") {
        stores.push(look_into_keychain(context, machine, ours).await?);
        return Ok(stores);
    }
    let system = SYSTEMS
        .iter()
        .find(|system| Path::new(system.folder).is_dir());
    if let Some(system) = system {
        stores.push(look_into_system(system, machine, ours)?);
    }
    let is_installed = |program: &&str| which::which(program).is_ok();
    let makes_database = CHROMIUMS.iter().any(is_installed);
    for (name, folder) in databases(machine, makes_database) {
        stores.push(look_into_database(context, machine, ours, name, folder).await?);
    }
    Ok(stores)
}

fn look_into_system(
    system: &'static System,
    machine: &Machine,
    ours: Option<&CertificateDer<'static>>,
) -> anyhow::Result<Store> {
    let read = |path: &Path| match std::fs::read(path) {
        Ok(text) => Ok(Some(certificates(&text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    };
    let place = Path::new(system.folder).join(format!("{}.{}", machine.stem, system.extension));
    let file = read(&place)?;
    let bundle = read(Path::new(system.bundle))?.unwrap_or_default();
    let is_read = ours.is_some_and(|ours| bundle.contains(ours));
    let exists = file.is_some();
    let certificates = file.unwrap_or_default();
    let in_force = exists && certificates.iter().all(|one| bundle.contains(one));
    let count = usize::from(exists || is_read);
    let of_ours = certificates.iter().chain(ours.filter(|_| is_read));
    Ok(Store {
        kind: Kind::System(system),
        name: "system".to_owned(),
        state: state(count, of_ours, in_force, ours),
        place,
        exists,
        count,
        certificates,
    })
}

/// The folders of browsers' databases, with the browsers' names. Where Chromium is installed and has made none yet, the one
/// that it would make is among them.
fn databases(machine: &Machine, makes_database: bool) -> Vec<(String, PathBuf)> {
    let home = &machine.home;
    let is_database = |folder: &PathBuf| folder.join(DATABASE).is_file();
    let mut found: Vec<(String, PathBuf)> = [
        home.join(CHROMIUM),
        machine.data.join("pki/nssdb"),
        home.join("snap/chromium/current").join(CHROMIUM),
    ]
    .into_iter()
    .filter(is_database)
    .map(|folder| ("Chromium".to_owned(), folder))
    .collect();
    if found.is_empty() && makes_database {
        found.push(("Chromium".to_owned(), home.join(CHROMIUM)));
    }
    for profiles in [
        ".mozilla/firefox",
        ".config/mozilla/firefox",
        "snap/firefox/common/.mozilla/firefox",
        ".var/app/org.mozilla.firefox/.mozilla/firefox",
    ] {
        let Ok(entries) = std::fs::read_dir(home.join(profiles)) else {
            continue;
        };
        let mut folders: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        folders.sort();
        found.extend(folders.into_iter().filter(is_database).map(|folder| {
            let profile = folder.file_name().unwrap_or_default().to_string_lossy();
            (format!("Firefox ({profile})"), folder)
        }));
    }
    found
}

async fn look_into_database(
    context: &Context,
    machine: &Machine,
    ours: Option<&CertificateDer<'static>>,
    name: String,
    place: PathBuf,
) -> anyhow::Result<Store> {
    let mut store = Store {
        kind: Kind::Nss,
        name,
        exists: place.join(DATABASE).is_file(),
        place,
        state: State::NotTrusted,
        count: 0,
        certificates: Vec::new(),
    };
    if !store.exists {
        return Ok(store);
    }
    let listing = match look(context, &certutil("-L", &store.place)).await {
        Ok(listing) => String::from_utf8_lossy(&listing).into_owned(),
        Err(error) => {
            context.stop.check()?;
            store.count = 1;
            store.state = State::Unknown(format!("{error}"));
            return Ok(store);
        }
    };
    let flags = flags(&listing, &machine.nickname);
    store.count = flags.len();
    if store.count > 0 {
        let by_name = ["-n", &machine.nickname, "-a"];
        let text = look(context, &certutil("-L", &store.place).args(by_name)).await?;
        store.certificates = certificates(&text);
    }
    let in_force = flags.iter().all(|flags| {
        let for_servers = flags.split(',').next().unwrap_or_default();
        for_servers.contains('C')
    });
    store.state = state(store.count, store.certificates.iter(), in_force, ours);
    Ok(store)
}

/// The trust flags of every certificate of that name, in what `certutil -L` lists:
/// "devenv CA for local                                          C,,  ".
fn flags(listing: &str, nickname: &str) -> Vec<String> {
    listing
        .lines()
        .filter_map(|line| line.trim_end().rsplit_once(char::is_whitespace))
        .filter(|(name, _)| name.trim() == nickname)
        .map(|(_, flags)| flags.to_owned())
        .collect()
}

async fn look_into_keychain(
    context: &Context,
    machine: &Machine,
    ours: Option<&CertificateDer<'static>>,
) -> anyhow::Result<Store> {
    let find = Cmd::new("security").args([
        "find-certificate",
        "-a",
        "-c",
        &machine.nickname,
        "-p",
        KEYCHAIN,
    ]);
    // It fails where there is none.
    let found = match look(context, &find).await {
        Ok(text) => certificates(&text),
        Err(error) => match error.downcast_ref::<Failure>() {
            Some(Failure::CommandFailed { .. }) => Vec::new(),
            _ => return Err(error),
        },
    };
    Ok(Store {
        kind: Kind::Keychain,
        name: "system".to_owned(),
        place: PathBuf::from(KEYCHAIN),
        exists: true,
        state: state(found.len(), found.iter(), true, ours),
        count: found.len(),
        certificates: found,
    })
}

/// What the program says; nothing of it is shown.
async fn look(context: &Context, cmd: &Cmd) -> anyhow::Result<Vec<u8>> {
    // A step of nobody's: looking is no phase.
    let (aside, _receiver) = crate::event::Events::channel();
    let output = exec::run(&cmd.clone().quiet(), &context.stop, &aside.step("look")).await?;
    Ok(output.stdout)
}

/// The certificates among PEM text; what else is in it is passed over.
fn certificates(text: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(text).flatten().collect()
}

/// How a store stands to us that holds so many certificates under our name, among them these. Pure.
fn state<'a>(
    count: usize,
    mut found: impl Iterator<Item = &'a CertificateDer<'static>>,
    in_force: bool,
    ours: Option<&CertificateDer<'static>>,
) -> State {
    let has_ours = found.any(|certificate| Some(certificate) == ours);
    match (count, has_ours) {
        (0, _) => State::NotTrusted,
        (1, true) if in_force => State::Trusted,
        (_, true) => State::Partly,
        (_, false) => State::Former,
    }
}

/// Shows what will be run, runs it, and looks whether it did what it should. A store that can't be changed doesn't keep the
/// others from it.
async fn change(
    context: &Context,
    machine: &Machine,
    authority: Option<&Authority>,
    stores: &[Store],
    commands: impl Fn(&Store) -> Vec<Cmd>,
) -> anyhow::Result<()> {
    let planned: Vec<_> = stores
        .iter()
        .map(|store| (store, commands(store)))
        .filter(|(_, commands)| !commands.is_empty())
        .collect();
    if planned.is_empty() {
        return Ok(());
    }
    context.events.notice("this is run:");
    for (store, commands) in &planned {
        for line in shown(store, commands).lines() {
            context.events.notice(line);
        }
    }

    let (asked, unasked): (Vec<_>, Vec<_>) = planned
        .iter()
        .partition(|(store, _)| machine.rights == Rights::Ask && store.kind != Kind::Nss);
    let mut failed = Vec::new();
    for (store, commands) in asked {
        for cmd in commands {
            let ran = {
                let _terminal = context.events.borrow_terminal().await;
                exec::run_at_terminal(cmd, &context.stop).await
            };
            match ran {
                Ok(output) => {
                    let said = output.text();
                    said.lines().for_each(|line| context.events.notice(line));
                }
                Err(error) => {
                    failed.push((store, error));
                    break;
                }
            }
        }
    }
    let step = context.events.step("stores");
    for (store, commands) in unasked {
        step.waiting(&store.name);
        for cmd in commands {
            if let Err(error) = exec::run(cmd, &context.stop, &step).await {
                failed.push((store, error));
                break;
            }
        }
    }
    context.stop.check()?;
    // The first is the error; the others are told before it.
    let mut failed = failed
        .into_iter()
        .map(|(store, error)| error.context(format!("change the store {}", store.name)));
    if let Some(error) = failed.next() {
        for other in failed {
            context.events.notice(format!("{other:#}"));
        }
        return Err(error);
    }
    step.done(format!(
        "{} changed",
        names_of(planned.iter().map(|(store, _)| *store))
    ));
    let after = observe(context, machine, authority).await?;
    match after.iter().find(|store| !commands(store).is_empty()) {
        None => Ok(()),
        Some(store) => Err(Failure::Other {
            message: format!(
                "all of it ran, and yet the store {} is {}",
                store.name,
                store.state.word()
            ),
            hint: "see what the commands above say when you run them by hand".to_owned(),
        }
        .into()),
    }
}

/// A store and what is run for it, as people read it.
fn shown(store: &Store, commands: &[Cmd]) -> String {
    let mut text = format!("  {} ({})", store.name, store.place.display());
    if matches!(
        store.kind,
        Kind::Keychain | Kind::System(System { tried: false, .. })
    ) {
        text.push_str(": not tried on such a system yet");
    } else if !store.exists && store.kind == Kind::Nss {
        text.push_str(": made for it, as it would make it itself, and left there");
    }
    for cmd in commands {
        let _ = write!(text, "\n    {cmd}");
    }
    text
}

fn names_of<'a>(stores: impl IntoIterator<Item = &'a Store>) -> String {
    let names = stores.into_iter().map(|store| store.name.as_str());
    names.collect::<Vec<_>>().join(", ")
}

impl State {
    fn word(&self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::NotTrusted => "not trusted",
            Self::Partly => "half done",
            Self::Former => "another CA",
            Self::Unknown(_) => "unknown",
        }
    }

    /// What a person may make of it.
    fn detail(&self) -> String {
        match self {
            Self::Trusted | Self::NotTrusted => String::new(),
            Self::Partly => "devenv trust install finishes it".to_owned(),
            Self::Former => {
                "a former one of this domain; devenv trust install replaces it".to_owned()
            }
            Self::Unknown(reason) => reason.clone(),
        }
    }
}

/// What `trust status` tells, as it stands in `-o json`; with the commands, what `--plan` does.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    domain: String,
    certificate: Option<Certificate>,
    stores: Vec<ToldStore>,
    /// Whether there are stores, and all of them trust it.
    trusted: bool,
    curl: String,
    #[serde(skip)]
    commands: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Certificate {
    name: String,
    file: String,
    until: String,
}

#[derive(Debug, Serialize)]
struct ToldStore {
    name: String,
    place: String,
    state: &'static str,
    detail: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    commands: Vec<String>,
}

impl Told {
    fn new(
        context: &Context,
        domain: &Domain,
        authority: Option<&Authority>,
        stores: &[Store],
        commands: impl Fn(&Store) -> Vec<Cmd>,
    ) -> Self {
        let file = tls::certificate_file(&context.paths, domain);
        Self {
            domain: domain.to_string(),
            certificate: authority.map(|authority| Certificate {
                name: authority.name().to_owned(),
                file: authority.certificate_file().display().to_string(),
                until: tls::day(authority.until()),
            }),
            trusted: !stores.is_empty() && stores.iter().all(|store| store.state == State::Trusted),
            curl: tls::curl(&file, &example(domain)),
            commands: stores
                .iter()
                .map(|store| (store, commands(store)))
                .filter(|(_, commands)| !commands.is_empty())
                .map(|(store, commands)| shown(store, &commands))
                .collect(),
            stores: stores
                .iter()
                .map(|store| ToldStore {
                    name: store.name.clone(),
                    place: store.place.display().to_string(),
                    state: store.state.word(),
                    detail: store.state.detail(),
                    commands: commands(store).iter().map(ToString::to_string).collect(),
                })
                .collect(),
        }
    }

    fn print(&self, output: Output) -> anyhow::Result<()> {
        report::data(&match output {
            Output::Json => format!("{}\n", serde_json::to_string(self)?),
            Output::Text => self.text(),
        })
    }

    fn print_plan(&self, output: Output) -> anyhow::Result<()> {
        match (output, self.commands.is_empty()) {
            (Output::Json, _) => self.print(output),
            (Output::Text, true) => report::data("nothing would be run"),
            (Output::Text, false) => {
                report::data(&format!("this would be run:\n{}", self.commands.join("\n")))
            }
        }
    }

    fn text(&self) -> String {
        let mut text = match &self.certificate {
            None => format!("{} has no CA yet; devenv up makes one\n", self.domain),
            Some(Certificate { name, file, until }) => {
                format!("ca      {name}, until {until}\nfile    {file}\n")
            }
        };
        let _ = writeln!(
            text,
            "signs   {} and localhost with all names below them, no addresses, nothing else\n",
            self.domain
        );
        let rows = self.stores.iter().map(|store| store.name.chars().count());
        let width = rows.max().unwrap_or_default().max(5);
        let _ = writeln!(text, "{:width$}  {:11}  place", "store", "state");
        for ToldStore {
            name,
            place,
            state,
            detail,
            ..
        } in &self.stores
        {
            let _ = write!(text, "{name:width$}  {state:11}  {place}");
            let _ = match detail.as_str() {
                "" => writeln!(text),
                detail => writeln!(text, ": {detail}"),
            };
        }
        if self.certificate.is_some() {
            let _ = writeln!(text, "\n{}", self.curl);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(rights: Rights) -> Machine {
        Machine {
            home: PathBuf::from("/home/me"),
            data: PathBuf::from("/home/me/.local/share"),
            rights,
            nickname: "devenv CA for local".to_owned(),
            stem: "devenv-local-me".to_owned(),
        }
    }

    fn store(kind: Kind, state: State, count: usize) -> Store {
        let place = match kind {
            Kind::System(system) => {
                format!("{}/devenv-local-me.{}", system.folder, system.extension)
            }
            Kind::Keychain => KEYCHAIN.to_owned(),
            Kind::Nss => "/home/me/.mozilla/firefox/a b.default".to_owned(),
        };
        Store {
            kind,
            name: "store".to_owned(),
            place: PathBuf::from(place),
            exists: true,
            state,
            count,
            certificates: vec![CertificateDer::from(vec![0]); count],
        }
    }

    /// What is run to install and to uninstall.
    fn both_ways(store: &Store, rights: Rights) -> String {
        let machine = machine(rights);
        let lines = |commands: Vec<Cmd>| {
            let lines = commands.iter().map(|cmd| format!("  {cmd}\n"));
            lines.collect::<String>()
        };
        format!(
            "install\n{}uninstall\n{}",
            lines(install(store, &machine, Path::new("/home/me/ca.pem"))),
            lines(uninstall(store, &machine))
        )
    }

    #[test]
    fn every_system_has_its_own_way_and_the_way_back() {
        let ways: Vec<_> = SYSTEMS
            .iter()
            .map(|system| both_ways(&store(Kind::System(system), State::Partly, 1), Rights::Ask))
            .collect();
        insta::assert_snapshot!(ways.join("\n"), @r"
        install
          sudo install -m 0644 /home/me/ca.pem /usr/local/share/ca-certificates/devenv-local-me.crt
          sudo update-ca-certificates --fresh
        uninstall
          sudo rm -f /usr/local/share/ca-certificates/devenv-local-me.crt
          sudo update-ca-certificates --fresh

        install
          sudo install -m 0644 /home/me/ca.pem /etc/pki/ca-trust/source/anchors/devenv-local-me.pem
          sudo update-ca-trust extract
        uninstall
          sudo rm -f /etc/pki/ca-trust/source/anchors/devenv-local-me.pem
          sudo update-ca-trust extract

        install
          sudo install -m 0644 /home/me/ca.pem /etc/ca-certificates/trust-source/anchors/devenv-local-me.crt
          sudo trust extract-compat
        uninstall
          sudo rm -f /etc/ca-certificates/trust-source/anchors/devenv-local-me.crt
          sudo trust extract-compat

        install
          sudo install -m 0644 /home/me/ca.pem /usr/share/pki/trust/anchors/devenv-local-me.pem
          sudo update-ca-certificates
        uninstall
          sudo rm -f /usr/share/pki/trust/anchors/devenv-local-me.pem
          sudo update-ca-certificates
        ");
        insta::assert_snapshot!(both_ways(&store(Kind::Keychain, State::Former, 1), Rights::Silent), @r"
        install
          sudo -n security delete-certificate -Z 6E340B9CFFB37A989CA544E6BB780A2C78901D3FB33738768511A30617AFA01D -t /Library/Keychains/System.keychain
          sudo -n security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain /home/me/ca.pem
        uninstall
          sudo -n security delete-certificate -Z 6E340B9CFFB37A989CA544E6BB780A2C78901D3FB33738768511A30617AFA01D -t /Library/Keychains/System.keychain
        ");
    }

    #[test]
    fn only_what_is_needed_is_run() {
        let system = Kind::System(&SYSTEMS[0]);
        for kind in [system, Kind::Keychain, Kind::Nss] {
            let machine = machine(Rights::Root);
            let trusted = store(kind, State::Trusted, 1);
            assert_eq!(install(&trusted, &machine, Path::new("/ca.pem")), []);
            assert_eq!(uninstall(&store(kind, State::NotTrusted, 0), &machine), []);
        }
        insta::assert_snapshot!(both_ways(&store(system, State::NotTrusted, 0), Rights::Root), @r"
        install
          install -m 0644 /home/me/ca.pem /usr/local/share/ca-certificates/devenv-local-me.crt
          update-ca-certificates
        uninstall
        ");
    }

    #[test]
    fn a_database_is_made_where_there_is_none_and_rid_of_all_former_ones() {
        let former = store(Kind::Nss, State::Former, 2);
        insta::assert_snapshot!(both_ways(&former, Rights::Silent), @r"
        install
          certutil -D -d 'sql:/home/me/.mozilla/firefox/a b.default' -n 'devenv CA for local'
          certutil -D -d 'sql:/home/me/.mozilla/firefox/a b.default' -n 'devenv CA for local'
          certutil -A -d 'sql:/home/me/.mozilla/firefox/a b.default' -n 'devenv CA for local' -t C,, -i /home/me/ca.pem
        uninstall
          certutil -D -d 'sql:/home/me/.mozilla/firefox/a b.default' -n 'devenv CA for local'
          certutil -D -d 'sql:/home/me/.mozilla/firefox/a b.default' -n 'devenv CA for local'
        ");
        let new = Store {
            exists: false,
            ..store(Kind::Nss, State::NotTrusted, 0)
        };
        insta::assert_snapshot!(both_ways(&new, Rights::Silent), @r"
        install
          mkdir -p -m 0700 '/home/me/.mozilla/firefox/a b.default'
          certutil -N -d 'sql:/home/me/.mozilla/firefox/a b.default' --empty-password
          certutil -A -d 'sql:/home/me/.mozilla/firefox/a b.default' -n 'devenv CA for local' -t C,, -i /home/me/ca.pem
        uninstall
        ");
    }

    #[test]
    fn how_a_store_stands_to_us() {
        let [ours, other] = [1, 2].map(|byte| CertificateDer::from(vec![byte]));
        let check = |found: &[&CertificateDer<'static>], in_force| {
            state(found.len(), found.iter().copied(), in_force, Some(&ours))
        };
        assert_eq!(check(&[], true), State::NotTrusted);
        assert_eq!(check(&[&ours], true), State::Trusted);
        assert_eq!(check(&[&ours], false), State::Partly);
        assert_eq!(check(&[&other, &ours], true), State::Partly);
        assert_eq!(check(&[&other], true), State::Former);
        assert_eq!(state(1, [&other].into_iter(), true, None), State::Former);
    }

    #[test]
    fn the_listing_of_a_database_is_read() {
        let listing = "\n\
            Certificate Nickname                                         Trust Attributes\n\
                                                                         SSL,S/MIME,JAR/XPI\n\n\
            devenv CA for local                                          C,,  \n\
            devenv CA for local                                          ,,   \n\
            devenv CA for localhost                                      C,,  \n";
        assert_eq!(flags(listing, "devenv CA for local"), ["C,,", ",,"]);
        assert!(flags(listing, "devenv CA for dev.test").is_empty());
    }

    #[test]
    fn a_file_is_named_so_that_no_script_renames_it() {
        let domain = "dev.example.org".parse().unwrap();
        assert_eq!(stem(&domain, "me"), "devenv-dev.example.org-me");
        assert_eq!(stem(&domain, "a, (b)"), "devenv-dev.example.org-a---b-");
    }

    #[test]
    fn under_sudo_it_is_about_another_ca() {
        assert!(refuse_another_users(None).is_ok());
        assert!(refuse_another_users(Some(tls::user())).is_ok());
        let refused = refuse_another_users(Some("somebody-else".to_owned())).unwrap_err();
        let text = refused.to_string();
        assert!(text.ends_with(", not of somebody-else"), "{text}");
    }
}
