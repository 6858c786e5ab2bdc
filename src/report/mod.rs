//! The one consumer of events, and the only place that prints.
//!
//! stdout is data, stderr is talk. On a terminal a live tree shows what is running (`live`); elsewhere, and with `-v`, there
//! are plain lines (`plain`); with `-o json` there is one JSON object per event on stdout and nothing else (`json`). A
//! reader who went away (`devenv up | head`) is no reason to fail: what can't be written is left out.

mod github;
mod json;
mod live;
mod plain;
mod state;
mod table;
mod text;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style as Paint};
use anyhow::Context as _;
use clap::ColorChoice;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::checks::{self, Checked};
use crate::error::{Exit, Failure, explain};
use crate::event::{Event, Outcome, Timed};
use state::State;

pub use text::bytes;

/// What the output is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// What the user asked for on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags {
    /// `-o`
    pub format: Format,
    /// `-q`
    pub quiet: bool,
    /// How many `-v`.
    pub verbose: u8,
    /// `--color`
    pub color: ColorChoice,
    /// Whether the command itself shows all checks.
    pub shows_checks: bool,
}

/// How to print, decided once.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// For whom.
    pub format: Format,
    /// Nothing but notices, the verdict and errors.
    pub quiet: bool,
    /// From 1 on, lines of child processes too.
    pub verbose: u8,
    /// Whether stderr gets colours.
    pub color: bool,
    /// Where the size of the terminal comes from; without it, nothing is drawn that moves.
    pub terminal: Option<fn() -> Size>,
    /// Whether GitHub Actions reads it.
    pub github: bool,
    /// Whether the command itself shows all checks.
    pub shows_checks: bool,
}

/// The size of a terminal, in cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// What there was, once all is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// The command's last word, if it came to that.
    pub verdict: Option<String>,
    /// In the order in which they began.
    pub phases: Vec<Phase>,
    /// Every check that was told.
    pub checked: Vec<Checked>,
    /// From the reporter's start to its end.
    pub took: Duration,
}

/// A step without a parent. Phases run side by side, so their times overlap.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// When it began, since the reporter's start.
    pub began: Duration,
    /// When it ended.
    pub ended: Duration,
    /// How; `None` when it still runs.
    pub outcome: Option<Outcome>,
}

impl Style {
    /// Decides, for the process's own stderr and environment.
    pub fn from_process(flags: Flags) -> Self {
        Self::new(flags, io::stderr().is_terminal(), |name| {
            std::env::var_os(name)
        })
    }

    /// Decides. Something that moves needs a terminal that can move its cursor and a person in front of it, and isn't mixed
    /// with the many lines of `-v`.
    pub fn new(
        flags: Flags,
        stderr_is_terminal: bool,
        lookup: impl Fn(&str) -> Option<OsString>,
    ) -> Self {
        let is_set = |name| {
            lookup(name).is_some_and(|value| !value.is_empty() && value != "0" && value != "false")
        };
        let can_move = stderr_is_terminal && lookup("TERM").is_none_or(|term| term != "dumb");
        let color = match flags.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto if lookup("NO_COLOR").is_some_and(|value| !value.is_empty()) => false,
            ColorChoice::Auto => can_move || is_set("CLICOLOR_FORCE"),
        };
        let live = can_move
            && !is_set("CI")
            && !is_set("GITHUB_ACTIONS")
            && !flags.quiet
            && flags.verbose == 0
            && flags.format == Format::Text;
        Self {
            format: flags.format,
            quiet: flags.quiet,
            verbose: flags.verbose,
            color,
            terminal: live.then_some(size_of_stderr),
            github: is_set("GITHUB_ACTIONS") && flags.format == Format::Text,
            shows_checks: flags.shows_checks && flags.format == Format::Text,
        }
    }

    /// Whether the event is for these readers at all.
    fn wants(&self, event: &Event) -> bool {
        match event {
            Event::Notice { .. } | Event::Verdict { .. } => true,
            // For GitHub a failed one is an annotation besides.
            Event::Checked(checked) if self.shows_checks => {
                self.github && checked.verdict == checks::Verdict::Failed
            }
            Event::Checked(checked) => {
                self.format == Format::Json
                    || checked.verdict == checks::Verdict::Failed
                    || self.verbose > 0
            }
            Event::Line { .. } => self.verbose > 0 && !self.quiet,
            _ => !self.quiet,
        }
    }
}

fn painted(text: &str, color: bool) -> String {
    if color {
        return text.to_owned();
    }
    anstream::adapter::strip_str(text).to_string()
}

fn size_of_stderr() -> Size {
    match terminal_size::terminal_size_of(io::stderr()) {
        Some((width, height)) => Size {
            width: width.0.into(),
            height: height.0.into(),
        },
        None => Size {
            width: 80,
            height: 24,
        },
    }
}

/// Prints all events until their senders are gone. `main` waits for it before it prints an error, so that the error comes last.
pub async fn run(mut receiver: UnboundedReceiver<Timed>, style: Style) -> Summary {
    let start = Instant::now();
    let mut state = State::default();
    let mut printer = Printer::new(style);
    let mut tick = tokio::time::interval(printer.pace());
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            timed = receiver.recv() => {
                let Some(Timed { at, event }) = timed else { break };
                let at = at.saturating_duration_since(start);
                if let Event::Lent { terminal } = &event {
                    printer.clear(&state);
                    terminal.give();
                    terminal.returned().await;
                    continue;
                }
                state.apply(at, &event);
                if style.wants(&event) {
                    printer.event(&state, at, &event);
                }
            }
            _ = tick.tick() => printer.tick(&state, start.elapsed()),
        }
    }
    let took = start.elapsed();
    printer.tick(&state, took);
    printer.end(&state);
    state.summary(took)
}

/// The ways to print events.
enum Printer {
    Json(json::Json),
    Plain(plain::Plain, Style),
    GitHub(github::GitHub, Style),
    Live(live::Live<io::Stderr>),
}

impl Printer {
    fn new(style: Style) -> Self {
        match (style.format, style.terminal) {
            (Format::Json, _) => Self::Json(json::Json::default()),
            (Format::Text, Some(size)) => {
                Self::Live(live::Live::new(io::stderr(), size, style.color))
            }
            (Format::Text, None) if style.github => {
                Self::GitHub(github::GitHub::new(style.quiet), style)
            }
            (Format::Text, None) => Self::Plain(plain::Plain::new(style.quiet), style),
        }
    }

    fn pace(&self) -> Duration {
        match self {
            Self::Live(_) => Duration::from_millis(100),
            Self::Plain(..) | Self::GitHub(..) | Self::Json(_) => Duration::from_secs(1),
        }
    }

    fn event(&mut self, state: &State, at: Duration, event: &Event) {
        match self {
            Self::Json(json) => json
                .event(at, event)
                .iter()
                .for_each(|line| to_stdout(line)),
            Self::Plain(plain, style) => to_stderr(*style, &plain.event(state, at, event)),
            Self::GitHub(github, style) => to_stderr(*style, &github.event(state, at, event)),
            Self::Live(live) => live.event(state, at, event),
        }
    }

    /// Makes room for somebody else who writes to the terminal.
    fn clear(&mut self, state: &State) {
        match self {
            Self::Json(_) | Self::Plain(..) => {}
            Self::GitHub(github, style) => to_stderr(*style, &github.close(state)),
            Self::Live(live) => live.clear(),
        }
    }

    /// Nothing comes any more.
    fn end(&mut self, state: &State) {
        match self {
            Self::Json(_) | Self::Plain(..) | Self::Live(_) => {}
            Self::GitHub(github, style) => to_stderr(*style, &github.close(state)),
        }
    }

    fn tick(&mut self, state: &State, now: Duration) {
        match self {
            Self::Json(_) => {}
            Self::Plain(plain, style) => {
                let lines: Vec<String> = plain
                    .tick(state, now)
                    .into_iter()
                    .map(|(_, line)| line)
                    .collect();
                to_stderr(*style, &lines);
            }
            Self::GitHub(github, style) => to_stderr(*style, &github.tick(state, now)),
            Self::Live(live) => live.draw(state, now),
        }
    }
}

/// Events as JSON, an object a line, as `-o json` prints them.
pub fn lines(events: &[Timed]) -> String {
    json::lines(events)
}

/// The steps of these events as JSON, each with its parts, with when it began and ended.
pub fn timeline(events: &[Timed]) -> String {
    json::timeline(events)
}

/// Asks the person at the terminal, which must have been lent; anything but a yes is a no.
pub async fn ask(question: &str) -> anyhow::Result<bool> {
    let mut stderr = io::stderr().lock();
    let asked = write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush());
    drop(stderr);
    asked.context("ask at the terminal")?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    });
    let line = answer
        .await
        .context("read the answer")?
        .context("read the answer")?;
    Ok(matches!(line.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// A terminal on which one text is drawn over the one before.
#[derive(Debug)]
pub struct Screen(());

impl Screen {
    /// That of stdout, if it is one, can move its cursor, and a person sits in front of it.
    pub fn of_stdout(wanted: bool) -> Option<Self> {
        let term = std::env::var_os("TERM").unwrap_or_default();
        let is_ci = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty() && ci != "false");
        let can_move = wanted && io::stdout().is_terminal() && term != "dumb" && !is_ci;
        can_move.then_some(Self(()))
    }

    /// Draws the text from the upper left corner on, as much of it as fits.
    pub fn draw(&self, text: &str) {
        let (width, height) = match terminal_size::terminal_size_of(io::stdout()) {
            Some((width, height)) => (usize::from(width.0), usize::from(height.0)),
            None => (80, 24),
        };
        let mut drawn = "\u{1b}[H".to_owned();
        for line in text.lines().take(height.saturating_sub(1)) {
            let row = text::Row::default().with(text::PLAIN, line);
            drawn += &format!("{}\u{1b}[K\n", row.render(width));
        }
        drawn += "\u{1b}[J";
        let _ = io::stdout().lock().write_all(drawn.as_bytes());
    }
}

/// Appends to the summary of a job in GitHub Actions what the command did, if it is one that does something there.
pub fn job_summary(title: &str, summary: &Summary, failed: Option<&anyhow::Error>, style: Style) {
    let Some(file) = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|file| !file.is_empty()) else {
        return;
    };
    if !style.github || (summary.phases.is_empty() && failed.is_none()) {
        return;
    }
    let text = github::summary(title, summary, failed);
    let written = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&file)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    if let Err(error) = written {
        let file = PathBuf::from(file);
        let line = format!(
            "can't write the job's summary to {}: {error}",
            file.display()
        );
        to_stderr(style, &[line]);
    }
}

/// Prints the result of a command whose result is data. That nobody reads to its end is no failure; a full disk is one.
pub fn data(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let end = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    let written = write!(stdout, "{text}{end}").and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("can't write to stdout"),
    }
}

/// Prints the error that ends the command, and what to do about it. Returns the exit code that goes with it.
pub fn error(error: &anyhow::Error, style: Style) -> Exit {
    let (exit, _) = explain(error);
    match style.format {
        Format::Json => to_stdout(&json::error(error)),
        Format::Text if style.github => {
            let workspace = std::env::var_os("GITHUB_WORKSPACE").map(PathBuf::from);
            to_stderr(style, &github::error(error, workspace.as_deref()));
        }
        Format::Text => to_stderr(style, &[told(error)]),
    }
    exit
}

/// The error as people read it: the story once, from the outside in, then one hint.
fn told(error: &anyhow::Error) -> String {
    let red = Paint::new().bold().fg_color(Some(AnsiColor::Red.into()));
    let cyan = Paint::new().bold().fg_color(Some(AnsiColor::Cyan.into()));
    let head = |message: &str| format!("{red}error:{red:#} {message}");
    let mistakes = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(Failure::Input(mistakes)) => Some(mistakes),
        _ => None,
    });
    let mut paragraphs = match mistakes {
        Some(mistakes) => mistakes
            .iter()
            .map(|mistake| head(&text::clean(&mistake.to_string())))
            .collect(),
        None => vec![head(&story(error))],
    };
    if let (_, Some(hint)) = explain(error) {
        paragraphs.push(format!("{cyan}hint:{cyan:#} {}", text::clean(&hint)));
    }
    paragraphs.join("\n\n")
}

/// The causes in one line, as far as they fit in one; a cause that an outer one already tells is left out.
fn story(error: &anyhow::Error) -> String {
    let mut story = String::new();
    for cause in error.chain() {
        let cause = text::clean(&cause.to_string());
        if story.contains(cause.trim_end()) {
            continue;
        }
        if !story.is_empty() {
            story.push_str(": ");
        }
        story.push_str(cause.trim_end());
    }
    story
}

fn to_stdout(line: &str) {
    // Whoever read has gone; the work goes on.
    let _ = io::stdout()
        .lock()
        .write_all(format!("{line}\n").as_bytes());
}

fn to_stderr(style: Style, lines: &[String]) {
    if !lines.is_empty() {
        let _ = io::stderr()
            .lock()
            .write_all(format!("{}\n", painted(&lines.join("\n"), style.color)).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Mistake, Signal};

    const FLAGS: Flags = Flags {
        format: Format::Text,
        quiet: false,
        verbose: 0,
        color: ColorChoice::Auto,
        shows_checks: false,
    };

    fn check(flags: Flags, terminal: bool, variables: &[(&str, &str)], live: bool, color: bool) {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name);
        let style = Style::new(flags, terminal, |name| {
            find(name).map(|(_, value)| value.into())
        });
        assert_eq!(
            (style.terminal.is_some(), style.color),
            (live, color),
            "{flags:?} {terminal} {variables:?}"
        );
    }

    #[test]
    fn the_style_is_decided_once() {
        let color = |color| Flags { color, ..FLAGS };
        check(FLAGS, true, &[], true, true);
        check(FLAGS, false, &[], false, false);
        check(FLAGS, true, &[("TERM", "dumb")], false, false);
        check(FLAGS, true, &[("NO_COLOR", "1")], true, false);
        check(FLAGS, true, &[("NO_COLOR", "")], true, true);
        check(FLAGS, true, &[("CI", "true")], false, true);
        check(FLAGS, true, &[("CI", "false")], true, true);
        check(FLAGS, false, &[("CLICOLOR_FORCE", "1")], false, true);
        check(
            color(ColorChoice::Always),
            false,
            &[("NO_COLOR", "1")],
            false,
            true,
        );
        check(color(ColorChoice::Never), true, &[], true, false);
        check(
            Flags {
                verbose: 1,
                ..FLAGS
            },
            true,
            &[],
            false,
            true,
        );
        check(
            Flags {
                quiet: true,
                ..FLAGS
            },
            true,
            &[],
            false,
            true,
        );
        check(
            Flags {
                format: Format::Json,
                ..FLAGS
            },
            true,
            &[],
            false,
            true,
        );
    }

    fn plainly(error: &anyhow::Error) -> String {
        anstream::adapter::strip_str(&told(error)).to_string()
    }

    #[test]
    fn an_error_tells_its_story_once() {
        let failed = anyhow::Error::from(Failure::CommandFailed {
            command: "kind create cluster".to_owned(),
            status: "exit status 1".to_owned(),
            stderr_tail: "ERROR: no space\nleft on device".to_owned(),
            hint: None,
        })
        .context("can't create the cluster dev");
        insta::assert_snapshot!(plainly(&failed), @r"
        error: can't create the cluster dev: `kind create cluster` failed (exit status 1)
          | ERROR: no space
          | left on device

        hint: run the same command again with -v to see every line of its output
        ");

        let twice = anyhow::anyhow!("permission denied")
            .context("can't read a.yaml: permission denied")
            .context("can't load the environment");
        insta::assert_snapshot!(plainly(&twice), @"error: can't load the environment: can't read a.yaml: permission denied");

        let stopped = Failure::Stopped(Signal::Interrupt).into();
        insta::assert_snapshot!(plainly(&stopped), @r"
        error: interrupted

        hint: what was made is still there: `devenv up` resumes, `devenv down` removes it
        ");
    }

    #[test]
    fn each_mistake_is_an_error_of_its_own() {
        let mistake = |file: &str, help: Option<&str>| Mistake {
            file: PathBuf::from(file),
            place: Some((2, 1)),
            message: "unknown key `wvae`".to_owned(),
            source_line: Some("wvae: 1".to_owned()),
            help: help.map(str::to_owned),
        };
        let input = Failure::Input(vec![
            mistake("a.yaml", Some("did you mean `wave`?")),
            mistake("b.yaml", None),
        ]);
        insta::assert_snapshot!(plainly(&input.into()), @r"
        error: a.yaml:2:1: unknown key `wvae`
          |
        2 | wvae: 1
          | ^
        hint: did you mean `wave`?

        error: b.yaml:2:1: unknown key `wvae`
          |
        2 | wvae: 1
          | ^
        ");
    }

    #[test]
    fn colours_and_control_characters_in_an_error_are_ours_only() {
        let error = anyhow::anyhow!("bad \u{1b}[31mthing\u{7}");
        assert_eq!(told(&error), "\u{1b}[1m\u{1b}[31merror:\u{1b}[0m bad thing");
    }
}
