//! A hosts file on the disk: read, and changed without losing anything that is in it or about it.
//!
//! A change is a function on bytes. It is applied to what is there, and once more if somebody else wrote meanwhile, until it has
//! nothing left to change: so what was written is also what was found afterwards.
//!
//! An ordinary file is replaced by a new one of the same mode, owner and attributes, in one step: whoever reads sees the old
//! file or the new one. What can't be replaced is written in place: a mount, as in every container; a file of several names; a
//! file in a folder that can't be written to; attributes that can't be carried over; one that somebody writes to all the time.
//! It is then never cut first: lines are added
//! at the end in one write, or cut off at the end, or what differs is written over.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Gid, Uid};
use xattr::FileExt as _;

use crate::error::Failure;

/// No hosts file that a person or a block list made is nearly as long.
pub const LIMIT: u64 = 16 << 20;
/// How often a change is made anew because somebody else wrote meanwhile.
const TRIES: usize = 100;
/// How often of these a new file is made. That takes its time; whoever writes all the time would always be faster.
const REPLACEMENTS: usize = 5;
/// How long another devenv is waited for. A stranger can hold this lock as well, so it isn't waited for longer.
const TURN: Duration = Duration::from_secs(2);
/// What a file that is being written is called, until it takes the place of the old one.
const SCRATCH: &str = ".devenv-hosts-";

/// How a file was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Written {
    /// By another file in its place.
    Replaced,
    /// In the file itself.
    InPlace,
}

/// The bytes of the file; none where there is no such file.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    Ok(Target::read(path)?.bytes)
}

/// Whether this process may change the file, as far as the rights on it can tell.
pub fn may_write(path: &Path) -> bool {
    match OpenOptions::new().write(true).open(path) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(Path::new("/"));
            nix::unistd::access(folder, nix::unistd::AccessFlags::W_OK).is_ok()
        }
        Err(_) => false,
    }
}

/// Changes the file until `change` leaves it as it is; says how, or that there was nothing to change.
pub fn edit(
    path: &Path,
    change: impl Fn(&[u8]) -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<Option<Written>> {
    let mut written = None;
    let mut turn = None;
    for tries in 0..TRIES {
        let target = Target::read(path)?;
        let new = change(&target.bytes)?;
        if new == target.bytes {
            return Ok(written);
        }
        if turn.is_none() {
            // What was just read may be another devenv's doing, half of what it does: look again when it is our turn.
            turn = Some(Turn::take(&target.folder));
            continue;
        }
        match target.write(&new, tries <= REPLACEMENTS) {
            Ok(Some(how)) => written = Some(how),
            Ok(None) => {}
            Err(error) => return Err(refused(path, &error).into()),
        }
    }
    Err(Failure::Other {
        message: format!(
            "{} changes all the time; gave up after {TRIES} tries",
            path.display()
        ),
        hint: format!("fuser -v {}", path.display()),
    }
    .into())
}

/// The reason, in words, why a file can't be written.
fn refused(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    let (reason, hint) = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EROFS) => (
            "its file system is read-only".to_owned(),
            format!("findmnt --target {path}"),
        ),
        Some(Errno::EPERM) => (
            "the rights on it would allow it, so it may be immutable: lsattr then shows an `i`, which chattr -i takes away"
                .to_owned(),
            format!("lsattr {path}"),
        ),
        Some(Errno::EACCES) => ("this user may not".to_owned(), format!("ls -l {path}")),
        Some(Errno::ENOSPC | Errno::EDQUOT) => {
            ("there is no space left".to_owned(), format!("df -h {path}"))
        }
        _ => (error.to_string(), format!("ls -l {path}")),
    };
    Failure::Other {
        message: format!("can't change {path}: {reason}"),
        hint,
    }
}

/// The right to be the only devenv that writes in this folder, if it could be had.
struct Turn(Option<File>);

impl Turn {
    fn take(folder: &Path) -> Self {
        let Ok(handle) = File::open(folder) else {
            return Self(None);
        };
        let deadline = Instant::now() + TURN;
        loop {
            match handle.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(_) => return Self(None),
            }
        }
        remove_leavings(folder);
        Self(Some(handle))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(folder) = &self.0 {
            let _ = folder.unlock();
        }
    }
}

/// What a killed devenv left of a file that it was writing.
fn remove_leavings(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_one = entry.file_name().to_string_lossy().starts_with(SCRATCH);
        if is_one && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A file as it was found.
struct Target {
    /// Where it really is, if the path is a link.
    path: PathBuf,
    folder: PathBuf,
    bytes: Vec<u8>,
    /// The file itself, if there is one.
    open: Option<(File, Metadata)>,
}

impl Target {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let what = || format!("can't read {}", path.display());
        let path = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_symlink() => followed(path)?,
            Ok(_) => path.to_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(error).with_context(what),
        };
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        let mut target = Self {
            path,
            folder,
            bytes: Vec::new(),
            open: None,
        };
        let mut file = match open(&target.path, OpenOptions::new().read(true)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(target),
            Err(error) => return Err(error).with_context(what),
        };
        let metadata = file.metadata().with_context(what)?;
        if !metadata.is_file() {
            return Err(Failure::NotOurs {
                message: format!("{} is not an ordinary file", target.path.display()),
                hint: format!("ls -ld {}", target.path.display()),
            }
            .into());
        }
        target.bytes = contents(&mut file).with_context(what)?;
        if target.bytes.len() as u64 > LIMIT {
            return Err(Failure::NotOurs {
                message: format!(
                    "{} is longer than {} MiB, which no hosts file is",
                    target.path.display(),
                    LIMIT >> 20
                ),
                hint: format!("ls -l {}", target.path.display()),
            }
            .into());
        }
        target.open = Some((file, metadata));
        Ok(target)
    }

    /// Writes the new bytes, unless the file is no longer what was read.
    fn write(self, new: &[u8], may_replace: bool) -> io::Result<Option<Written>> {
        let Some((_, metadata)) = &self.open else {
            return self.create(new);
        };
        if may_replace && metadata.nlink() == 1 {
            match self.replacement(metadata, new) {
                Ok(scratch) => {
                    if !self.is_unchanged()? {
                        return Ok(None);
                    }
                    if scratch.persist(&self.path).is_ok() {
                        self.carry_over(new)?;
                        return Ok(Some(Written::Replaced));
                    }
                    // A mount, above all: the file itself can still be written.
                }
                Err(error) if is_out_of_space(&error) => return Err(error),
                Err(_) => {}
            }
        }
        self.write_in_place(new)
    }

    fn create(&self, new: &[u8]) -> io::Result<Option<Written>> {
        let mut scratch = scratch_file(&self.folder)?;
        scratch.write_all(new)?;
        scratch
            .as_file()
            .set_permissions(fs::Permissions::from_mode(0o644))?;
        scratch.as_file().sync_all()?;
        match scratch.persist_noclobber(&self.path) {
            Ok(_) => {
                sync_folder(&self.folder);
                Ok(Some(Written::Replaced))
            }
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(error.error),
        }
    }

    /// A file that differs from this one in its bytes only.
    fn replacement(&self, metadata: &Metadata, new: &[u8]) -> io::Result<tempfile::NamedTempFile> {
        let mut scratch = scratch_file(&self.folder)?;
        scratch.write_all(new)?;
        let file = scratch.as_file();
        let made = file.metadata()?;
        if (made.uid(), made.gid()) != (metadata.uid(), metadata.gid()) {
            let (owner, group) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
            nix::unistd::fchown(file, Some(owner), Some(group))?;
        }
        if let Some((old, _)) = &self.open {
            for name in attributes(old)? {
                let value = old.get_xattr(&name)?.unwrap_or_default();
                if file.get_xattr(&name)?.as_ref() != Some(&value) {
                    file.set_xattr(&name, &value)?;
                }
            }
        }
        file.set_permissions(metadata.permissions())?; // after the owner, whose change takes some of the bits away
        file.sync_all()?;
        Ok(scratch)
    }

    /// Whether the path still leads to the very bytes that were read.
    fn is_unchanged(&self) -> io::Result<bool> {
        let Some((_, was)) = &self.open else {
            return Ok(!self.path.exists());
        };
        let mut file = match open(&self.path, OpenOptions::new().read(true)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        Ok(is_same(was, &file.metadata()?) && contents(&mut file)? == self.bytes)
    }

    /// Somebody may have opened the old file before it was replaced, and have written to it since. What they added is added to
    /// the new one.
    fn carry_over(self, new: &[u8]) -> io::Result<()> {
        sync_folder(&self.folder);
        let Self {
            path,
            mut bytes,
            open: Some((mut old, _)),
            ..
        } = self
        else {
            return Ok(());
        };
        let mut written = new.to_owned();
        for pause in [0, 5, 20] {
            std::thread::sleep(Duration::from_millis(pause));
            let late = contents(&mut old)?;
            if late == bytes {
                continue;
            }
            if let Some(added) = late.strip_prefix(&bytes[..]) {
                open(&path, OpenOptions::new().append(true))?.write_all(added)?;
                written.extend_from_slice(added);
            } else if fs::read(&path)? == written {
                // They wrote all of it anew: theirs is what counts, and the change is made to it next.
                write_over(
                    &open(&path, OpenOptions::new().read(true).write(true))?,
                    &written,
                    &late,
                )?;
                written.clone_from(&late);
            }
            bytes = late;
        }
        Ok(())
    }

    fn write_in_place(&self, new: &[u8]) -> io::Result<Option<Written>> {
        let file = open(&self.path, OpenOptions::new().read(true).write(true))?;
        let mut end = open(&self.path, OpenOptions::new().append(true))?;
        if !self.is_unchanged()? {
            return Ok(None);
        }
        match new.strip_prefix(&self.bytes[..]) {
            Some(added) => {
                if let Err(error) = end.write_all(added) {
                    take_back(&file, &self.bytes, added);
                    return Err(error);
                }
            }
            None => write_over(&file, &self.bytes, new)?,
        }
        let _ = file.sync_all(); // some file systems can't
        Ok(Some(Written::InPlace))
    }
}

/// The end of a link, if it is one to trust: whoever owns a link's target says what all names on this machine mean.
fn followed(path: &Path) -> anyhow::Result<PathBuf> {
    let target = fs::canonicalize(path)
        .with_context(|| format!("{} is a link that leads nowhere", path.display()))?;
    let owner = fs::metadata(&target)
        .with_context(|| format!("can't look at {}", target.display()))?
        .uid();
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return Err(Failure::NotOurs {
            message: format!(
                "{} is a link to {}, which belongs to user {owner} and not to root",
                path.display(),
                target.display()
            ),
            hint: format!("ls -l {} {}", path.display(), target.display()),
        }
        .into());
    }
    Ok(target)
}

/// Opens the file itself; a link that somebody put in its place meanwhile is refused.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options
        .custom_flags(OFlag::O_NOFOLLOW.bits() | OFlag::O_NONBLOCK.bits())
        .open(path)
}

fn scratch_file(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(SCRATCH).tempfile_in(folder)
}

/// All of the file from its beginning, but no more than is enough to see that it is too long.
fn contents(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(LIMIT + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    let identity = |it: &Metadata| (it.dev(), it.ino(), it.mtime(), it.mtime_nsec(), it.len());
    identity(one) == identity(other)
}

/// The names of the file's extended attributes; a file system without any has none.
fn attributes(file: &File) -> io::Result<Vec<std::ffi::OsString>> {
    match file.list_xattr() {
        Ok(names) => Ok(names.collect()),
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn is_out_of_space(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENOSPC | Errno::EDQUOT)
    )
}

/// Turns the one content of a file into the other; never cuts what is still to be moved, nor what somebody adds meanwhile.
fn write_over(file: &File, old: &[u8], new: &[u8]) -> io::Result<()> {
    let same = old
        .iter()
        .zip(new)
        .take_while(|(one, other)| one == other)
        .count();
    file.write_all_at(&new[same..], same as u64)?;
    if new.len() >= old.len() {
        return Ok(());
    }
    let (mut moved, mut to) = (old.len() as u64, new.len() as u64);
    loop {
        // Nothing can look at a file and cut it in one step. What helps: not to be put aside in between, just when our time is
        // up; and to wait for whoever is in the middle of adding something, which a write does and a look doesn't.
        std::thread::yield_now();
        if let Some(before) = to.checked_sub(1) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, before)?;
            file.write_all_at(&byte, before)?;
        }
        let added = file.metadata()?.len().saturating_sub(moved);
        if added == 0 {
            return file.set_len(to);
        }
        let mut bytes = vec![0; usize::try_from(added).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut bytes, moved)?;
        file.write_all_at(&bytes, to)?;
        moved += added;
        to += added;
    }
}

/// Takes back a part of what was to be added, where there was no space for all of it.
fn take_back(file: &File, old: &[u8], added: &[u8]) {
    let mut found = Vec::new();
    let mut reader = file;
    let is_ours = reader.rewind().is_ok()
        && reader.read_to_end(&mut found).is_ok()
        && found
            .strip_prefix(old)
            .is_some_and(|part| added.starts_with(part));
    if is_ours {
        let _ = file.set_len(old.len() as u64);
    }
}

/// So that the new name outlasts a power cut. A file system that can't isn't worth failing for.
fn sync_folder(folder: &Path) {
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}
