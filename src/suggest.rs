//! "Did you mean …?" for words that a person mistyped.

/// The candidate that `word` was most likely meant to be, if one is near enough to be worth saying.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= 1 + word.chars().count().min(candidate.chars().count()) / 4
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// [`closest`] as a help line.
pub fn did_you_mean<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    closest(word, candidates).map(|candidate| format!("did you mean `{candidate}`?"))
}

#[cfg(test)]
mod tests {
    use super::closest;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let names = ["istio", "gateway", "namespaces", "wave"];
        assert_eq!(closest("itsio", names), Some("istio"));
        assert_eq!(closest("wvae", names), Some("wave"));
        assert_eq!(closest("namespace", names), Some("namespaces"));
        assert_eq!(closest("keycloak", names), None);
    }
}
