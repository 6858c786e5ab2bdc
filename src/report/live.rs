//! The live tree on a terminal. What is over scrolls up and stays; below it, a few rows show what is running and are drawn
//! again ten times a second, over themselves, so that nothing flickers.
//!
//! The cursor is never hidden and always rests at the start of the row below: whatever ends devenv, the shell's next prompt
//! stands where it should. Rows are cut, never wrapped, because a wrapped row would be two when the cursor goes back up.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use super::plain;
use super::state::{Bytes, Known, State};
use super::table::table;
use super::text::{self, BOLD, CYAN, DIM, PLAIN, Row, seconds, symbol, width};
use super::{Size, painted};
use crate::checks::Verdict;
use crate::event::{Event, Outcome};

const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
/// Symbol, time, and the spaces around them.
const MARGIN: usize = 10;
/// Below so many columns, progress is a percentage and nothing more.
const NARROW: usize = 60;
/// From so many on, there is room for the amounts and a longer bar.
const WIDE: usize = 90;

/// The rows for what is running: at most one less than the terminal has. Pure.
pub(super) fn frame(state: &State, now: Duration, size: Size) -> Vec<Row> {
    let mut entries = Vec::new();
    collect(state, None, 0, &mut entries);
    let limit = size.height.saturating_sub(1).max(1);
    let hidden = shrink(&mut entries, limit);
    let mut rows: Vec<_> = entries
        .iter()
        .map(|entry| row(entry.known, entry.depth, now, size.width))
        .collect();
    if hidden > 0 {
        let note = format!("{:MARGIN$}… and {hidden} more", "");
        rows.push(Row::default().with(DIM, &note));
    }
    rows
}

struct Entry<'a> {
    known: &'a Known,
    depth: usize,
}

/// Running steps, each followed by its parts; what is over is one row, without its parts, and a phase that is over has
/// scrolled away already.
fn collect<'a>(state: &'a State, parent: Option<u64>, depth: usize, entries: &mut Vec<Entry<'a>>) {
    for (step, known) in state.parts(parent) {
        if known.ended.is_none() {
            entries.push(Entry { known, depth });
            collect(state, Some(step), depth + 1, entries);
        } else if depth > 0 {
            entries.push(Entry { known, depth });
        }
    }
}

/// Takes away what interests least until all fits: first what is over, from the oldest on, then the deepest of what is running,
/// from the youngest on. Says how much; a row is left for saying it.
fn shrink(entries: &mut Vec<Entry<'_>>, limit: usize) -> usize {
    let before = entries.len();
    if before <= limit {
        return 0;
    }
    let room = (limit - 1).max(1);
    while entries.len() > room {
        let oldest_over = entries.iter().position(|entry| entry.known.ended.is_some());
        let deepest = || (0..entries.len()).max_by_key(|index| (entries[*index].depth, *index));
        let Some(index) = oldest_over.or_else(deepest) else {
            break;
        };
        entries.remove(index);
    }
    if limit == 1 {
        0
    } else {
        before - entries.len()
    }
}

/// `⠹  12.3s    import argocd:3.2.11  ━━━━━━──── 45%  170 MB of 375 MB  81 MB/s`
fn row(known: &Known, depth: usize, now: Duration, columns: usize) -> Row {
    let (paint, sign) = match &known.ended {
        Some(ended) => symbol(ended.outcome),
        None => (CYAN, SPINNER[(now.as_millis() / 100 % 10) as usize]),
    };
    let indent = " ".repeat(depth * 2);
    let time = format!(" {:>6}  {indent}", seconds(known.took(now)));
    let progress = match (&known.bytes, &known.ended) {
        (Some(bytes), None) => progress(bytes, now, columns),
        (Some(bytes), Some(_)) => text::bytes(bytes.done),
        (None, _) => String::new(),
    };
    let beside = match width(&progress) {
        0 => 0,
        wide => wide + 2,
    };
    let room = columns.saturating_sub(MARGIN + indent.len() + beside);
    let name = text::shortened(&known.name, room);
    let detail = match &known.ended {
        Some(ended) if ended.text.is_empty() && ended.outcome != Outcome::Done => {
            text::word(ended.outcome)
        }
        Some(ended) => &ended.text,
        None => &known.waiting,
    };
    let mut row = Row::default()
        .with(paint, sign)
        .with(DIM, &time)
        .with(if depth == 0 { BOLD } else { PLAIN }, &name);
    for (paint, part) in [(CYAN, progress.as_str()), (DIM, detail)] {
        if !part.is_empty() {
            row = row.with(PLAIN, "  ").with(paint, part);
        }
    }
    row
}

fn progress(bytes: &Bytes, now: Duration, columns: usize) -> String {
    let done = text::bytes(bytes.done);
    let percent = bytes
        .done
        .saturating_mul(100)
        .checked_div(bytes.total)
        .map(|percent| percent.min(100));
    if columns < NARROW {
        return percent.map_or(done, |percent| format!("{percent:>3}%"));
    }
    let rate = bytes
        .rate(now)
        .map(|rate| format!("  {}/s", text::bytes(rate)))
        .unwrap_or_default();
    let Some(percent) = percent else {
        return done + &rate;
    };
    let cells: usize = if columns < WIDE { 10 } else { 20 };
    let filled = cells * percent as usize / 100;
    let bar = "━".repeat(filled) + &"─".repeat(cells - filled);
    let amount = match columns {
        WIDE.. => format!("  {done} of {}", text::bytes(bytes.total)),
        _ => String::new(),
    };
    format!("{bar} {percent:>3}%{amount}{rate}")
}

/// What scrolls up and stays: phases that are over, with what failed in them; notices; the table and the verdict. Pure.
fn lasting(state: &State, at: Duration, event: &Event, columns: usize) -> Vec<String> {
    let mut rows = Vec::new();
    match event {
        Event::Finished { step, .. } => {
            if let Some(known) = state.get(*step).filter(|known| known.parent.is_none()) {
                rows.push(row(known, 0, at, columns));
                failed(state, *step, 1, at, columns, &mut rows);
            }
        }
        Event::Checked(checked) if checked.verdict == Verdict::Failed => {
            return vec![text::clean(&plain::failed(checked))];
        }
        Event::Notice { text } => return vec![text::clean(text)], // whole: the terminal may wrap what isn't drawn again
        Event::Verdict { text } => {
            let verdict = format!("{BOLD}{}{BOLD:#}", text::clean(text));
            let phases = state.phases(at);
            if phases.is_empty() {
                return vec![verdict];
            }
            let rows = table(&phases, columns);
            let rows = rows.iter().map(|row| row.render(columns));
            return [String::new()]
                .into_iter()
                .chain(rows)
                .chain([String::new(), verdict])
                .collect();
        }
        _ => {}
    }
    rows.iter().map(|row| row.render(columns)).collect()
}

fn failed(
    state: &State,
    step: u64,
    depth: usize,
    at: Duration,
    columns: usize,
    rows: &mut Vec<Row>,
) {
    for (part, known) in state.parts(Some(step)) {
        if known
            .ended
            .as_ref()
            .is_some_and(|ended| ended.outcome == Outcome::Failed)
        {
            rows.push(row(known, depth, at, columns));
            failed(state, part, depth + 1, at, columns, rows);
        }
    }
}

/// Draws frames onto a terminal.
pub(super) struct Live<Out> {
    out: Out,
    size: fn() -> Size,
    color: bool,
    /// What is to scroll up with the next frame.
    lasting: Vec<String>,
    /// The widths of the rows that are on the screen.
    drawn: Vec<usize>,
}

impl<Out: io::Write> Live<Out> {
    pub(super) fn new(out: Out, size: fn() -> Size, color: bool) -> Self {
        Self {
            out,
            size,
            color,
            lasting: Vec::new(),
            drawn: Vec::new(),
        }
    }

    pub(super) fn event(&mut self, state: &State, at: Duration, event: &Event) {
        let columns = usable((self.size)()).width;
        self.lasting.extend(lasting(state, at, event, columns));
    }

    pub(super) fn draw(&mut self, state: &State, now: Duration) {
        let size = usable((self.size)());
        self.put(&frame(state, now, size), size);
    }

    /// Leaves nothing on the terminal but what lasts.
    pub(super) fn clear(&mut self) {
        self.put(&[], usable((self.size)()));
    }

    fn put(&mut self, rows: &[Row], size: Size) {
        if rows.is_empty() && self.drawn.is_empty() && self.lasting.is_empty() {
            return;
        }
        let mut text = String::from("\r");
        // A terminal that was made narrower has wrapped the rows that are on it.
        let up: usize = self
            .drawn
            .iter()
            .map(|width| width.div_ceil(size.width + 1).max(1))
            .sum();
        if up > 0 {
            let _ = write!(text, "\x1b[{up}A");
        }
        // Carriages are returned by hand: a child may have changed the terminal's settings.
        if !self.lasting.is_empty() {
            text.push_str("\x1b[J"); // these may be wrapped, and then clear no row behind them by themselves
        }
        for line in self.lasting.drain(..) {
            let _ = write!(
                text,
                "{}\r\n",
                painted(&line, self.color).replace('\n', "\r\n")
            );
        }
        for row in rows {
            let _ = write!(
                text,
                "{}\x1b[K\r\n",
                painted(&row.render(size.width), self.color)
            );
        }
        text.push_str("\x1b[J");
        self.drawn = rows.iter().map(|row| row.width().min(size.width)).collect();
        let _ = self
            .out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush());
    }
}

/// The last column stays empty: after writing there, terminals differ in where the cursor is.
fn usable(size: Size) -> Size {
    Size {
        width: size.width.saturating_sub(1).max(1),
        height: size.height,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy() -> State {
        let mut state = State::default();
        let mut at = |milliseconds, event| state.apply(Duration::from_millis(milliseconds), &event);
        let started = |step, parent, name: &str| Event::Started {
            step,
            parent,
            name: name.to_owned(),
        };
        let finished = |step, outcome, text: &str| Event::Finished {
            step,
            outcome,
            text: text.to_owned(),
        };
        at(0, started(1, None, "input"));
        at(20, finished(1, Outcome::Done, "2 bundles"));
        at(30, started(2, None, "store"));
        at(40, started(3, Some(2), "fetch argocd:3.2.11"));
        at(50, started(4, Some(2), "fetch victorialogs:1.52.1"));
        at(60, started(5, Some(2), "fetch 日本語のイメージ:1"));
        at(70, started(6, Some(2), "fetch redis"));
        at(75, started(7, Some(2), "pause"));
        at(80, started(8, None, "cluster"));
        at(
            100,
            Event::Bytes {
                step: 4,
                done: 0,
                total: 375_000_000,
            },
        );
        at(
            2_100,
            Event::Bytes {
                step: 4,
                done: 170_000_000,
                total: 375_000_000,
            },
        );
        at(
            2_100,
            Event::Bytes {
                step: 5,
                done: 2_000_000,
                total: 0,
            },
        );
        at(
            2_100,
            Event::Bytes {
                step: 3,
                done: 120_000_000,
                total: 120_000_000,
            },
        );
        at(2_200, finished(3, Outcome::Done, "fetched"));
        at(2_200, finished(6, Outcome::Failed, ""));
        at(2_200, finished(7, Outcome::Unchanged, ""));
        at(
            2_300,
            Event::Waiting {
                step: 8,
                text: "Starting control-plane\u{1b}[31m\n🕹️ now".to_owned(),
            },
        );
        state
    }

    fn check(state: &State, width: usize, height: usize) -> String {
        let size = Size { width, height };
        let rows = frame(state, Duration::from_millis(2_400), size);
        assert!(rows.len() < height.max(2));
        let lines: Vec<_> = rows.iter().map(|row| row.render(width)).collect();
        let lines = anstream::adapter::strip_str(&lines.join("\n")).to_string();
        for line in lines.lines() {
            assert!(text::width(line) <= width, "{line}");
        }
        lines
    }

    #[test]
    fn at_100_columns() {
        insta::assert_snapshot!(check(&busy(), 100, 24), @r"
        ⠼   2.4s  store
        ✓   2.2s    fetch argocd:3.2.11  120 MB  fetched
        ⠼   2.4s    fetch victorialogs:1.52.1  ━━━━━━━━━───────────  45%  170 MB of 375 MB  73 MB/s
        ⠼   2.3s    fetch 日本語のイメージ:1  2 MB
        ✗   2.1s    fetch redis  failed
        =   2.1s    pause  unchanged
        ⠼   2.3s  cluster  Starting control-plane 🕹 now
        ");
    }

    #[test]
    fn at_40_columns() {
        insta::assert_snapshot!(check(&busy(), 40, 24), @r"
        ⠼   2.4s  store
        ✓   2.2s    fetch argocd:3.2.11  120 MB…
        ⠼   2.4s    fetch v…rialogs:1.52.1   45%
        ⠼   2.3s    fetch …語のイメージ:1  2 MB
        ✗   2.1s    fetch redis  failed
        =   2.1s    pause  unchanged
        ⠼   2.3s  cluster  Starting control-pla…
        ");
    }

    #[test]
    fn at_12_columns() {
        insta::assert_snapshot!(check(&busy(), 12, 24), @r"
        ⠼   2.4s  …e
        ✓   2.2s   …
        ⠼   2.4s   …
        ⠼   2.3s   …
        ✗   2.1s   …
        =   2.1s   …
        ⠼   2.3s  ……
        ");
    }

    #[test]
    fn with_more_rows_than_the_screen() {
        insta::assert_snapshot!(check(&busy(), 60, 6), @r"
        ⠼   2.4s  store
        ⠼   2.4s    fetch v…rialogs:1.52.1  ━━━━──────  45%  73 MB/s
        ⠼   2.3s    fetch 日本語のイメージ:1  2 MB
        ⠼   2.3s  cluster  Starting control-plane 🕹 now
                  … and 3 more
        ");
        insta::assert_snapshot!(check(&busy(), 60, 4), @r"
        ⠼   2.4s  store
        ⠼   2.3s  cluster  Starting control-plane 🕹 now
                  … and 5 more
        ");
        insta::assert_snapshot!(check(&busy(), 60, 1), @"⠼   2.4s  store");
    }

    #[test]
    fn colours_say_nothing_that_the_text_does_not() {
        let rows = frame(
            &busy(),
            Duration::from_millis(2_400),
            Size {
                width: 40,
                height: 24,
            },
        );
        insta::assert_snapshot!(rows[0].render(40).escape_debug(), @r"\u{1b}[36m⠼\u{1b}[0m\u{1b}[2m   2.4s  \u{1b}[0m\u{1b}[1mstore\u{1b}[0m");
    }

    /// Plays events onto a terminal of that size; the picture after each `None`, which is a frame.
    fn play(size: fn() -> Size, script: Vec<Option<Event>>) -> String {
        let Size { width, height } = size();
        let mut screen = vt100::Parser::new(height as u16, width as u16, 100);
        let mut state = State::default();
        let mut live = Live::new(Vec::new(), size, true);
        let mut now = Duration::ZERO;
        let mut pictures = Vec::new();
        for event in script {
            now += Duration::from_millis(100);
            if let Some(event) = event {
                state.apply(now, &event);
                live.event(&state, now, &event);
                continue;
            }
            live.draw(&state, now);
            screen.process(&std::mem::take(&mut live.out));
            assert_eq!(screen.screen().cursor_position().1, 0);
            assert!(!screen.screen().hide_cursor());
            pictures.push(screen.screen().contents());
        }
        pictures.join("\n----\n")
    }

    #[test]
    fn frames_are_drawn_over_themselves_and_what_is_over_stays() {
        let size = || Size {
            width: 40,
            height: 10,
        };
        let started = |step, parent, name: &str| {
            Some(Event::Started {
                step,
                parent,
                name: name.to_owned(),
            })
        };
        let finished = |step, text: &str| {
            Some(Event::Finished {
                step,
                outcome: Outcome::Done,
                text: text.to_owned(),
            })
        };
        let pictures = play(
            size,
            vec![
                started(1, None, "store"),
                started(
                    2,
                    Some(1),
                    "fetch packages.devenv.test/argoproj/argocd:3.2.11",
                ),
                started(3, None, "cluster"),
                None,
                Some(Event::Waiting {
                    step: 3,
                    text: "Starting control-plane with a long text".to_owned(),
                }),
                finished(2, ""),
                None,
                Some(Event::Notice {
                    text: "a notice that is longer than the terminal is wide".to_owned(),
                }),
                finished(1, "1 image"),
                None,
                None,
                finished(3, "created"),
                Some(Event::Verdict {
                    text: "ready".to_owned(),
                }),
                None,
            ],
        );
        insta::assert_snapshot!(pictures, @r"
        ⠼   0.3s  store
        ⠼   0.2s    fetch pa…proj/argocd:3.2.11
        ⠼   0.1s  cluster
        ----
        ⠧   0.6s  store
        ✓   0.4s    fetch pa…proj/argocd:3.2.11
        ⠧   0.4s  cluster  Starting control-pl…
        ----
        a notice that is longer than the terminal is wide
        ✓   0.8s  store  1 image
        ⠋   0.7s  cluster  Starting control-pl…
        ----
        a notice that is longer than the terminal is wide
        ✓   0.8s  store  1 image
        ⠙   0.8s  cluster  Starting control-pl…
        ----
        l is wide
        ✓   0.8s  store  1 image
        ✓   0.9s  cluster  created

          phase     start     end    took
        ✓ store      0.1s    0.9s    0.8s
        ✓ cluster    0.3s    1.2s    0.9s

        ready
        ");
    }
}
