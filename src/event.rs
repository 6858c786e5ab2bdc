//! What happens, as data: every part of devenv says what it does by sending [`Event`]s into one channel, and one
//! reporter ([`crate::report`]) prints them. Nothing here prints, and nothing that works knows how it is shown.
//!
//! Work is a tree of steps. A step begins when [`Events::step`] or [`Step::child`] makes it and ends exactly once: by
//! [`Step::done`] or [`Step::unchanged`], or, when it is dropped on the way out of an error or an interrupt, as
//! [`Outcome::Failed`] or [`Outcome::Stopped`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::checks::Checked;
use crate::stop::Stop;

/// One thing that happened, with when it happened.
#[derive(Debug, Clone)]
pub struct Timed {
    /// When, on the monotonic clock.
    pub at: Instant,
    /// What.
    pub event: Event,
}

/// What can happen. Steps are numbered in the order in which they begin, from 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A step begins; one without a parent is a phase of the command and gets a row in the closing table.
    Started {
        /// This step's number.
        step: u64,
        /// The step it is a part of.
        parent: Option<u64>,
        /// What is being done, such as "cluster" or "import argocd:3.2.11".
        name: String,
    },
    /// Bytes moved so far, of how many; a total of 0 means that it isn't known.
    Bytes {
        /// The step that moves them.
        step: u64,
        /// Bytes so far.
        done: u64,
        /// Bytes in all, or 0.
        total: u64,
    },
    /// What the step is waiting for or was last seen doing; each replaces the one before.
    Waiting {
        /// The step that waits.
        step: u64,
        /// In words: "argocd-server: 0 of 1 pods ready".
        text: String,
    },
    /// A line of a child process that somebody may want to read (`-v`).
    Line {
        /// The step that runs the child.
        step: u64,
        /// The line, without its end.
        text: String,
    },
    /// A step ended.
    Finished {
        /// Which.
        step: u64,
        /// How.
        outcome: Outcome,
        /// What came of it, in words; may be empty.
        text: String,
    },
    /// Something a person should know that belongs to no step; printed on its own line.
    Notice {
        /// The sentence.
        text: String,
    },
    /// A program wants the terminal for itself, to ask the person something.
    Lent {
        /// What it borrows.
        #[serde(skip)]
        terminal: Loan,
    },
    /// A check ended.
    Checked(Checked),
    /// The command's last word, such as "ready: 2 of 2 applications healthy at 4f2a91c"; with it comes the table of phases.
    Verdict {
        /// The sentence.
        text: String,
    },
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Something was changed.
    Done,
    /// There was nothing to do.
    Unchanged,
    /// It failed; the reason comes with the command's error.
    Failed,
    /// It was given up because something else failed or the command was interrupted.
    Stopped,
}

/// The terminal on loan. The reporter gives it and waits; nothing is written to it until it is back.
#[derive(Debug, Clone, Default)]
pub struct Loan {
    given: CancellationToken,
    back: CancellationToken,
}

impl Loan {
    /// The terminal is free to be used.
    pub fn give(&self) {
        self.given.cancel();
    }

    /// Ends when it is back.
    pub async fn returned(&self) {
        self.back.cancelled().await;
    }
}

/// There is one terminal, so one loan says what the other does.
impl PartialEq for Loan {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// The terminal, until it is dropped.
#[derive(Debug)]
#[must_use = "dropped, it is given back"]
pub struct Borrowed(Loan);

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.0.back.cancel();
    }
}

/// The sending end of the channel of events; clones feed the same one.
#[derive(Debug, Clone)]
pub struct Events {
    sender: mpsc::UnboundedSender<Timed>,
    last_step: Arc<AtomicU64>,
    stop: Stop,
    /// The parent of the last step that failed, which fails next; see [`Events::gives_up`].
    failing: Arc<AtomicU64>,
    /// What was sent since [`Events::remember`].
    memory: Arc<OnceLock<Mutex<Vec<Timed>>>>,
}

/// No step's number: nothing has failed yet.
const NOTHING_FAILED: u64 = 0;
/// No step's number: the phase that failed has no parent.
const NO_PARENT: u64 = u64::MAX;

impl Events {
    /// A channel; the receiver ends when every `Events` and every [`Step`] made from it is gone.
    pub fn channel() -> (Self, mpsc::UnboundedReceiver<Timed>) {
        Self::channel_until(Stop::new())
    }

    /// A channel of work that `stop` may end: what is given up after a signal was stopped, and didn't fail.
    pub fn channel_until(stop: Stop) -> (Self, mpsc::UnboundedReceiver<Timed>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (
            Self {
                sender,
                last_step: Arc::default(),
                stop,
                failing: Arc::new(AtomicU64::new(NOTHING_FAILED)),
                memory: Arc::default(),
            },
            receiver,
        )
    }

    /// Begins a phase.
    pub fn step(&self, name: impl Into<String>) -> Step {
        self.begin(None, name.into())
    }

    /// Says something that belongs to no step.
    pub fn notice(&self, text: impl Into<String>) {
        self.send(Event::Notice { text: text.into() });
    }

    /// Says how a check ended.
    pub fn checked(&self, checked: Checked) {
        self.send(Event::Checked(checked));
    }

    /// The command's last word.
    pub fn verdict(&self, text: impl Into<String>) {
        self.send(Event::Verdict { text: text.into() });
    }

    /// What failed so far was told: what fails next is a failure of its own.
    pub fn begin_anew(&self) {
        self.failing.store(NOTHING_FAILED, Ordering::Relaxed);
    }

    /// From now on everything is remembered, for whoever wants to write it down.
    pub fn remember(&self) {
        self.memory.get_or_init(Mutex::default);
    }

    /// What was sent since then, but for bytes on their way.
    pub fn remembered(&self) -> Vec<Timed> {
        self.memory
            .get()
            .map(|memory| {
                memory
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone()
            })
            .unwrap_or_default()
    }

    /// Borrows the terminal from the reporter, once that has written all that came before.
    pub async fn borrow_terminal(&self) -> Borrowed {
        let loan = Loan::default();
        self.send(Event::Lent {
            terminal: loan.clone(),
        });
        tokio::select! {
            () = loan.given.cancelled() => {}
            () = self.sender.closed() => {} // nobody writes to it
        }
        Borrowed(loan)
    }

    fn begin(&self, parent: Option<u64>, name: String) -> Step {
        let number = self.last_step.fetch_add(1, Ordering::Relaxed) + 1;
        self.send(Event::Started {
            step: number,
            parent,
            name,
        });
        Step {
            events: self.clone(),
            number,
            parent,
            ended: false,
        }
    }

    /// How a step ends that is dropped on the way out. An error is first seen where it arises, so the first step that is
    /// dropped failed, then its parent; whatever runs beside them is stopped because of it.
    fn gives_up(&self, step: u64, parent: Option<u64>) -> Outcome {
        let next = parent.unwrap_or(NO_PARENT);
        let failed = |now: u64| (now == NOTHING_FAILED || now == step).then_some(next);
        let order = Ordering::Relaxed;
        if !self.stop.is_requested() && self.failing.fetch_update(order, order, failed).is_ok() {
            Outcome::Failed
        } else {
            Outcome::Stopped
        }
    }

    fn send(&self, event: Event) {
        let timed = Timed {
            at: Instant::now(),
            event,
        };
        if let Some(memory) = self.memory.get()
            && !matches!(&timed.event, Event::Bytes { done, total, .. } if done != total)
        {
            let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
            memory.push(timed.clone());
        }
        // The receiver is gone only when the reporter has ended, and then nobody is left to tell.
        let _ = self.sender.send(timed);
    }
}

/// A step that has begun and not yet ended.
#[derive(Debug)]
pub struct Step {
    events: Events,
    number: u64,
    parent: Option<u64>,
    ended: bool,
}

impl Step {
    /// Begins a part of this step.
    pub fn child(&self, name: impl Into<String>) -> Self {
        self.events.begin(Some(self.number), name.into())
    }

    /// Says how many bytes were moved, of how many in all (0: not known).
    pub fn bytes(&self, done: u64, total: u64) {
        self.events.send(Event::Bytes {
            step: self.number,
            done,
            total,
        });
    }

    /// Says what is being waited for, or what was last seen.
    pub fn waiting(&self, text: impl Into<String>) {
        self.events.send(Event::Waiting {
            step: self.number,
            text: text.into(),
        });
    }

    /// Passes on a line of a child process.
    pub fn line(&self, text: impl Into<String>) {
        self.events.send(Event::Line {
            step: self.number,
            text: text.into(),
        });
    }

    /// Ends the step: something was changed.
    pub fn done(self, text: impl Into<String>) {
        self.end(Outcome::Done, text.into());
    }

    /// Ends the step: it failed, and that is no error of devenv's own.
    pub fn failed(self, text: impl Into<String>) {
        self.end(Outcome::Failed, text.into());
    }

    /// Ends the step: there was nothing to do.
    pub fn unchanged(self, text: impl Into<String>) {
        self.end(Outcome::Unchanged, text.into());
    }

    fn end(mut self, outcome: Outcome, text: String) {
        self.ended = true;
        self.events.send(Event::Finished {
            step: self.number,
            outcome,
            text,
        });
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.ended {
            self.events.send(Event::Finished {
                step: self.number,
                outcome: self.events.gives_up(self.number, self.parent),
                text: String::new(),
            });
        }
    }
}
