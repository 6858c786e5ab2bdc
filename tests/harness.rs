//! Runs devenv as a user would: a home of its own, a `PATH` that holds fake programs and little else, a project folder; and
//! compares all that comes out.
//!
//! ```ignore
//! Test::new()
//!     .file("cluster-configs/dev.yaml", "…")
//!     .fake("kind", "echo no space >&2; exit 1")
//!     .args(["up"])
//!     .stderr("…")
//!     .status(1)
//!     .run();
//! ```

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use regex::Regex;

use crate::engine::Engine;

/// Nothing in these tests takes nearly as long.
const LIMIT: Duration = Duration::from_secs(180);

/// What the test runner says before a trial.
const RUNNER: &str = "\nrunning 1 test\n";

/// One run to be, with all that it finds and all that is expected of it. A clone shares the folders: that is how a test runs
/// devenv twice.
#[derive(Clone)]
pub(crate) struct Test {
    folder: Arc<tempfile::TempDir>,
    program: Program,
    /// What starts the program, with its own arguments.
    starter: Vec<String>,
    args: Vec<String>,
    variables: BTreeMap<String, String>,
    input: Vec<u8>,
    terminal: Option<(u16, u16)>,
    readers: bool,
    stdout: String,
    stderr: String,
    status: i32,
}

#[derive(Clone)]
enum Program {
    Devenv,
    /// A test of this very binary that is ignored otherwise.
    Trial(&'static str),
}

impl Test {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("devenv-test-")
            .tempdir()
            .unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in ["home", "run", "bin", "project", "calls"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let variables = [
            ("HOME", path("home")),
            ("XDG_RUNTIME_DIR", path("run")),
            ("PATH", path("bin")),
            ("CALLS", path("calls")),
            ("DOCKER_HOST", format!("unix://{}", path("no-docker.sock"))),
            ("TERM", "xterm-256color".to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
        ];
        Self {
            variables: variables
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
            folder: Arc::new(folder),
            program: Program::Devenv,
            starter: Vec::new(),
            args: Vec::new(),
            input: Vec::new(),
            terminal: None,
            readers: true,
            stdout: String::new(),
            stderr: String::new(),
            status: 0,
        }
    }

    /// Not devenv, but a part of it on its own: an ignored test of `trial.rs`.
    pub(crate) fn trial(mut self, name: &'static str) -> Self {
        self.program = Program::Trial(name);
        self
    }

    /// devenv itself, in the place of a part of it.
    pub(crate) fn devenv(mut self) -> Self {
        self.program = Program::Devenv;
        self
    }

    /// Started by another program of the system, which gets devenv and its arguments behind its own.
    pub(crate) fn under<'a>(mut self, starter: impl IntoIterator<Item = &'a str>) -> Self {
        self.starter = starter.into_iter().map(str::to_owned).collect();
        self
    }

    /// Its starter is started by yet another.
    pub(crate) fn before<'a>(mut self, starter: impl IntoIterator<Item = &'a str>) -> Self {
        self.starter
            .splice(0..0, starter.into_iter().map(str::to_owned));
        self
    }

    /// The temporary folder; in it `home`, `run`, `bin`, `project`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of the project, where devenv runs.
    pub(crate) fn file(self, path: &str, text: &str) -> Self {
        let path = self.path("project").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// A folder of this repository, with all that is in it, in the project.
    pub(crate) fn copy(self, folder: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        copy_folder(&root.join(folder), &self.path("project").join(folder));
        self
    }

    /// A program of the project, as a script for `sh`; see [`Test::fake`].
    pub(crate) fn script(self, path: &str, script: &str) -> Self {
        let test = self.file(path, &fake(path.rsplit('/').next().unwrap(), script));
        make_executable(&test.path("project").join(path));
        test
    }

    /// A program on `PATH`, as a script for `sh`. It may use the real tools of the system, and each of its calls is
    /// written down, see [`Test::calls`].
    pub(crate) fn fake(self, name: &str, script: &str) -> Self {
        let path = self.path("bin").join(name);
        fs::write(&path, fake(name, script)).unwrap();
        make_executable(&path);
        self
    }

    /// The real program of that name on `PATH`.
    pub(crate) fn tool(self, name: &str) -> Self {
        let real = which::which(name).unwrap();
        std::os::unix::fs::symlink(real, self.path("bin").join(name)).unwrap();
        self
    }

    /// The real program at that place on `PATH`, for one that is where not everybody's `PATH` leads.
    pub(crate) fn tool_at(self, name: &str, place: &str) -> Self {
        std::os::unix::fs::symlink(place, self.path("bin").join(name)).unwrap();
        self
    }

    /// Docker, as the engine plays it; its fakes find its folder as `$ENGINE`.
    pub(crate) fn docker(self, engine: &Engine) -> Self {
        self.env("DOCKER_HOST", &engine.address())
            .env("ENGINE", &engine.folder().display().to_string())
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.args = args.into_iter().map(str::to_owned).collect();
        self
    }

    pub(crate) fn input(mut self, text: &str) -> Self {
        self.input = text.into();
        self
    }

    /// Runs it on a terminal of that size: stdin, stdout and stderr.
    pub(crate) fn terminal(mut self, columns: u16, rows: u16) -> Self {
        self.terminal = Some((columns, rows));
        self
    }

    /// Whoever reads its stdout and stderr goes away at once.
    pub(crate) fn without_readers(mut self) -> Self {
        self.readers = false;
        self
    }

    /// All that is expected on stdout; nothing, if not said.
    pub(crate) fn stdout(mut self, expected: &str) -> Self {
        expected.clone_into(&mut self.stdout);
        self
    }

    /// All that is expected on stderr; nothing, if not said.
    pub(crate) fn stderr(mut self, expected: &str) -> Self {
        expected.clone_into(&mut self.stderr);
        self
    }

    /// The expected exit status; 0, if not said. Minus the number of a signal that ended it.
    pub(crate) fn status(mut self, expected: i32) -> Self {
        self.status = expected;
        self
    }

    /// Every file and folder that devenv could have made outside of the project, with the sizes of files.
    pub(crate) fn traces(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.path("home"), self.path("run")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let (path, metadata) = entry.map(|it| (it.path(), it.metadata().unwrap())).unwrap();
                if metadata.is_dir() {
                    folders.push(path.clone());
                }
                let size = if metadata.is_dir() { 0 } else { metadata.len() };
                found.push(format!(
                    "{} {size}",
                    self.redacted(&path.display().to_string())
                ));
            }
        }
        found.sort();
        found
    }

    /// How often and with which arguments the fake was called.
    pub(crate) fn calls(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls").join(name)).unwrap_or_default();
        text.lines().map(|line| self.redacted(line)).collect()
    }

    /// Runs it, and compares everything.
    pub(crate) fn run(self) -> Ran {
        self.start().check()
    }

    /// Starts it and lets it run.
    pub(crate) fn start(self) -> Running {
        let mut command = self.command();
        let mut keyboard = None;
        let (child, outputs) = match self.terminal {
            None => {
                command
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped());
                let mut child = command.spawn().unwrap();
                // A program that doesn't read all of it may.
                let _ = child.stdin.take().unwrap().write_all(&self.input);
                let (mut stdout, stderr) =
                    (child.stdout.take().unwrap(), child.stderr.take().unwrap());
                let outputs = match (self.readers, &self.program) {
                    (true, _) => vec![collect(stdout), collect(stderr)],
                    (false, Program::Devenv) => Vec::new(),
                    (false, Program::Trial(_)) => {
                        stdout.read_exact(&mut [0; RUNNER.len()]).unwrap(); // the runner itself needs a reader
                        Vec::new()
                    }
                };
                (child, outputs)
            }
            Some((columns, rows)) => {
                let size = Winsize {
                    ws_row: rows,
                    ws_col: columns,
                    ws_xpixel: 0,
                    ws_ypixel: 0,
                };
                let terminal = openpty(&size, None).unwrap();
                let end = |side: &OwnedFd| Stdio::from(side.try_clone().unwrap());
                command
                    .stdin(end(&terminal.slave))
                    .stdout(end(&terminal.slave))
                    .stderr(end(&terminal.slave));
                keyboard = Some(fs::File::from(terminal.master.try_clone().unwrap()));
                (
                    command.spawn().unwrap(),
                    vec![collect(fs::File::from(terminal.master))],
                )
            }
        };
        Running {
            test: self,
            child: Some(child),
            outputs,
            keyboard,
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the tests run devenv as a process"
    )]
    fn command(&self) -> Command {
        let program = match self.program {
            Program::Devenv => PathBuf::from(env!("CARGO_BIN_EXE_devenv")),
            Program::Trial(_) => std::env::current_exe().unwrap(),
        };
        let mut command = match self.starter.split_first() {
            None => Command::new(program),
            Some((starter, args)) => {
                let mut command = Command::new(which::which(starter).unwrap());
                command.args(args).arg(program);
                command
            }
        };
        command
            .current_dir(self.path("project"))
            .env_clear()
            .envs(&self.variables);
        match self.program {
            Program::Devenv => {
                command.args(&self.args);
            }
            Program::Trial(name) => {
                command.env("TRIAL_ARGS", self.args.join("\n"));
                command.args([
                    "--quiet",
                    "--nocapture",
                    "--ignored",
                    "--exact",
                    &format!("trial::{name}"),
                ]);
            }
        }
        command
    }

    /// Without what differs from run to run: the temporary folder, times, process ids, digests.
    pub(crate) fn redacted(&self, text: &str) -> String {
        static RULES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
            [
                (r"\bsha256:[0-9a-f]{64}\b", "sha256:[digest]"),
                (r"\b([0-9a-f]{40,64}|[0-9a-f]{12})\b", "[id]"),
                (r"/[^ ]*/engine-\w{6}", "[engine]"),
                (r"\b(pid|kill) \d+", "$1 [pid]"),
                (r"(\[temp\])?/[^ ]*/\.tmp\w{6}", "[scratch]"),
                (r"\[ *\d+\.\ds\]", "[time]"),
                (r"  +\d+\.\d ?s\b", "  [time]"),
                (r"\b\d+\.\d ?s\b", "[time]"),
                (r#""at":\d+(\.\d+)?"#, r#""at":[time]"#),
                (r" +█+", ""),
            ]
            .map(|(pattern, name)| (Regex::new(pattern).unwrap(), name))
            .into()
        });
        let text = text.replace(&self.folder.path().display().to_string(), "[temp]");
        RULES.iter().fold(text, |text, (pattern, name)| {
            pattern.replace_all(&text, *name).into_owned()
        })
    }
}

fn fake(name: &str, script: &str) -> String {
    format!(
        "#!/bin/sh\nPATH=$PATH:/usr/bin:/bin\necho \"{name} $*\" >> \"$CALLS/{name}\"\n{script}\n"
    )
}

fn make_executable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &place);
        } else {
            fs::copy(entry.path(), place).unwrap();
        }
    }
}

/// What came out of a pipe so far, and its reader.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

fn collect(mut pipe: impl Read + Send + 'static) -> Collected {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&bytes);
    let reader = thread::spawn(move || {
        let mut chunk = [0; 4096];
        // A pseudo-terminal ends with an error.
        while let Ok(count @ 1..) = pipe.read(&mut chunk) {
            all.lock().unwrap().extend(&chunk[..count]);
        }
    });
    Collected { bytes, reader }
}

/// A run that goes on. Dropped, it is killed.
pub(crate) struct Running {
    test: Test,
    child: Option<Child>,
    outputs: Vec<Collected>,
    /// The other side of its terminal.
    keyboard: Option<fs::File>,
}

impl Running {
    /// Types that on its terminal.
    pub(crate) fn type_in(&self, text: &str) {
        let mut keyboard = self.keyboard.as_ref().expect("it runs on a terminal");
        keyboard.write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.test.path(name)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.as_ref().unwrap().id().cast_signed()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signal::kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits until the file has a whole line, and returns the text of the file.
    pub(crate) fn wait_for_line_in(&self, path: &str) -> String {
        wait_for(path, || {
            let text = fs::read_to_string(self.test.path(path)).unwrap_or_default();
            text.ends_with('\n').then_some(text)
        })
    }

    /// What it wrote so far.
    pub(crate) fn said(&self) -> String {
        let said = self
            .outputs
            .iter()
            .map(|output| output.bytes.lock().unwrap().clone());
        String::from_utf8_lossy(&said.collect::<Vec<_>>().concat()).into_owned()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        let child = self.child.as_mut().unwrap();
        child.try_wait().unwrap().is_some()
    }

    /// Waits until all of this can be read in what it wrote.
    pub(crate) fn wait_until_it_says(&self, texts: &[&str]) {
        wait_for(&format!("{texts:?}"), || {
            let said = self.said();
            texts.iter().all(|text| said.contains(text)).then_some(())
        });
    }

    /// What can be read on its terminal now, redacted, once all of this is among it.
    pub(crate) fn screen_with(&self, texts: &[&str]) -> String {
        let (columns, rows) = self.test.terminal.expect("it runs on a terminal");
        wait_for(&format!("{texts:?} on the screen"), || {
            let mut parser = vt100::Parser::new(rows, columns, 0);
            parser.process(&self.outputs[0].bytes.lock().unwrap());
            let rows: Vec<_> = parser.screen().rows(0, columns).collect();
            let text = rows.join("\n").trim_matches('\n').to_owned();
            texts
                .iter()
                .all(|part| text.contains(part))
                .then(|| self.test.redacted(&text))
        })
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Ran {
        let mut child = self.child.take().unwrap();
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    child.kill().unwrap();
                    break child.wait().unwrap();
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        let mut outputs = self.outputs.drain(..).map(|output| {
            output.reader.join().unwrap();
            std::mem::take(&mut *output.bytes.lock().unwrap())
        });
        let stdout = outputs.next().unwrap_or_default();
        let stderr = outputs.next().unwrap_or_default();
        let text = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            text.trim_start_matches(RUNNER).to_owned()
        };
        Ran {
            screen: self.test.terminal.map(|size| screen(&stdout, size)),
            stdout: text(&stdout),
            stderr: text(&stderr),
            status: status.code().unwrap_or_else(|| -status.signal().unwrap()),
            test: self.test.clone(),
        }
    }

    /// Waits for its end, and compares everything.
    pub(crate) fn check(self) -> Ran {
        let ran = self.wait();
        let test = &ran.test;
        let show = |status, stdout: &str, stderr: &str| {
            format!("{stdout}--- stderr\n{stderr}--- status {status}\n")
        };
        let expected = show(test.status, &test.stdout, &test.stderr);
        let found = show(
            ran.status,
            &test.redacted(&ran.stdout),
            &test.redacted(&ran.stderr),
        );
        assert!(
            found == expected,
            "=== found\n{found}=== expected\n{expected}"
        );
        ran
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A run that is over.
pub(crate) struct Ran {
    pub(crate) test: Test,
    /// All of it, as it was; of a run on a terminal, what the terminal got.
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) status: i32,
    screen: Option<String>,
}

impl Ran {
    /// Any text, redacted as its output is.
    pub(crate) fn redacted(&self, text: &str) -> String {
        self.test.redacted(text)
    }

    /// Stdout, stderr and status, redacted, for a snapshot.
    pub(crate) fn transcript(&self) -> String {
        let stdout = self.test.redacted(&self.stdout);
        let stderr = self.test.redacted(&self.stderr);
        format!("{stdout}--- stderr\n{stderr}--- status {}", self.status)
    }

    /// What can be read on the terminal at the end, redacted.
    pub(crate) fn screen(&self) -> String {
        self.test
            .redacted(self.screen.as_ref().expect("it ran on a terminal"))
    }
}

fn screen(bytes: &[u8], (columns, rows): (u16, u16)) -> String {
    let mut parser = vt100::Parser::new(rows, columns, 0);
    parser.process(bytes);
    assert!(!parser.screen().hide_cursor(), "the cursor stays hidden");
    let rows: Vec<_> = parser.screen().rows(0, columns).collect();
    let text = rows.join("\n");
    text.trim_start_matches(RUNNER)
        .trim_matches('\n')
        .to_owned()
}

/// Waits until there is something, not for ever.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the process lives; one that is dead and not yet buried doesn't.
pub(crate) fn is_alive(pid: &str) -> bool {
    let path = Path::new("/proc").join(OsStr::new(pid.trim())).join("stat");
    fs::read_to_string(path).is_ok_and(|stat| !stat.contains(") Z "))
}
