//! What is known about the steps so far. All times are since the reporter's start.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{Phase, Summary};
use crate::checks::Checked;
use crate::event::{Event, Outcome};

/// The rate of bytes is that of the last seconds.
const WINDOW: Duration = Duration::from_secs(3);
/// Closer samples tell nothing about the rate.
const SAMPLE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct State {
    steps: BTreeMap<u64, Known>,
    verdict: Option<String>,
    checked: Vec<Checked>,
}

#[derive(Debug)]
pub(super) struct Known {
    pub(super) parent: Option<u64>,
    pub(super) name: String,
    pub(super) began: Duration,
    pub(super) ended: Option<Ended>,
    pub(super) bytes: Option<Bytes>,
    pub(super) waiting: String,
}

#[derive(Debug)]
pub(super) struct Ended {
    pub(super) at: Duration,
    pub(super) outcome: Outcome,
    pub(super) text: String,
}

#[derive(Debug, Default)]
pub(super) struct Bytes {
    pub(super) done: u64,
    pub(super) total: u64,
    samples: VecDeque<(Duration, u64)>,
}

impl State {
    pub(super) fn apply(&mut self, at: Duration, event: &Event) {
        match event {
            Event::Started { step, parent, name } => {
                let known = Known {
                    parent: *parent,
                    name: name.clone(),
                    began: at,
                    ended: None,
                    bytes: None,
                    waiting: String::new(),
                };
                self.steps.insert(*step, known);
            }
            Event::Bytes { step, done, total } => {
                if let Some(known) = self.steps.get_mut(step) {
                    known.bytes.get_or_insert_default().moved(at, *done, *total);
                }
            }
            Event::Waiting { step, text } => {
                if let Some(known) = self.steps.get_mut(step) {
                    known.waiting.clone_from(text);
                }
            }
            Event::Finished {
                step,
                outcome,
                text,
            } => {
                if let Some(known) = self.steps.get_mut(step) {
                    known.ended = Some(Ended {
                        at,
                        outcome: *outcome,
                        text: text.clone(),
                    });
                }
            }
            Event::Verdict { text } => self.verdict = Some(text.clone()),
            Event::Checked(checked) => self.checked.push(checked.clone()),
            Event::Line { .. } | Event::Notice { .. } | Event::Lent { .. } => {}
        }
    }

    pub(super) fn get(&self, step: u64) -> Option<&Known> {
        self.steps.get(&step)
    }

    /// The parts of a step, or the phases, in the order in which they began.
    pub(super) fn parts(&self, parent: Option<u64>) -> impl Iterator<Item = (u64, &Known)> {
        self.steps
            .iter()
            .filter(move |(_, known)| known.parent == parent)
            .map(|(step, known)| (*step, known))
    }

    /// "store > import argocd:3.2.11"
    pub(super) fn path(&self, step: u64) -> String {
        let mut names = Vec::new();
        let mut next = Some(step);
        while let Some(known) = next.and_then(|step| self.get(step)) {
            names.push(known.name.as_str());
            next = known.parent;
        }
        names.reverse();
        names.join(" > ")
    }

    /// The step without a parent that this one is a part of, or is.
    pub(super) fn phase_of(&self, step: u64) -> u64 {
        let mut phase = step;
        while let Some(parent) = self.get(phase).and_then(|known| known.parent) {
            phase = parent;
        }
        phase
    }

    pub(super) fn phases(&self, now: Duration) -> Vec<Phase> {
        self.parts(None)
            .map(|(_, known)| Phase {
                name: known.name.clone(),
                began: known.began,
                ended: known.ended.as_ref().map_or(now, |ended| ended.at),
                outcome: known.ended.as_ref().map(|ended| ended.outcome),
            })
            .collect()
    }

    pub(super) fn summary(&self, now: Duration) -> Summary {
        Summary {
            verdict: self.verdict.clone(),
            phases: self.phases(now),
            checked: self.checked.clone(),
            took: now,
        }
    }
}

impl Known {
    pub(super) fn took(&self, now: Duration) -> Duration {
        let end = self.ended.as_ref().map_or(now, |ended| ended.at);
        end.saturating_sub(self.began)
    }
}

impl Bytes {
    fn moved(&mut self, at: Duration, done: u64, total: u64) {
        (self.done, self.total) = (done, total);
        let is_new = self
            .samples
            .back()
            .is_none_or(|(last, _)| at.saturating_sub(*last) >= SAMPLE);
        if is_new {
            self.samples.push_back((at, done));
        }
        while self.samples.len() > 2 && self.samples[1].0 + WINDOW < at {
            self.samples.pop_front();
        }
    }

    /// Bytes per second, as soon as there is something to tell it from.
    pub(super) fn rate(&self, now: Duration) -> Option<u64> {
        let (since, before) = self.samples.front().filter(|_| self.samples.len() > 1)?;
        let time = now.saturating_sub(*since).as_millis().max(1);
        let rate = u128::from(self.done.saturating_sub(*before)) * 1000 / time;
        u64::try_from(rate).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut bytes = Bytes::default();
        for tenth in 0..100 {
            bytes.moved(Duration::from_millis(tenth * 100), tenth * 1_000_000, 0);
        }
        let rate = bytes.rate(Duration::from_millis(9_900));
        assert_eq!(rate, Some(10_000_000));
        assert!(
            bytes.rate(Duration::from_secs(60)) < Some(1_000_000),
            "it has stalled"
        );
        assert!(bytes.samples.len() < 40);
    }
}
