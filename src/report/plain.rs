//! Lines for where nothing can move: logs, pipes, CI, and `-v`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::state::{Known, State};
use super::table::table;
use super::text::{BOLD, DIM, bytes, clean, in_one_line, seconds, word};
use crate::checks::{Checked, Verdict};
use crate::event::{Event, Outcome};

/// A step tells at most this often what it waits for.
const PAUSE: Duration = Duration::from_secs(5);
/// There is no terminal to ask; this is what most logs show without wrapping.
const WIDTH: usize = 100;

/// Turns events into lines.
#[derive(Debug)]
pub(super) struct Plain {
    quiet: bool,
    /// What each running step last said about its waiting, and when.
    told: BTreeMap<u64, (Duration, String)>,
}

impl Plain {
    pub(super) fn new(quiet: bool) -> Self {
        Self {
            quiet,
            told: BTreeMap::new(),
        }
    }

    /// The lines for an event that the state already knows.
    pub(super) fn event(&mut self, state: &State, at: Duration, event: &Event) -> Vec<String> {
        match event {
            Event::Started { step, .. } => vec![self.line(at, &state.path(*step))],
            Event::Waiting { step, .. } => self.waiting(state, at, *step).into_iter().collect(),
            Event::Line { step, text } => {
                vec![self.line(at, &format!("{} | {text}", state.path(*step)))]
            }
            Event::Finished { step, .. } => {
                self.told.remove(step);
                let end = state.get(*step).and_then(end);
                end.map(|end| self.line(at, &format!("{}: {end}", state.path(*step))))
                    .into_iter()
                    .collect()
            }
            Event::Checked(checked) => self.checked(at, checked),
            Event::Notice { text } if self.quiet => vec![clean(text)],
            Event::Notice { text } => self.lines(at, text),
            Event::Verdict { text } => self.verdict(state, at, text),
            Event::Bytes { .. } | Event::Lent { .. } => Vec::new(),
        }
    }

    /// The lines for what was held back and whose time has come, with the steps they are about.
    pub(super) fn tick(&mut self, state: &State, now: Duration) -> Vec<(u64, String)> {
        let held: Vec<_> = self.told.keys().copied().collect();
        held.into_iter()
            .filter_map(|step| Some((step, self.waiting(state, now, step)?)))
            .collect()
    }

    fn waiting(&mut self, state: &State, now: Duration, step: u64) -> Option<String> {
        let text = &state.get(step)?.waiting;
        let is_due = match self.told.get(&step) {
            Some((at, told)) => told != text && now.saturating_sub(*at) >= PAUSE,
            None => true,
        };
        if !is_due || text.is_empty() {
            return None;
        }
        self.told.insert(step, (now, text.clone()));
        Some(self.line(now, &format!("{}: {text}", state.path(step))))
    }

    /// A check that failed says besides what it would have proved.
    fn checked(&self, at: Duration, checked: &Checked) -> Vec<String> {
        match checked.verdict {
            Verdict::Failed if self.quiet => vec![clean(&failed(checked))],
            Verdict::Failed => vec![self.line(at, &failed(checked))],
            verdict => vec![self.line(
                at,
                &format!("{}: {}, {}", checked.name, said(verdict), checked.saw),
            )],
        }
    }

    fn verdict(&self, state: &State, at: Duration, text: &str) -> Vec<String> {
        let verdict = format!("{BOLD}{}{BOLD:#}", clean(text));
        let phases = state.phases(at);
        if self.quiet || phases.is_empty() {
            return vec![verdict];
        }
        let rows = table(&phases, WIDTH);
        let rows = rows
            .iter()
            .map(|row| row.render(WIDTH).trim_end().to_owned());
        [String::new()]
            .into_iter()
            .chain(rows)
            .chain([String::new(), verdict])
            .collect()
    }

    /// A text of several lines, such as those of a file; only the first gets the time.
    fn lines(&self, at: Duration, text: &str) -> Vec<String> {
        let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
        let rest = rest.lines().map(clean);
        [self.line(at, first)].into_iter().chain(rest).collect()
    }

    fn line(&self, at: Duration, text: &str) -> String {
        format!("{DIM}[{:>6}]{DIM:#} {}", seconds(at), in_one_line(text))
    }
}

/// "check failed: gateway a.local: answered 503 (it would prove: https://a.local opens)"
pub(super) fn failed(checked: &Checked) -> String {
    format!(
        "check failed: {}: {} (it would prove: {})",
        checked.name, checked.saw, checked.proves
    )
}

fn said(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "failed",
        Verdict::NotWired => "not wired",
        Verdict::Excluded => "excluded",
    }
}

/// "created (11.2 s)", "unchanged (0.1 s)", "imported (2.3 s, 120 MB)"
fn end(known: &Known) -> Option<String> {
    let ended = known.ended.as_ref()?;
    let text = match (ended.outcome, ended.text.as_str()) {
        (outcome, "") => word(outcome).to_owned(),
        (Outcome::Done, text) => text.to_owned(),
        (outcome, text) => format!("{}, {text}", word(outcome)),
    };
    let size = known
        .bytes
        .as_ref()
        .map(|moved| format!(", {}", bytes(moved.done)));
    Some(format!(
        "{text} ({:.1} s{})",
        known.took(ended.at).as_secs_f64(),
        size.unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(quiet: bool, events: Vec<(u64, Event)>) -> String {
        let mut state = State::default();
        let mut plain = Plain::new(quiet);
        let mut lines = Vec::new();
        let mut now = Duration::ZERO;
        for (at, event) in events {
            let at = Duration::from_millis(at);
            while now + Duration::from_secs(1) <= at {
                now += Duration::from_secs(1);
                lines.extend(plain.tick(&state, now).into_iter().map(|(_, line)| line));
            }
            state.apply(at, &event);
            lines.extend(plain.event(&state, at, &event));
        }
        anstream::adapter::strip_str(&lines.join("\n")).to_string()
    }

    fn started(step: u64, parent: Option<u64>, name: &str) -> Event {
        Event::Started {
            step,
            parent,
            name: name.to_owned(),
        }
    }

    fn waiting(step: u64, text: &str) -> Event {
        Event::Waiting {
            step,
            text: text.to_owned(),
        }
    }

    fn finished(step: u64, outcome: Outcome, text: &str) -> Event {
        Event::Finished {
            step,
            outcome,
            text: text.to_owned(),
        }
    }

    #[test]
    fn starts_ends_and_waits() {
        let lines = check(
            false,
            vec![
                (0, started(1, None, "store")),
                (10, started(2, None, "cluster")),
                (20, started(3, Some(1), "fetch argocd:3.2.11")),
                (100, waiting(2, "Preparing nodes")),
                (
                    200,
                    Event::Bytes {
                        step: 3,
                        done: 50_000_000,
                        total: 120_000_000,
                    },
                ),
                (1_000, waiting(2, "Writing configuration")),
                (
                    1_500,
                    Event::Line {
                        step: 2,
                        text: " ✓ Writing configuration".to_owned(),
                    },
                ),
                (2_000, waiting(2, "Starting control-plane\nfor real")),
                (
                    2_300,
                    Event::Bytes {
                        step: 3,
                        done: 120_000_000,
                        total: 120_000_000,
                    },
                ),
                (2_400, finished(3, Outcome::Done, "fetched")),
                (2_500, finished(1, Outcome::Unchanged, "")),
                (
                    3_000,
                    Event::Notice {
                        text: "no image registry answers".to_owned(),
                    },
                ),
                (11_210, finished(2, Outcome::Done, "created")),
                (11_300, started(4, None, "gitops")),
                (12_000, finished(4, Outcome::Failed, "")),
                (
                    12_100,
                    Event::Verdict {
                        text: "ready: 2 of 2 applications healthy".to_owned(),
                    },
                ),
            ],
        );
        insta::assert_snapshot!(lines, @r"
        [  0.0s] store
        [  0.0s] cluster
        [  0.0s] store > fetch argocd:3.2.11
        [  0.1s] cluster: Preparing nodes
        [  1.5s] cluster |  ✓ Writing configuration
        [  2.4s] store > fetch argocd:3.2.11: fetched (2.4 s, 120 MB)
        [  2.5s] store: unchanged (2.5 s)
        [  3.0s] no image registry answers
        [  6.0s] cluster: Starting control-plane for real
        [ 11.2s] cluster: created (11.2 s)
        [ 11.3s] gitops
        [ 12.0s] gitops: failed (0.7 s)

          phase     start     end    took  outcome
        = store      0.0s    2.5s    2.5s  unchanged  ████████
        ✓ cluster    0.0s   11.2s   11.2s  done       █████████████████████████████████████
        ✗ gitops    11.3s   12.0s    0.7s  failed                                          ███

        ready: 2 of 2 applications healthy
        ");
    }

    #[test]
    fn quiet_is_notices_and_the_verdict() {
        let lines = check(
            true,
            vec![
                (
                    0,
                    Event::Notice {
                        text: "no image registry answers".to_owned(),
                    },
                ),
                (
                    9,
                    Event::Verdict {
                        text: "ready".to_owned(),
                    },
                ),
            ],
        );
        insta::assert_snapshot!(lines, @r"
        no image registry answers
        ready
        ");
    }
}
