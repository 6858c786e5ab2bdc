//! Kubernetes' quantities: "500m", "1", "2Gi".

/// A quantity in thousandths of its unit (of a CPU, of a byte), so that `1000m` and `1` are the same; `None` if it is none.
pub fn thousandths(quantity: &str) -> Option<u128> {
    let digits = quantity
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at(digits);
    let number: u128 = number.parse().ok()?;
    let factor = match unit {
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// CPUs for people: "0.25 CPU".
pub fn cpus(thousandths: u128) -> String {
    format!("{} CPU", thousandths as f64 / 1000.0)
}

/// Memory for people: "1.5 GiB".
pub fn memory(thousandths: u128) -> String {
    let mebibytes = thousandths / (1000 << 20);
    match mebibytes {
        0..1024 => format!("{mebibytes} MiB"),
        _ => format!("{:.1} GiB", mebibytes as f64 / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_compared_by_what_they_mean() {
        assert_eq!(thousandths("1000m"), thousandths("1"));
        assert_eq!(thousandths("1Gi"), thousandths("1024Mi"));
        assert_ne!(thousandths("500m"), thousandths("1"));
        for none in ["", "1x", "m", "-1"] {
            assert_eq!(thousandths(none), None, "{none}");
        }
    }

    #[test]
    fn people_read_cpus_and_gibibytes() {
        assert_eq!(cpus(1250), "1.25 CPU");
        assert_eq!(memory(thousandths("512Mi").unwrap()), "512 MiB");
        assert_eq!(memory(thousandths("1536Mi").unwrap()), "1.5 GiB");
    }
}
