//! Text that fits: rows of a known width, and numbers as people read them.

use std::fmt::Write as _;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use unicode_width::UnicodeWidthChar as _;

use crate::event::Outcome;

pub(super) const PLAIN: Style = Style::new();
pub(super) const BOLD: Style = Style::new().bold();
pub(super) const DIM: Style = Style::new().dimmed();
pub(super) const CYAN: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Cyan)));
const GREEN: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Green)));
const RED: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red)));
const YELLOW: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Yellow)));

/// One row, in pieces of one style each.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Row {
    spans: Vec<(Style, String)>,
}

impl Row {
    pub(super) fn with(mut self, style: Style, text: &str) -> Self {
        self.spans.push((style, in_one_line(text)));
        self
    }

    pub(super) fn width(&self) -> usize {
        self.spans.iter().map(|(_, text)| width(text)).sum()
    }

    /// With escape sequences for the styles, cut to `limit` columns.
    pub(super) fn render(&self, limit: usize) -> String {
        let cut = self.width() > limit;
        let mut room = if cut { limit.saturating_sub(1) } else { limit };
        let mut rendered = String::new();
        for (style, text) in &self.spans {
            let part = start_of(text, room);
            room -= width(part);
            if !part.is_empty() {
                let _ = write!(rendered, "{style}{part}{style:#}");
            }
            if part.len() < text.len() {
                break;
            }
        }
        if cut && limit > 0 {
            rendered.push('…');
        }
        rendered
    }
}

/// How many columns it takes.
pub(super) fn width(text: &str) -> usize {
    text.chars().filter_map(char::width).sum()
}

/// As much of it as fits.
fn start_of(text: &str, room: usize) -> &str {
    let mut used = 0;
    for (index, character) in text.char_indices() {
        used += character.width().unwrap_or(0);
        if used > room {
            return &text[..index];
        }
    }
    text
}

/// Cut to so many columns, in the middle: the ends of names tell them apart ("fetch packages.dev…argocd:3.2.11").
pub(super) fn shortened(text: &str, limit: usize) -> String {
    let text = in_one_line(text);
    if width(&text) <= limit {
        return text;
    }
    let room = limit.saturating_sub(1);
    let head = start_of(&text, room / 3);
    let tail_room = room - width(head);
    let tail = text
        .char_indices()
        .map(|(index, _)| &text[index..])
        .find(|tail| width(tail) <= tail_room)
        .unwrap_or_default();
    format!("{head}…{tail}")
}

/// Without escape sequences and whatever else would move the cursor or change what other text means; line feeds stay.
pub(super) fn clean(text: &str) -> String {
    anstream::adapter::strip_str(text)
        .to_string()
        .chars()
        .filter(|character| !is_invisible(*character))
        .map(|character| match character {
            '\n' => '\n',
            other if other.is_control() => ' ',
            other => other,
        })
        .collect()
}

/// Joiners, selectors of variants and marks of direction: terminals don't agree on how wide they make their neighbours.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}')
}

/// Clean, and without line feeds.
pub(super) fn in_one_line(text: &str) -> String {
    clean(text).replace('\n', " ")
}

pub(super) fn symbol(outcome: Outcome) -> (Style, &'static str) {
    match outcome {
        Outcome::Done => (GREEN, "✓"),
        Outcome::Unchanged => (DIM, "="),
        Outcome::Failed => (RED, "✗"),
        Outcome::Stopped => (YELLOW, "-"),
    }
}

pub(super) fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Unchanged => "unchanged",
        Outcome::Failed => "failed",
        Outcome::Stopped => "stopped",
    }
}

/// "12.3s"
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f64())
}

/// "375 MB"; from a gigabyte on with one decimal.
pub fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{} kB", count / 1_000),
        1_000_000..1_000_000_000 => format!("{} MB", count / 1_000_000),
        _ => format!(
            "{}.{} GB",
            count / 1_000_000_000,
            count % 1_000_000_000 / 100_000_000
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_by_columns_not_by_characters() {
        let row = Row::default().with(BOLD, "日本語").with(PLAIN, " ok");
        assert_eq!(row.width(), 9);
        assert_eq!(row.render(9), "\u{1b}[1m日本語\u{1b}[0m ok");
        assert_eq!(row.render(8), "\u{1b}[1m日本語\u{1b}[0m …");
        assert_eq!(row.render(6), "\u{1b}[1m日本\u{1b}[0m…");
        assert_eq!(row.render(1), "…");
        assert_eq!(row.render(0), "");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_a_row_too_wide(first in ".*", second in ".*", limit in 0_usize..50) {
            let row = Row::default().with(BOLD, &first).with(PLAIN, &second);
            let rendered = anstream::adapter::strip_str(&row.render(limit)).to_string();
            assert!(width(&rendered) <= limit, "{rendered:?}");
            assert!(width(&shortened(&first, limit)) <= limit.max(1));
            assert!(!rendered.chars().any(char::is_control));
        }
    }

    #[test]
    fn names_keep_both_ends() {
        let all = [40, 20, 10, 3, 1].map(|limit| shortened("fetch packages/argocd:3.2.11", limit));
        assert_eq!(
            all,
            [
                "fetch packages/argocd:3.2.11",
                "fetch …argocd:3.2.11",
                "fet…3.2.11",
                "…11",
                "…"
            ]
        );
        assert_eq!(shortened("日本語の名前", 8), "日…名前");
    }

    #[test]
    fn what_would_move_the_cursor_is_taken_out() {
        assert_eq!(clean("a\u{1b}[2Jb\tc\r\nd\u{202e}e❤\u{fe0f}"), "ab c \nde❤");
        assert_eq!(in_one_line("a\nb"), "a b");
    }

    #[test]
    fn bytes_are_short() {
        let all = [999, 1_000, 999_999, 375_000_000, 1_260_000_000].map(bytes);
        assert_eq!(all, ["999 B", "1 kB", "999 kB", "375 MB", "1.2 GB"]);
    }
}
