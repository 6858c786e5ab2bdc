//! One JSON object per line.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::state::State;
use super::story;
use super::text::clean;
use crate::error::explain;
use crate::event::{Event, Outcome, Timed};

#[derive(Serialize)]
struct Line<'a> {
    /// Seconds since the start, to the millisecond.
    at: f64,
    #[serde(flatten)]
    event: &'a Event,
}

#[derive(Serialize)]
struct Error {
    event: &'static str,
    message: String,
    hint: Option<String>,
    exit: u8,
}

/// A step tells at most this often how many bytes it moved, but always when it moved the last.
const PAUSE: Duration = Duration::from_millis(100);

/// Turns events into lines.
#[derive(Debug, Default)]
pub(super) struct Json {
    /// When each step last told how many bytes it moved.
    told: BTreeMap<u64, Duration>,
}

impl Json {
    pub(super) fn event(&mut self, at: Duration, event: &Event) -> Option<String> {
        if let Event::Bytes { step, done, total } = event {
            let is_early = self
                .told
                .get(step)
                .is_some_and(|told| at.saturating_sub(*told) < PAUSE);
            if is_early && done != total {
                return None;
            }
            self.told.insert(*step, at);
        }
        Some(line(at, event))
    }
}

fn line(at: Duration, event: &Event) -> String {
    encoded(&Line {
        at: in_seconds(at),
        event,
    })
}

pub(super) fn lines(events: &[Timed]) -> String {
    since_the_first(events)
        .map(|(at, event)| line(at, event) + "\n")
        .collect()
}

fn since_the_first(events: &[Timed]) -> impl Iterator<Item = (Duration, &Event)> {
    let first = events.first().map(|timed| timed.at);
    events.iter().map(move |timed| {
        let at = first.map(|first| timed.at.saturating_duration_since(first));
        (at.unwrap_or_default(), &timed.event)
    })
}

/// A step of the timeline; times are seconds.
#[derive(Serialize)]
struct Part<'a> {
    name: &'a str,
    began: f64,
    ended: Option<f64>,
    outcome: Option<Outcome>,
    text: &'a str,
    parts: Vec<Self>,
}

pub(super) fn timeline(events: &[Timed]) -> String {
    let mut state = State::default();
    for (at, event) in since_the_first(events) {
        state.apply(at, event);
    }
    serde_json::to_string_pretty(&parts(&state, None)).expect("strings and numbers are always JSON")
}

fn parts(state: &State, parent: Option<u64>) -> Vec<Part<'_>> {
    state
        .parts(parent)
        .map(|(step, known)| Part {
            name: &known.name,
            began: in_seconds(known.began),
            ended: known.ended.as_ref().map(|ended| in_seconds(ended.at)),
            outcome: known.ended.as_ref().map(|ended| ended.outcome),
            text: known
                .ended
                .as_ref()
                .map_or(&known.waiting, |ended| &ended.text),
            parts: parts(state, Some(step)),
        })
        .collect()
}

fn in_seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

pub(super) fn error(error: &anyhow::Error) -> String {
    let (exit, hint) = explain(error);
    encoded(&Error {
        event: "error",
        message: story(error),
        hint: hint.map(|hint| clean(&hint)),
        exit: exit.code(),
    })
}

fn encoded(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings and numbers are always JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Failure;

    #[test]
    fn one_object_per_event() {
        let lines = [
            Event::Started {
                step: 2,
                parent: Some(1),
                name: "import \"x\"".to_owned(),
            },
            Event::Started {
                step: 3,
                parent: None,
                name: "cluster".to_owned(),
            },
            Event::Bytes {
                step: 2,
                done: 5,
                total: 10,
            },
            Event::Waiting {
                step: 2,
                text: "a\nb".to_owned(),
            },
            Event::Line {
                step: 2,
                text: "a".to_owned(),
            },
            Event::Finished {
                step: 2,
                outcome: Outcome::Unchanged,
                text: String::new(),
            },
            Event::Notice {
                text: "n".to_owned(),
            },
            Event::Verdict {
                text: "ready".to_owned(),
            },
        ]
        .map(|event| line(Duration::from_micros(1_234_567), &event));
        insta::assert_snapshot!(lines.join("\n"), @r#"
        {"at":1.235,"event":"started","step":2,"parent":1,"name":"import \"x\""}
        {"at":1.235,"event":"started","step":3,"parent":null,"name":"cluster"}
        {"at":1.235,"event":"bytes","step":2,"done":5,"total":10}
        {"at":1.235,"event":"waiting","step":2,"text":"a\nb"}
        {"at":1.235,"event":"line","step":2,"text":"a"}
        {"at":1.235,"event":"finished","step":2,"outcome":"unchanged","text":""}
        {"at":1.235,"event":"notice","text":"n"}
        {"at":1.235,"event":"verdict","text":"ready"}
        "#);
    }

    #[test]
    fn bytes_are_told_now_and_then() {
        let mut json = Json::default();
        let mut told = |at, done| {
            let event = Event::Bytes {
                step: 1,
                done,
                total: 9,
            };
            json.event(Duration::from_millis(at), &event).is_some()
        };
        let all = [
            told(0, 0),
            told(50, 1),
            told(99, 2),
            told(100, 3),
            told(101, 9),
        ];
        assert_eq!(all, [true, false, false, true, true]);
    }

    #[test]
    fn an_error_is_an_object_too() {
        let failure = anyhow::Error::from(Failure::ToolMissing {
            tool: "kind",
            hint: "run scripts/up".to_owned(),
        });
        insta::assert_snapshot!(error(&failure.context("can't create the cluster dev")), @r#"{"event":"error","message":"can't create the cluster dev: kind is not on PATH","hint":"run scripts/up","exit":1}"#);
    }
}
