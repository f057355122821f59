//! Finds the name for the hint "did you mean ..?" in errors about unknown names.

/// Returns the candidate that is most similar to `name`, if any is similar enough.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const NAME_CHARACTERS_MAX: usize = 100;
    if name.chars().nth(NAME_CHARACTERS_MAX).is_some() {
        return None;
    }
    // In a short name, two wrong letters would allow almost any other name.
    let length = name.chars().count();
    let bound = if length <= 4 { 1 } else { length / 3 + 1 };
    let distances = candidates.map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate));
    distances.filter(|(distance, _)| *distance <= bound).min_by_key(|(distance, _)| *distance).map(|(_, near)| near)
}
