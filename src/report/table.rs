//! The closing table: when each phase ran, how long it took, and how it ended. Pure.

use std::time::Duration;

use super::Phase;
use super::text::{BOLD, CYAN, DIM, PLAIN, Row, seconds, symbol, width, word};

/// Below so many columns for bars there are none.
const NARROWEST_BAR: usize = 10;
const WIDEST_BAR: usize = 40;
/// Symbol, three times, and the spaces between them.
const FIXED: usize = 2 + 3 * 8;
const OUTCOME: usize = 11;

pub(super) fn table(phases: &[Phase], limit: usize) -> Vec<Row> {
    let longest = phases
        .iter()
        .map(|phase| width(&phase.name))
        .max()
        .unwrap_or(0);
    let name = longest
        .max("phase".len())
        .min(limit.saturating_sub(FIXED).max(1));
    let has_outcome = limit >= FIXED + name + OUTCOME;
    let bar = limit
        .saturating_sub(FIXED + name + OUTCOME + 2)
        .min(WIDEST_BAR);
    let bar = if bar < NARROWEST_BAR { 0 } else { bar };
    let total = phases
        .iter()
        .map(|phase| phase.ended)
        .max()
        .unwrap_or_default();

    let head = format!(
        "  {}{:>8}{:>8}{:>8}",
        padded("phase", name),
        "start",
        "end",
        "took"
    );
    let head = if has_outcome {
        head + "  outcome"
    } else {
        head
    };
    let mut rows = vec![Row::default().with(DIM, &head)];
    for phase in phases {
        let (paint, sign) = phase.outcome.map_or((CYAN, "…"), symbol);
        let took = phase.ended.saturating_sub(phase.began);
        let mut row = Row::default()
            .with(paint, sign)
            .with(PLAIN, " ")
            .with(BOLD, &padded(&phase.name, name))
            .with(
                DIM,
                &format!("{:>8}{:>8}", seconds(phase.began), seconds(phase.ended)),
            )
            .with(PLAIN, &format!("{:>8}", seconds(took)));
        if has_outcome {
            let outcome = phase.outcome.map_or("running", word);
            row = row.with(PLAIN, &format!("  {outcome}"));
        }
        if bar > 0 {
            let (before, length) = span(phase, total, bar);
            let gap = FIXED + name + OUTCOME + 2 + before - row.width();
            row = row
                .with(PLAIN, &" ".repeat(gap))
                .with(paint, &"█".repeat(length));
        }
        rows.push(row);
    }
    rows
}

/// Where its bar begins and how long it is; a short phase has a cell too.
fn span(phase: &Phase, total: Duration, cells: usize) -> (usize, usize) {
    let cell = |time: Duration| {
        (time.as_secs_f64() / total.as_secs_f64().max(0.001) * cells as f64) as usize
    };
    let before = cell(phase.began).min(cells - 1);
    (before, cell(phase.ended).saturating_sub(before).max(1))
}

fn padded(text: &str, columns: usize) -> String {
    let text = super::text::shortened(text, columns);
    let missing = columns.saturating_sub(width(&text));
    text + &" ".repeat(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Outcome;

    fn check(limit: usize) -> String {
        let phase = |name: &str, began, ended, outcome| Phase {
            name: name.to_owned(),
            began: Duration::from_millis(began),
            ended: Duration::from_millis(ended),
            outcome,
        };
        let phases = [
            phase("store", 0, 4_200, Some(Outcome::Unchanged)),
            phase("cluster", 100, 14_040, Some(Outcome::Done)),
            phase(
                "gitops of the 大 team",
                14_000,
                40_100,
                Some(Outcome::Failed),
            ),
            phase("checks", 40_100, 40_100, Some(Outcome::Stopped)),
            phase("snapshot", 40_100, 41_000, None),
        ];
        let rows = table(&phases, limit);
        assert!(rows.iter().all(|row| row.width() <= limit), "{rows:?}");
        let lines: Vec<_> = rows.iter().map(|row| row.render(limit)).collect();
        anstream::adapter::strip_str(&lines.join("\n")).to_string()
    }

    #[test]
    fn at_100_columns() {
        insta::assert_snapshot!(check(100), @r"
          phase                   start     end    took  outcome
        = store                    0.0s    4.2s    4.2s  unchanged  ████
        ✓ cluster                  0.1s   14.0s   13.9s  done       █████████████
        ✗ gitops of the 大 team   14.0s   40.1s   26.1s  failed                  ██████████████████████████
        - checks                  40.1s   40.1s    0.0s  stopped                                           █
        … snapshot                40.1s   41.0s    0.9s  running                                           █
        ");
    }

    #[test]
    fn at_60_columns() {
        insta::assert_snapshot!(check(60), @r"
          phase                   start     end    took  outcome
        = store                    0.0s    4.2s    4.2s  unchanged
        ✓ cluster                  0.1s   14.0s   13.9s  done
        ✗ gitops of the 大 team   14.0s   40.1s   26.1s  failed
        - checks                  40.1s   40.1s    0.0s  stopped
        … snapshot                40.1s   41.0s    0.9s  running
        ");
    }

    #[test]
    fn at_40_columns() {
        insta::assert_snapshot!(check(40), @r"
          phase            start     end    took
        = store             0.0s    4.2s    4.2s
        ✓ cluster           0.1s   14.0s   13.9s
        ✗ gito…e 大 team   14.0s   40.1s   26.1s
        - checks           40.1s   40.1s    0.0s
        … snapshot         40.1s   41.0s    0.9s
        ");
    }

    #[test]
    fn without_phases() {
        assert_eq!(table(&[], 40).len(), 1);
    }
}
