//! The results of checks in the XML that CI systems read, as JUnit writes it.

use std::fs::OpenOptions;
use std::path::Path;

use anyhow::Context as _;

use crate::checks::{Checked, Verdict, count};
use crate::error::Failure;

/// Refuses a file that can't be written, before anything is done for it.
pub fn refuse_unwritable(file: &Path) -> anyhow::Result<()> {
    let opened = OpenOptions::new().create(true).append(true).open(file);
    opened.map(drop).map_err(|error| {
        Failure::Usage {
            message: format!("can't write {}: {error}", file.display()),
            hint: "give --junit a file in a folder that exists and that you can write to"
                .to_owned(),
        }
        .into()
    })
}

/// Writes the results, as a suite of this name.
pub fn write(file: &Path, suite: &str, checked: &[Checked]) -> anyhow::Result<()> {
    std::fs::write(file, text(suite, checked)).with_context(|| format!("write {}", file.display()))
}

fn text(suite: &str, checked: &[Checked]) -> String {
    let failures = count(checked, Verdict::Failed);
    let skipped = count(checked, Verdict::Excluded) + count(checked, Verdict::NotWired);
    let time: f64 = checked
        .iter()
        .map(|checked| checked.seconds)
        .fold(0.0, f64::max);
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" skipped=\"{skipped}\" time=\"{time:.3}\">\n",
        escaped(suite),
        checked.len(),
    );
    for checked in checked {
        let subject = checked.name.split(' ').next().unwrap_or_default();
        text += &format!(
            "  <testcase classname=\"devenv.{}\" name=\"{}\" time=\"{:.3}\">",
            escaped(subject),
            escaped(&checked.name),
            checked.seconds
        );
        let saw = escaped(&checked.saw);
        text += &match checked.verdict {
            Verdict::Passed => format!("<system-out>{saw}</system-out>"),
            Verdict::Excluded | Verdict::NotWired => format!("<skipped message=\"{saw}\"/>"),
            Verdict::Failed => format!(
                "<failure message=\"{saw}\">it would prove: {}\nby: {}</failure>",
                escaped(&checked.proves),
                escaped(&checked.how)
            ),
        };
        text += "</testcase>\n";
    }
    text + "</testsuite>\n"
}

/// As XML takes it; characters that it can't hold at all become `?`.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|letter| match letter {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&quot;".to_owned(),
            '\n' => "&#10;".to_owned(),
            '\u{0}'..='\u{8}'
            | '\u{b}'
            | '\u{c}'
            | '\u{e}'..='\u{1f}'
            | '\u{fffe}'
            | '\u{ffff}' => "?".to_owned(),
            other => other.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verdict_as_ci_systems_know_it() {
        let checked = |name: &str, verdict, saw: &str| Checked {
            name: name.to_owned(),
            proves: "it & that".to_owned(),
            how: "a > b".to_owned(),
            verdict,
            saw: saw.to_owned(),
            seconds: 0.25,
        };
        insta::assert_snapshot!(
            text("devenv check dev", &[
                checked("gateway a.local", Verdict::Passed, "200"),
                checked("mesh strict", Verdict::Failed, "\"no\"\u{1}\nline <2>"),
                checked("name a.local", Verdict::NotWired, "isn't known"),
                checked("logs loki", Verdict::Excluded, "dev leaves out loki"),
            ]),
            @r#"
        <?xml version="1.0" encoding="UTF-8"?>
        <testsuite name="devenv check dev" tests="4" failures="1" errors="0" skipped="2" time="0.250">
          <testcase classname="devenv.gateway" name="gateway a.local" time="0.250"><system-out>200</system-out></testcase>
          <testcase classname="devenv.mesh" name="mesh strict" time="0.250"><failure message="&quot;no&quot;?&#10;line &lt;2&gt;">it would prove: it &amp; that
        by: a &gt; b</failure></testcase>
          <testcase classname="devenv.name" name="name a.local" time="0.250"><skipped message="isn't known"/></testcase>
          <testcase classname="devenv.logs" name="logs loki" time="0.250"><skipped message="dev leaves out loki"/></testcase>
        </testsuite>
        "#
        );
    }
}
