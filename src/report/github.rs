//! Plain lines as GitHub Actions shows them best: each phase a group that can be folded, what failed an annotation, and a
//! summary of the job with its tables.
//!
//! Groups can't be inside of each other, and phases run side by side: so the lines of a phase are held back until the groups of
//! those that began before it are closed. The first that still runs is open, and its lines come as they come.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use super::plain::Plain;
use super::state::State;
use super::text::{in_one_line, seconds, word};
use super::{Summary, story};
use crate::checks::{Checked, Verdict};
use crate::error::{Failure, Mistake, explain};
use crate::event::Event;

/// Turns events into lines.
#[derive(Debug)]
pub(super) struct GitHub {
    plain: Plain,
    quiet: bool,
    /// Phases whose groups aren't closed yet, in the order in which they began; the first is open.
    phases: Vec<Held>,
    /// What is to be seen also when groups are folded.
    between: Vec<String>,
}

#[derive(Debug)]
struct Held {
    step: u64,
    lines: Vec<String>,
    /// What is said below the group, once the phase has ended.
    end: Option<Vec<String>>,
}

impl GitHub {
    pub(super) fn new(quiet: bool) -> Self {
        Self {
            plain: Plain::new(quiet),
            quiet,
            phases: Vec::new(),
            between: Vec::new(),
        }
    }

    pub(super) fn event(&mut self, state: &State, at: Duration, event: &Event) -> Vec<String> {
        if let Event::Checked(checked) = event
            && checked.verdict == Verdict::Failed
        {
            self.between.push(failed(checked));
            return self.move_on(state);
        }
        let lines = self.plain.event(state, at, event);
        if self.quiet {
            return harmless(lines);
        }
        match event {
            Event::Started {
                step, parent: None, ..
            } => {
                self.phases.push(Held {
                    step: *step,
                    lines,
                    end: None,
                });
                match self.phases.len() {
                    1 => self.opened(state),
                    _ => Vec::new(),
                }
            }
            Event::Finished { step, .. } if self.phases.iter().any(|held| held.step == *step) => {
                for held in &mut self.phases {
                    if held.step == *step {
                        held.end = Some(lines.clone());
                    }
                }
                self.move_on(state)
            }
            Event::Started { step, .. }
            | Event::Finished { step, .. }
            | Event::Waiting { step, .. }
            | Event::Line { step, .. } => self.within(state, *step, lines),
            Event::Verdict { .. } => {
                let mut all = self.close(state);
                all.extend(harmless(lines));
                all
            }
            Event::Notice { .. } | Event::Checked(_) | Event::Bytes { .. } | Event::Lent { .. } => {
                self.between.extend(harmless(lines));
                self.move_on(state)
            }
        }
    }

    pub(super) fn tick(&mut self, state: &State, now: Duration) -> Vec<String> {
        let lines = self.plain.tick(state, now);
        lines
            .into_iter()
            .flat_map(|(step, line)| self.within(state, step, vec![line]))
            .collect()
    }

    /// Everything that was held back. Phases that still run go on without a group.
    pub(super) fn close(&mut self, state: &State) -> Vec<String> {
        let mut lines = Vec::new();
        for (index, held) in std::mem::take(&mut self.phases).into_iter().enumerate() {
            if index > 0 {
                lines.push(group(state, held.step));
            }
            lines.extend(held.lines);
            lines.push("::endgroup::".to_owned());
            lines.extend(held.end.into_iter().flatten());
        }
        lines.append(&mut self.between);
        lines
    }

    /// The lines of a step: at once where its phase is open or has no group.
    fn within(&mut self, state: &State, step: u64, lines: Vec<String>) -> Vec<String> {
        let phase = state.phase_of(step);
        let lines = harmless(lines);
        match self.phases.iter_mut().position(|held| held.step == phase) {
            None | Some(0) => lines,
            Some(index) => {
                self.phases[index].lines.extend(lines);
                Vec::new()
            }
        }
    }

    /// Opens the first group.
    fn opened(&mut self, state: &State) -> Vec<String> {
        let Some(held) = self.phases.first_mut() else {
            return Vec::new();
        };
        let mut lines = vec![group(state, held.step)];
        lines.append(&mut held.lines);
        lines
    }

    /// Closes the groups at the front whose phases are over, and opens the next.
    fn move_on(&mut self, state: &State) -> Vec<String> {
        let mut lines = Vec::new();
        while self.phases.first().is_some_and(|held| held.end.is_some()) {
            let held = self.phases.remove(0);
            lines.push("::endgroup::".to_owned());
            lines.extend(held.end.into_iter().flatten());
            lines.append(&mut self.between);
            lines.extend(self.opened(state));
        }
        if self.phases.is_empty() {
            lines.append(&mut self.between);
        }
        lines
    }
}

fn group(state: &State, step: u64) -> String {
    let name = state.get(step).map_or("", |known| known.name.as_str());
    format!("::group::{}", data(&in_one_line(name)))
}

/// Lines that come from programs and logs are never commands to the runner.
fn harmless(lines: Vec<String>) -> Vec<String> {
    let harmless = |line: &str| {
        let line = line.replace("##[", "## [");
        match anstream::adapter::strip_str(&line)
            .to_string()
            .trim_start()
            .starts_with("::")
        {
            true => format!("| {line}"),
            false => line,
        }
    };
    lines
        .iter()
        .map(|lines| {
            lines
                .split('\n')
                .map(harmless)
                .collect::<Vec<_>>()
                .join("\n")
        })
        .collect()
}

fn failed(checked: &Checked) -> String {
    let Checked {
        name, saw, proves, ..
    } = checked;
    format!(
        "::error title={}::{}",
        property(&format!("check failed: {name}")),
        data(&format!("{saw}\nit would prove: {proves}"))
    )
}

/// The error that ends the command, as annotations; those of files are shown in them.
pub(super) fn error(error: &anyhow::Error, workspace: Option<&Path>) -> Vec<String> {
    let mistakes = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(Failure::Input(mistakes)) => Some(mistakes),
        _ => None,
    });
    if let Some(mistakes) = mistakes {
        return mistakes.iter().map(|one| mistake(one, workspace)).collect();
    }
    let mut message = story(error);
    if let (_, Some(hint)) = explain(error) {
        let _ = write!(message, "\n\nhint: {}", super::text::clean(&hint));
    }
    vec![format!("::error title=devenv::{}", data(&message))]
}

fn mistake(mistake: &Mistake, workspace: Option<&Path>) -> String {
    let absolute = std::path::absolute(&mistake.file).unwrap_or_else(|_| mistake.file.clone());
    let file = workspace
        .and_then(|workspace| absolute.strip_prefix(workspace).ok())
        .unwrap_or(&mistake.file);
    let mut properties = format!("file={}", property(&file.display().to_string()));
    if let Some((line, column)) = mistake.place {
        let _ = write!(properties, ",line={line},col={column}");
    }
    let text = super::text::clean(&mistake.to_string());
    format!("::error {properties},title=devenv::{}", data(&text))
}

/// As the runner reads it back: its commands are lines.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// The job's summary: the last word, the phases and the checks as tables.
pub(super) fn summary(title: &str, summary: &Summary, error: Option<&anyhow::Error>) -> String {
    let mut text = format!("### {}\n\n", cell(title));
    if let Some(error) = error {
        let hint = explain(error).1.unwrap_or_default();
        text += &format!("**Failed:**\n\n{}\n\n", fenced(&story(error)));
        if !hint.is_empty() {
            text += &format!("{}\n\n", fenced(&super::text::clean(&hint)));
        }
    }
    if let Some(verdict) = &summary.verdict {
        text += &format!("**{}**\n\n", cell(verdict));
    }
    text += "| phase | start | end | took | |\n|---|--:|--:|--:|---|\n";
    for phase in &summary.phases {
        text += &format!(
            "| {} | {} | {} | {} | {} |\n",
            cell(&phase.name),
            seconds(phase.began),
            seconds(phase.ended),
            seconds(phase.ended.saturating_sub(phase.began)),
            phase.outcome.map_or("running", word)
        );
    }
    if summary.checked.is_empty() {
        return text + "\n";
    }
    text += "\n| check | | saw | took |\n|---|---|---|--:|\n";
    let order = |checked: &&Checked| match checked.verdict {
        Verdict::Failed => 0,
        Verdict::NotWired => 1,
        Verdict::Passed => 2,
        Verdict::Excluded => 3,
    };
    let mut checked: Vec<&Checked> = summary.checked.iter().collect();
    checked.sort_by_key(order);
    for checked in checked {
        text += &format!(
            "| {} | {} | {} | {:.1}s |\n",
            cell(&checked.name),
            match checked.verdict {
                Verdict::Failed => "❌ failed",
                Verdict::NotWired => "not wired",
                Verdict::Passed => "✅ passed",
                Verdict::Excluded => "excluded",
            },
            cell(&checked.saw),
            checked.seconds
        );
    }
    text + "\n"
}

/// Text in a cell of a table, and nothing but text.
fn cell(text: &str) -> String {
    let mut cell = String::new();
    for letter in in_one_line(text).chars() {
        match letter {
            '<' => cell += "&lt;",
            '>' => cell += "&gt;",
            '&' => cell += "&amp;",
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '~' => {
                cell.push('\\');
                cell.push(letter);
            }
            other => cell.push(other),
        }
    }
    cell
}

/// Text as it is, whatever it holds.
fn fenced(text: &str) -> String {
    let longest = text
        .split(|letter| letter != '`')
        .map(str::len)
        .max()
        .unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}text\n{text}\n{fence}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Outcome;
    use crate::report::Phase;

    fn check(events: Vec<Event>) -> String {
        let mut state = State::default();
        let mut github = GitHub::new(false);
        let mut lines = Vec::new();
        for (index, event) in events.iter().enumerate() {
            let at = Duration::from_millis(100 * index as u64);
            state.apply(at, event);
            lines.extend(github.event(&state, at, event));
        }
        lines.extend(github.close(&state));
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

    fn finished(step: u64, text: &str) -> Event {
        Event::Finished {
            step,
            outcome: Outcome::Done,
            text: text.to_owned(),
        }
    }

    fn checked(verdict: Verdict, name: &str, saw: &str) -> Checked {
        Checked {
            name: name.to_owned(),
            proves: "a, b: 100%".to_owned(),
            how: String::new(),
            verdict,
            saw: saw.to_owned(),
            seconds: 0.25,
        }
    }

    #[test]
    fn phases_that_run_side_by_side_are_groups_one_after_the_other() {
        let lines = check(vec![
            started(1, None, "cluster"),
            waiting(1, "kind create cluster"),
            started(2, None, "images"),
            started(3, Some(2), "import a"),
            Event::Notice {
                text: "look".to_owned(),
            },
            started(4, None, "argo cd"),
            finished(3, "imported"),
            finished(2, "2 loaded"),
            Event::Line {
                step: 1,
                text: "::set-output name=x::y ##[error]".to_owned(),
            },
            finished(1, "created"),
            waiting(4, "pods"),
            Event::Checked(checked(Verdict::Failed, "gateway a,b", "no\n100%")),
            finished(4, "installed"),
            Event::Notice {
                text: "::error::\n ::stop-commands::x".to_owned(),
            },
            Event::Verdict {
                text: "ready".to_owned(),
            },
        ]);
        insta::assert_snapshot!(lines, @r"
        ::group::cluster
        [  0.0s] cluster
        [  0.1s] cluster: kind create cluster
        [  0.8s] cluster | ::set-output name=x::y ## [error]
        ::endgroup::
        [  0.9s] cluster: created (0.9 s)
        [  0.4s] look
        ::group::images
        [  0.2s] images
        [  0.3s] images > import a
        [  0.6s] images > import a: imported (0.3 s)
        ::endgroup::
        [  0.7s] images: 2 loaded (0.5 s)
        ::group::argo cd
        [  0.5s] argo cd
        [  1.0s] argo cd: pods
        ::endgroup::
        [  1.2s] argo cd: installed (0.7 s)
        ::error title=check failed%3A gateway a%2Cb::no%0A100%25%0Ait would prove: a, b: 100%25
        [  1.3s] ::error::
        |  ::stop-commands::x

          phase     start     end    took  outcome
        ✓ cluster    0.0s    0.9s    0.9s  done       ██████████████████████████████
        ✓ images     0.2s    0.7s    0.5s  done             █████████████████
        ✓ argo cd    0.5s    1.2s    0.7s  done                       ████████████████████████

        ready
        ");
    }

    #[test]
    fn the_summary_of_a_job() {
        let phase = |name: &str, outcome| Phase {
            name: name.to_owned(),
            began: Duration::from_millis(100),
            ended: Duration::from_secs(4),
            outcome,
        };
        let all = Summary {
            verdict: Some("ready: 2 of 2 <b>".to_owned()),
            phases: vec![
                phase("store", Some(Outcome::Unchanged)),
                phase("a|b", Some(Outcome::Failed)),
            ],
            checked: vec![
                checked(Verdict::Passed, "name a.local", "127.0.0.1"),
                checked(Verdict::Failed, "mesh", "[no](x) `y`\n* z"),
            ],
            took: Duration::from_secs(5),
        };
        let error = anyhow::anyhow!("it has ``` in it").context("make it");
        insta::assert_snapshot!(summary("devenv up", &all, Some(&error)), @r"
        ### devenv up

        **Failed:**

        ````text
        make it: it has ``` in it
        ````

        **ready: 2 of 2 &lt;b&gt;**

        | phase | start | end | took | |
        |---|--:|--:|--:|---|
        | store | 0.1s | 4.0s | 3.9s | unchanged |
        | a\|b | 0.1s | 4.0s | 3.9s | failed |

        | check | | saw | took |
        |---|---|---|--:|
        | mesh | ❌ failed | \[no\](x) \`y\` \* z | 0.2s |
        | name a.local | ✅ passed | 127.0.0.1 | 0.2s |
        ");
    }

    #[test]
    fn errors_are_annotations() {
        let wrong = Failure::Input(vec![Mistake {
            file: "/work/team/cluster-configs/dev.yaml".into(),
            place: Some((4, 13)),
            message: "`node-image` is a list, 100%".to_owned(),
            source_line: None,
            help: None,
        }]);
        let usage = Failure::Usage {
            message: "no\nso".to_owned(),
            hint: "type this".to_owned(),
        };
        let lines = [
            error(&wrong.into(), Some(Path::new("/work/team"))),
            error(&usage.into(), None),
        ]
        .concat();
        insta::assert_snapshot!(lines.join("\n"), @r"
        ::error file=cluster-configs/dev.yaml,line=4,col=13,title=devenv::/work/team/cluster-configs/dev.yaml:4:13: `node-image` is a list, 100%25
        ::error title=devenv::no%0Aso%0A%0Ahint: type this
        ");
    }
}
