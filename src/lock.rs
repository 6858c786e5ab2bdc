//! One command at a time per environment: a `flock` that the kernel frees, whatever happens to us.
//!
//! The children of devenv inherit the lock. After `kill -9` of devenv, an orphaned `kind create` therefore still holds it, and
//! the next command waits for the orphan instead of running into it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::event::Events;
use crate::paths;
use crate::stop::Stop;

/// How often a held lock is tried again. `flock` itself can wait, but can't be told to stop waiting.
const PAUSE: Duration = Duration::from_millis(100);

/// The right to change the environment, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// What the file says about who holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Holder {
    pid: i32,
    command: String,
    since: u64,
}

/// Takes the lock at once or, if somebody has it, says who and waits for them.
pub async fn acquire(
    path: &Path,
    command: &str,
    events: &Events,
    stop: &Stop,
) -> anyhow::Result<Lock> {
    if let Some(folder) = path.parent() {
        paths::private_folder(folder)?;
    }
    if let Some(lock) = take(path, command)? {
        return Ok(lock);
    }
    let step = events.step("lock");
    let mut said = String::new();
    loop {
        let text = waiting_for(holder(path).as_ref(), SystemTime::now(), is_alive);
        if text != said {
            step.waiting(&text);
            said = text;
        }
        stop.or(tokio::time::sleep(PAUSE)).await?;
        if let Some(lock) = take(path, command)? {
            step.done("it is our turn");
            return Ok(lock);
        }
    }
}

/// The lock, if nobody else has it.
fn take(path: &Path, command: &str) -> anyhow::Result<Option<Lock>> {
    let what = || format!("can't lock {}", path.display());
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .with_context(what)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error).with_context(what),
        }
        // Who had it before us removed the file: what we hold now is a file that nobody else will find.
        if !is_still_there(&file, path) {
            continue;
        }
        let mut lock = Lock {
            file,
            path: path.to_owned(),
        };
        lock.sign(command).with_context(what)?;
        return Ok(Some(lock));
    }
}

impl Lock {
    fn sign(&mut self, command: &str) -> anyhow::Result<()> {
        let holder = Holder {
            pid: std::process::id().cast_signed(),
            command: command.to_owned(),
            since: seconds(SystemTime::now()),
        };
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(&serde_json::to_vec(&holder)?)?;
        fcntl(&self.file, FcntlArg::F_SETFD(FdFlag::empty()))?; // children inherit it, see the top of this file
        Ok(())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if is_still_there(&self.file, &self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
        // Not left to closing: a child that outlives us on purpose would go on holding it.
        let _ = self.file.unlock();
    }
}

fn is_still_there(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else {
        return false;
    };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

/// Who holds it, unless they have just come or gone.
fn holder(path: &Path) -> Option<Holder> {
    let mut text = String::new();
    File::open(path).ok()?.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn waiting_for(holder: Option<&Holder>, now: SystemTime, is_alive: impl Fn(i32) -> bool) -> String {
    let Some(Holder {
        pid,
        command,
        since,
    }) = holder
    else {
        return "waiting for another devenv".to_owned();
    };
    if !is_alive(*pid) {
        return format!("waiting for what `{command}` (pid {pid}, itself gone) left running");
    }
    let age = seconds(now).saturating_sub(*since) / 10 * 10; // so that the text changes now and then only
    if age == 0 {
        return format!("waiting for `{command}` (pid {pid}), which has just begun");
    }
    let age = humantime::format_duration(Duration::from_secs(age));
    format!("waiting for `{command}` (pid {pid}), which has been running for {age}")
}

fn is_alive(pid: i32) -> bool {
    // Another user's process answers with EPERM and is alive too, but the lock is in a folder of our own.
    nix::sys::signal::kill(Pid::from_raw(pid), None).is_ok()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Exit, Signal, explain};
    use crate::event::Event;

    #[test]
    fn says_for_whom_it_waits() {
        let holder = Holder {
            pid: 4711,
            command: "devenv up".to_owned(),
            since: 1000,
        };
        let text = |after: u64, alive: bool| {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + after);
            waiting_for(Some(&holder), now, |_| alive)
        };
        insta::assert_debug_snapshot!([text(3, true), text(99, true), text(3, false)], @r#"
        [
            "waiting for `devenv up` (pid 4711), which has just begun",
            "waiting for `devenv up` (pid 4711), which has been running for 1m 30s",
            "waiting for what `devenv up` (pid 4711, itself gone) left running",
        ]
        "#);
    }

    #[tokio::test]
    async fn the_second_waits_until_the_first_is_done() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("run/dev.lock");
        let (events, mut receiver) = Events::channel();
        let stop = Stop::new();

        let first = acquire(&path, "devenv up", &events, &stop).await.unwrap();
        assert!(
            receiver.try_recv().is_err(),
            "nothing to say about a free lock"
        );
        assert_eq!(holder(&path).unwrap().command, "devenv up");

        let second = acquire(&path, "devenv sync", &events, &stop);
        let free = async {
            tokio::time::sleep(Duration::from_millis(250)).await;
            assert!(take(&path, "a third").unwrap().is_none());
            drop(first);
        };
        let (second, ()) = tokio::join!(second, free);
        assert_eq!(holder(&path).unwrap().command, "devenv sync");
        drop(second.unwrap());
        assert!(!path.exists(), "leaves no file");

        let mut seen = Vec::new();
        while let Ok(timed) = receiver.try_recv() {
            seen.push(timed.event);
        }
        assert!(
            matches!(&seen[1], Event::Waiting { text, .. } if text.contains("`devenv up` (pid ")),
            "{seen:?}"
        );
    }

    #[tokio::test]
    async fn waiting_can_be_stopped() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("dev.lock");
        let (events, _receiver) = Events::channel();
        let stop = Stop::new();
        let _first = acquire(&path, "devenv up", &events, &stop).await.unwrap();
        let ask = async { stop.request(Signal::Terminate) };
        let (second, ()) = tokio::join!(acquire(&path, "devenv down", &events, &stop), ask);
        assert_eq!(explain(&second.unwrap_err()).0, Exit::Terminated);
    }
}
