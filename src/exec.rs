//! The only starter of processes.
//!
//! A program call is data ([`Cmd`]), made by pure code and shown as it could be pasted into a shell; [`run`] is what runs it.
//! Every child is the leader of its own process group, so that Ctrl-C reaches devenv alone and devenv ends the whole family
//! in order: SIGTERM, ten seconds, SIGKILL; only one that may ask for a password stays in front ([`run_at_terminal`]). The exit status is always looked at, and the last lines of stderr are never lost.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use futures::future::FusedFuture;
use nix::sys::signal::{SigSet, Signal as UnixSignal, killpg};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::error::Failure;
use crate::event::Step;
use crate::family::{self, Mark};
use crate::stop::Stop;

/// More than any of our programs has to say; beyond it the call fails rather than returning a part.
const STDOUT_LIMIT: usize = 64 << 20;
/// Lines of stderr that are kept for the error.
const TAIL: usize = 20;
/// A line without an end is cut here.
const LINE_LIMIT: usize = 4096;
/// Between SIGTERM and SIGKILL; tests are in a hurry.
pub(crate) const GRACE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });
/// How long a pipe is read after the child's end, in case a grandchild holds it open.
const LINGER: Duration = Duration::from_secs(1);

/// A program call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmd {
    tool: &'static str,
    path: Option<PathBuf>,
    hint: String,
    failed: Option<String>,
    args: Vec<OsString>,
    variables: Vec<Variable>,
    withheld: Vec<OsString>,
    stdin: Option<Secret>,
    directory: Option<PathBuf>,
    deadline: Option<Duration>,
    quiet: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Variable {
    name: Cow<'static, str>,
    value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Plain(OsString),
    Secret(Secret),
}

/// Bytes that no `Debug` shows.
#[derive(Clone, PartialEq, Eq)]
struct Secret(Vec<u8>);

/// What a successful child left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// All it wrote to stdout.
    pub stdout: Vec<u8>,
    /// The last lines it wrote to stderr.
    pub stderr_tail: String,
}

impl Output {
    /// Stdout as text, without white space at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }
}

impl Cmd {
    /// A call of a program that is found on `PATH` when it runs.
    pub fn new(tool: &'static str) -> Self {
        Self {
            tool,
            path: None,
            hint: format!("install {tool} and see that it is on PATH"),
            failed: None,
            args: Vec::new(),
            variables: Vec::new(),
            withheld: Vec::new(),
            stdin: None,
            directory: None,
            deadline: None,
            quiet: false,
        }
    }

    /// The program is this file, wherever `PATH` leads.
    pub fn at(mut self, path: impl Into<PathBuf>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// What to tell a user who doesn't have the program.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// What to tell a user when the program ran and failed, where that is more than to see all of its output.
    pub fn when_it_fails(mut self, hint: impl Into<String>) -> Self {
        self.failed = Some(hint.into());
        self
    }

    /// One more argument. Never a secret: everybody on the machine can read the arguments of every process.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// More arguments.
    pub fn args<Arg: Into<OsString>>(mut self, args: impl IntoIterator<Item = Arg>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// One more variable in the child's environment.
    pub fn env(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<OsString>) -> Self {
        let (name, value) = (name.into(), Value::Plain(value.into()));
        self.variables.push(Variable { name, value });
        self
    }

    /// Variables of our own environment that the child doesn't get.
    pub fn without(mut self, names: impl IntoIterator<Item = OsString>) -> Self {
        self.withheld.extend(names);
        self
    }

    /// One more variable, whose value is shown nowhere.
    pub fn secret_env(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<Vec<u8>>,
    ) -> Self {
        let (name, value) = (name.into(), Value::Secret(Secret(value.into())));
        self.variables.push(Variable { name, value });
        self
    }

    /// What the child reads on stdin; without this it reads nothing. Shown nowhere.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(Secret(bytes.into()));
        self
    }

    /// The child's working directory.
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.directory = Some(path.into());
        self
    }

    /// The child is ended, and the call fails, when it takes longer.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Its lines of stderr interest nobody as long as it succeeds.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }
}

/// As it could be pasted into a shell, but for stdin and for the values of secret variables, which are taken from variables
/// of the same names.
impl fmt::Display for Cmd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(directory) = &self.directory {
            write!(formatter, "cd {} && ", quoted(directory.as_os_str()))?;
        }
        if !self.withheld.is_empty() {
            write!(formatter, "env ")?;
        }
        for name in &self.withheld {
            write!(formatter, "-u {} ", quoted(name))?;
        }
        for Variable { name, value } in &self.variables {
            match value {
                Value::Plain(value) => write!(formatter, "{name}={} ", quoted(value))?,
                Value::Secret(_) => write!(formatter, "{name}=\"${name}\" ")?,
            }
        }
        let program = self.path.as_deref().unwrap_or(Path::new(self.tool));
        write!(formatter, "{}", quoted(program.as_os_str()))?;
        for arg in &self.args {
            write!(formatter, " {}", quoted(arg))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "({} bytes)", self.0.len())
    }
}

/// As one word of a POSIX shell.
pub fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain =
        |character: char| character.is_ascii_alphanumeric() || "%+,-./:=@_".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Runs the program to its end and returns what it wrote to stdout. Fails when it isn't there, when its exit status isn't 0,
/// when it takes longer than its deadline, and when `stop` is requested; it has then been ended, with all its children.
pub async fn run(cmd: &Cmd, stop: &Stop, step: &Step) -> anyhow::Result<Output> {
    let mut stdout = Vec::new();
    let stderr_tail = drive(cmd, stop, step, |chunk| {
        let room = (STDOUT_LIMIT + 1).saturating_sub(stdout.len());
        stdout.extend_from_slice(&chunk[..chunk.len().min(room)]);
    })
    .await?;
    if stdout.len() > STDOUT_LIMIT {
        return Err(Failure::Other {
            message: format!("`{cmd}` wrote more than {} MiB", STDOUT_LIMIT >> 20),
            hint: "run it by hand and look at what it writes".to_owned(),
        }
        .into());
    }
    Ok(Output {
        stdout,
        stderr_tail,
    })
}

/// Like [`run`], but hands over each line of stdout as it comes.
pub async fn run_lines(
    cmd: &Cmd,
    stop: &Stop,
    step: &Step,
    mut on_line: impl FnMut(&str),
) -> anyhow::Result<()> {
    let mut lines = Lines::default();
    drive(cmd, stop, step, |chunk| lines.push(chunk, &mut on_line)).await?;
    lines.finish(&mut on_line);
    Ok(())
}

/// Runs a program that may ask the person at the terminal for something, such as sudo for a password. It stays in devenv's own
/// process group, to which the terminal talks, so Ctrl-C reaches it without us; its stderr is ours. Borrow the terminal for it:
/// see [`crate::event::Events::borrow_terminal`].
pub async fn run_at_terminal(cmd: &Cmd, stop: &Stop) -> anyhow::Result<Output> {
    stop.check()?;
    let mut command = prepared(cmd)?;
    if cmd.stdin.is_none() {
        command.stdin(Stdio::inherit());
    }
    let mut child = spawned(command.stderr(Stdio::inherit()), cmd).await?;
    let (stdin, pipe) = (child.stdin.take(), child.stdout.take());
    let mut stdout = Vec::new();
    let ended = async {
        let talk = drain(pipe, |chunk| {
            let room = STDOUT_LIMIT.saturating_sub(stdout.len());
            stdout.extend_from_slice(&chunk[..chunk.len().min(room)]);
        });
        tokio::join!(child.wait(), feed(stdin, cmd.stdin.as_ref()), talk).0
    };
    // Another user's process can't be ended by us; it is asked by the same signal, and given some time.
    let stopped = async {
        stop.requested().await;
        tokio::time::sleep(GRACE).await;
    };
    let status = tokio::select! {
        status = ended => status.with_context(|| format!("can't wait for `{cmd}`"))?,
        () = stopped => return Err(stop.error()),
    };
    stop.check()?;
    if !status.success() {
        return Err(Failure::CommandFailed {
            command: cmd.to_string(),
            status: described(status),
            stderr_tail: String::new(), // it was seen
            hint: cmd.failed.clone(),
        }
        .into());
    }
    Ok(Output {
        stdout,
        stderr_tail: String::new(),
    })
}

/// What a program that ran in front came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; of one that a signal ended 128 and the signal's number, as shells have it.
    pub code: u8,
    /// The same in words.
    pub described: String,
    /// What it left running, which was ended too.
    pub left: Vec<String>,
}

/// Runs a program in devenv's place: with its stdin, stdout and stderr, and at a terminal in front, so that Ctrl-C reaches the
/// program and not devenv. Borrow the terminal for it. What is left of its family afterwards is ended; when `stop` is requested,
/// all of it is.
pub async fn run_in_front(cmd: &Cmd, stop: &Stop, family: &Mark) -> anyhow::Result<Ended> {
    stop.check()?;
    let mut command = prepared(cmd)?;
    command
        .stdin(Stdio::inherit())
        .stdout(Stdio::inherit())
        .stderr(Stdio::inherit())
        .process_group(0);
    let child = spawned(&mut command, cmd).await?;
    let leader = child.id().map(|id| Pid::from_raw(id.cast_signed()));
    let mut group = Group { child, leader };
    let front = leader.and_then(Front::lend);
    let end = loop {
        tokio::select! {
            end = group.end(stop, None) => break end,
            () = tokio::time::sleep(Duration::from_millis(100)), if front.is_some() => {
                // It was faster at reading than we were at lending; or somebody typed Ctrl-Z, for which there is no way back.
                if let Some(leader) = leader && family::is_stopped(leader) {
                    let _ = killpg(leader, UnixSignal::SIGCONT);
                }
            }
        }
    };
    drop(front);
    let left = match &end {
        End::Exited(_) => family::members(family),
        End::Stopped | End::Late(_) => Vec::new(),
    };
    group.leader = leader.filter(|leader| lives(*leader));
    group.terminate().await;
    family::end(family).await;
    match end {
        End::Exited(status) => {
            let status = status.with_context(|| format!("can't wait for `{cmd}`"))?;
            let code = status
                .code()
                .or_else(|| status.signal().map(|signal| 128 + signal));
            Ok(Ended {
                code: code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
                described: described(status),
                left: left.iter().map(ToString::to_string).collect(),
            })
        }
        End::Stopped | End::Late(_) => Err(stop.error()),
    }
}

/// The terminal, lent to a process group, which is in front until this is dropped.
struct Front {
    own: Pid,
}

impl Front {
    /// Nothing where devenv itself isn't in front of a terminal.
    fn lend(to: Pid) -> Option<Self> {
        let own = getpgrp();
        if tcgetpgrp(io::stdin()) != Ok(own) {
            return None;
        }
        put_in_front(to);
        Some(Self { own })
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        put_in_front(self.own);
    }
}

fn put_in_front(group: Pid) {
    // Whoever gives the terminal away without being in front is stopped by this signal, unless it is blocked.
    let mut signals = SigSet::empty();
    signals.add(UnixSignal::SIGTTOU);
    let _ = signals.thread_block();
    let _ = tcsetpgrp(io::stdin(), group);
    let _ = signals.thread_unblock();
}

/// A program that goes on when devenv ends, and that devenv talks to in lines.
#[derive(Debug)]
pub struct Apart {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

/// Starts a program that isn't ended with devenv.
pub async fn start_apart(cmd: &Cmd) -> anyhow::Result<Apart> {
    let mut command = prepared(cmd)?;
    command
        .stdin(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(false);
    let mut child = spawned(&mut command, cmd).await?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take().context("a pipe was asked for")?;
    Ok(Apart {
        child,
        stdin,
        stdout: BufReader::new(stdout),
    })
}

impl Apart {
    /// The next line it says, or nothing if it says none in time.
    pub async fn line(&mut self, within: Duration) -> String {
        let mut line = String::new();
        let _ = tokio::time::timeout(within, self.stdout.read_line(&mut line)).await;
        line.trim_end().to_owned()
    }

    /// Tells it something.
    pub async fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().context("it was told to end")?;
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .await
            .with_context(|| format!("say `{line}` to a process that stands by"))
    }

    /// Says nothing more, and waits until it has ended.
    pub async fn end(&mut self) {
        self.stdin = None;
        let _ = tokio::time::timeout(GRACE, self.child.wait()).await;
    }
}

/// How the wait for a child ended.
enum End {
    Exited(io::Result<ExitStatus>),
    Stopped,
    Late(Duration),
}

/// Runs the program to its end; the last lines of stderr come back. Its pipes are read all the time, also while it is being
/// ended, so that it can't hang on a full one.
async fn drive(
    cmd: &Cmd,
    stop: &Stop,
    step: &Step,
    on_stdout: impl FnMut(&[u8]),
) -> anyhow::Result<String> {
    stop.check()?;
    let mut group = Group::start(cmd).await?;
    let tail = RefCell::new(VecDeque::new());
    let end = {
        let stdin = group.child.stdin.take();
        let stdout = group.child.stdout.take();
        let stderr = group.child.stderr.take();
        let mut lines = Lines::default();
        let mut keep = |line: &str| {
            if !cmd.quiet {
                step.line(line);
            }
            let mut tail = tail.borrow_mut();
            tail.push_back(line.to_owned());
            if tail.len() > TAIL {
                tail.pop_front();
            }
        };
        let talk = async {
            tokio::join!(
                feed(stdin, cmd.stdin.as_ref()),
                drain(stdout, on_stdout),
                drain(stderr, |chunk| lines.push(chunk, &mut keep)),
            );
            lines.finish(&mut keep);
        };
        let mut talk = pin!(talk.fuse());

        let end = beside(group.end(stop, cmd.deadline), &mut talk).await;
        if !matches!(end, End::Exited(_)) {
            beside(group.terminate(), &mut talk).await;
        }
        if !talk.is_terminated() {
            let _ = tokio::time::timeout(LINGER, talk).await; // a daemon it left may hold its pipes for ever
        }
        end
    };
    let tail = Vec::from(tail.into_inner());
    match end {
        End::Stopped => Err(stop.error()),
        End::Late(after) => Err(Failure::TimedOut {
            what: format!("`{cmd}`"),
            after,
            last_seen: tail
                .last()
                .cloned()
                .unwrap_or_else(|| "nothing on stderr".to_owned()),
            hint: "run the same command again with -v to see every line of its output".to_owned(),
        }
        .into()),
        End::Exited(status) => {
            let status = status.with_context(|| format!("can't wait for `{cmd}`"))?;
            if !status.success() {
                return Err(Failure::CommandFailed {
                    command: cmd.to_string(),
                    status: described(status),
                    stderr_tail: tail.join("\n"),
                    hint: cmd.failed.clone(),
                }
                .into());
            }
            Ok(tail.join("\n"))
        }
    }
}

/// Drives `side` along until `work` is done.
async fn beside<T>(work: impl Future<Output = T>, side: &mut (impl FusedFuture + Unpin)) -> T {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            value = &mut work => return value,
            _ = &mut *side, if !side.is_terminated() => {}
        }
    }
}

/// A child and all that it starts, as long as they stay in its process group. Dropped before the child's end, it kills them.
struct Group {
    child: Child,
    /// The number of the group, until the child was waited for.
    leader: Option<Pid>,
}

impl Group {
    async fn start(cmd: &Cmd) -> anyhow::Result<Self> {
        let mut command = prepared(cmd)?;
        let child = spawned(command.stderr(Stdio::piped()).process_group(0), cmd).await?;
        let leader = child.id().map(|id| Pid::from_raw(id.cast_signed()));
        Ok(Self { child, leader })
    }

    async fn end(&mut self, stop: &Stop, deadline: Option<Duration>) -> End {
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep(deadline).await,
                None => std::future::pending().await,
            }
            deadline.unwrap_or_default()
        };
        tokio::select! {
            status = self.child.wait() => {
                self.leader = None;
                End::Exited(status)
            }
            () = stop.requested() => End::Stopped,
            deadline = late => End::Late(deadline),
        }
    }

    /// SIGTERM to all of them, and SIGKILL to those that are still there ten seconds later.
    async fn terminate(&mut self) {
        let Some(leader) = self.leader else { return };
        let _ = killpg(leader, UnixSignal::SIGTERM);
        if tokio::time::timeout(GRACE, self.gone(leader))
            .await
            .is_err()
        {
            let _ = killpg(leader, UnixSignal::SIGKILL);
            let _ = tokio::time::timeout(LINGER, self.gone(leader)).await;
        }
        self.leader = None;
    }

    /// Ends when the child is buried and nobody of its group lives.
    async fn gone(&mut self, leader: Pid) {
        let _ = self.child.wait().await;
        while lives(leader) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            let _ = killpg(leader, UnixSignal::SIGKILL);
        }
    }
}

/// The call as the system takes it, but for where stderr goes.
fn prepared(cmd: &Cmd) -> anyhow::Result<Command> {
    let mut command = command(&find(cmd)?);
    command
        .args(&cmd.args)
        .stdin(match cmd.stdin {
            Some(_) => Stdio::piped(),
            None => Stdio::null(),
        })
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    for name in &cmd.withheld {
        command.env_remove(name);
    }
    for Variable { name, value } in &cmd.variables {
        match value {
            Value::Plain(value) => command.env(&**name, value),
            Value::Secret(Secret(value)) => command.env(
                &**name,
                <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(value),
            ),
        };
    }
    if let Some(directory) = &cmd.directory {
        command.current_dir(directory);
    }
    Ok(command)
}

async fn spawned(command: &mut Command, cmd: &Cmd) -> anyhow::Result<Child> {
    let mut tries = 0;
    loop {
        match command.spawn() {
            // Another thread was forking while the program's file was still open for writing; that passes by itself.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < 50 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            spawned => return spawned.with_context(|| format!("can't start `{cmd}`")),
        }
    }
}

/// Whether a member of the group is left. The dead whom nobody has buried yet don't count: in a container, process 1 may never
/// do it.
fn lives(leader: Pid) -> bool {
    if killpg(leader, None).is_err() {
        return false;
    }
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return true; // not Linux: believe the kernel
    };
    processes.flatten().any(|process| {
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        is_living_member(&stat, leader)
    })
}

/// "4711 (any (name)) S 1 4700 …": state, parent and group come after the name.
fn is_living_member(stat: &str, leader: Pid) -> bool {
    let Some((_, fields)) = stat.rsplit_once(") ") else {
        return false;
    };
    let mut fields = fields.split(' ');
    let (state, group) = (fields.next(), fields.nth(1));
    !matches!(state, Some("Z" | "X")) && group == Some(leader.to_string().as_str())
}

/// Where the program is, or the hint how to get it.
fn find(cmd: &Cmd) -> Result<PathBuf, Failure> {
    let found = match &cmd.path {
        Some(path) => which::which(path),
        None => which::which(cmd.tool),
    };
    found.map_err(|_| Failure::ToolMissing {
        tool: cmd.tool,
        hint: cmd.hint.clone(),
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that starts processes"
)]
fn command(program: &Path) -> Command {
    Command::new(program)
}

async fn feed(pipe: Option<ChildStdin>, bytes: Option<&Secret>) {
    if let (Some(mut pipe), Some(Secret(bytes))) = (pipe, bytes) {
        // A child that doesn't read to the end has its reasons, and its exit status tells whether they were good.
        let _ = pipe.write_all(bytes).await;
    }
}

async fn drain(pipe: Option<impl AsyncRead + Unpin>, mut on_chunk: impl FnMut(&[u8])) {
    let Some(mut pipe) = pipe else { return };
    let mut chunk = vec![0; 64 << 10];
    while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
        on_chunk(&chunk[..length]);
    }
}

/// Cuts a stream of bytes into lines: at line feeds, and at the carriage returns of programs that draw progress. Colours and
/// other escape sequences are taken out, and empty lines are left out.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    fn push(&mut self, chunk: &[u8], on_line: &mut impl FnMut(&str)) {
        for part in chunk.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            let room = LINE_LIMIT.saturating_sub(self.begun.len());
            self.begun.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") || part.ends_with(b"\r") {
                self.finish(on_line);
            }
        }
    }

    fn finish(&mut self, on_line: &mut impl FnMut(&str)) {
        let line = String::from_utf8_lossy(&self.begun);
        let line = anstream::adapter::strip_str(line.trim_end()).to_string();
        if !line.is_empty() {
            on_line(&line);
        }
        self.begun.clear();
    }
}

fn described(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => match UnixSignal::try_from(signal) {
            Ok(known) => format!("killed by {known}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::sync::mpsc::UnboundedReceiver;

    use super::*;
    use crate::error::{Exit, Signal, explain};
    use crate::event::{Event, Events, Timed};

    fn sh(script: &str) -> Cmd {
        Cmd::new("sh").args(["-c", script])
    }

    fn step() -> (Step, UnboundedReceiver<Timed>) {
        let (events, receiver) = Events::channel();
        (events.step("test"), receiver)
    }

    async fn try_run(cmd: &Cmd) -> anyhow::Result<Output> {
        run(cmd, &Stop::new(), &step().0).await
    }

    fn alive(pid: &str) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        state.is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[test]
    fn is_shown_as_it_could_be_pasted() {
        let cmd = Cmd::new("kind")
            .args([
                "create", "cluster", "--name", "it's", "", "a b", "$HOME", "~",
            ])
            .env("KUBECONFIG", "/home/me/my config")
            .secret_env("TOKEN", "hunter2")
            .stdin("hunter3")
            .directory("/tmp/x y");
        assert_eq!(
            cmd.to_string(),
            r#"cd '/tmp/x y' && KUBECONFIG='/home/me/my config' TOKEN="$TOKEN" kind create cluster --name 'it'\''s' '' 'a b' '$HOME' '~'"#
        );
        assert!(!format!("{cmd:?}").contains("hunter"));
        assert_eq!(Cmd::new("kind").at("/opt/kind").to_string(), "/opt/kind");
    }

    #[tokio::test]
    async fn a_shell_reads_what_was_quoted() {
        let words = [
            "", " ", "it's", "a\nb", "$HOME", "`id`", "\\", "\"", "~", "#", "*", "a=b", "é", "!",
        ];
        let shown = Cmd::new("printf").arg(r"%s\0").args(words).to_string();
        let output = try_run(&sh(&shown)).await.unwrap().stdout;
        let read = String::from_utf8(output).unwrap();
        assert_eq!(read.split_terminator('\0').collect::<Vec<_>>(), words);
    }

    #[tokio::test]
    async fn stdout_is_returned_and_stderr_becomes_lines() {
        let (step, mut events) = step();
        let cmd =
            sh(r#"cat; pwd; echo "$A $B"; printf '\033[1mone\033[0m\ntwo\rthree\n\nlast' >&2"#)
                .stdin("in\n")
                .directory("/")
                .env("A", "a")
                .secret_env("B", "b");
        let output = run(&cmd, &Stop::new(), &step).await.unwrap();
        assert_eq!(output.text(), "in\n/\na b");
        assert_eq!(output.stderr_tail, "one\ntwo\nthree\nlast");
        let mut lines = Vec::new();
        while let Ok(timed) = events.try_recv() {
            if let Event::Line { text, .. } = timed.event {
                lines.push(text);
            }
        }
        assert_eq!(lines, ["one", "two", "three", "last"]);
    }

    #[tokio::test]
    async fn lines_of_stdout_come_one_by_one() {
        let mut lines = Vec::new();
        run_lines(
            &sh("echo 1; printf '2\n3'"),
            &Stop::new(),
            &step().0,
            |line| {
                lines.push(line.to_owned());
            },
        )
        .await
        .unwrap();
        assert_eq!(lines, ["1", "2", "3"]);
    }

    #[tokio::test]
    async fn a_failure_shows_the_command_the_status_and_the_end_of_stderr() {
        let error = try_run(&sh("for i in $(seq 30); do echo line $i >&2; done; exit 3")).await;
        let error = error.unwrap_err().to_string();
        let mut lines = error.lines();
        assert_eq!(
            lines.next(),
            Some(
                "`sh -c 'for i in $(seq 30); do echo line $i >&2; done; exit 3'` failed (exit status 3)"
            )
        );
        assert_eq!(lines.next(), Some("  | line 11"));
        assert_eq!(lines.next_back(), Some("  | line 30"));

        let killed = try_run(&sh("kill -9 $$")).await.unwrap_err();
        assert_eq!(
            killed.to_string(),
            "`sh -c 'kill -9 $$'` failed (killed by SIGKILL)"
        );
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_comes_with_its_hint() {
        let cmd = Cmd::new("no-such-program").hint("run scripts/up");
        let error = try_run(&cmd).await.unwrap_err();
        assert_eq!(error.to_string(), "no-such-program is not on PATH");
        assert_eq!(
            explain(&error),
            (Exit::StepFailed, Some("run scripts/up".to_owned()))
        );
    }

    #[tokio::test]
    async fn much_output_and_unread_input_block_nothing() {
        let cmd = sh("head -c 3000000 /dev/zero; head -c 300000 /dev/zero >&2")
            .stdin(vec![b'x'; 1 << 20]);
        assert_eq!(try_run(&cmd).await.unwrap().stdout.len(), 3_000_000);
    }

    #[tokio::test]
    async fn a_daemon_left_behind_holds_nothing_up() {
        let output = try_run(&sh("sleep 30 & echo $!")).await.unwrap();
        let pid: i32 = output.text().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(pid), UnixSignal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn a_stop_ends_the_whole_family() {
        let temp = tempfile::tempdir().unwrap();
        let cmd =
            sh("trap 'echo asked > asked; exit 0' TERM; sleep 60 & echo $! > pid; wait; wait")
                .directory(temp.path());
        let stop = Stop::new();
        let ask = async {
            while !std::fs::read_to_string(temp.path().join("pid"))
                .is_ok_and(|pid| pid.ends_with('\n'))
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            stop.request(Signal::Interrupt);
        };
        let step = step().0;
        let (ended, ()) = tokio::join!(run(&cmd, &stop, &step), ask);
        assert_eq!(explain(&ended.unwrap_err()).0, Exit::Interrupted);
        assert!(temp.path().join("asked").exists());
        assert!(!alive(
            &std::fs::read_to_string(temp.path().join("pid")).unwrap()
        ));
        // nothing starts any more
        let late = run(&sh("touch late").directory(temp.path()), &stop, &step).await;
        assert!(late.is_err() && !temp.path().join("late").exists());
    }

    #[tokio::test]
    async fn those_who_do_not_listen_are_killed() {
        let cmd = sh("trap '' TERM; sleep 60; sleep 60").deadline(Duration::from_millis(100));
        let before = Instant::now();
        let error = try_run(&cmd).await.unwrap_err().to_string();
        assert!(error.ends_with("last seen: nothing on stderr"), "{error}");
        assert!(before.elapsed() >= GRACE);
    }

    #[test]
    fn the_dead_are_no_members() {
        let is_member = |stat| is_living_member(stat, Pid::from_raw(4700));
        assert!(is_member("4711 (a) b) S 1 4700 4700 0"));
        assert!(!is_member("4711 (a) b) Z 1 4700 4700 0"));
        assert!(!is_member("4711 (a) b) S 4700 1 4700 0"));
        assert!(!is_member(""));
    }

    #[tokio::test]
    async fn a_deadline_ends_it_and_tells_what_was_last_seen() {
        let cmd = sh("echo connecting >&2; exec sleep 60").deadline(Duration::from_millis(200));
        assert_eq!(
            try_run(&cmd).await.unwrap_err().to_string(),
            "gave up waiting for `sh -c 'echo connecting >&2; exec sleep 60'` after 200ms\nlast seen: connecting"
        );
    }

    #[tokio::test]
    async fn a_dropped_run_leaves_no_orphan() {
        let temp = tempfile::tempdir().unwrap();
        let cmd = sh("sleep 60 & echo $! > pid; wait").directory(temp.path());
        let pid = || std::fs::read_to_string(temp.path().join("pid")).unwrap_or_default();
        tokio::select! {
            _ = try_run(&cmd) => unreachable!("it runs for a minute"),
            () = async { while !pid().ends_with('\n') { tokio::time::sleep(Duration::from_millis(10)).await } } => {}
        }
        for _ in 0..100 {
            if !alive(&pid()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{} still runs", pid());
    }
}
