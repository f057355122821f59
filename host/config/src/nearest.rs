//! "Did you mean": asked by whoever refuses a name that a person wrote.

/// The candidate that was most likely meant by `name`, if any is close enough to ask.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const NAME_CHARACTERS_MAX: usize = 100;
    if name.chars().nth(NAME_CHARACTERS_MAX).is_some() {
        return None;
    }
    // Two wrong letters of four are another word.
    let length = name.chars().count();
    let bound = if length <= 4 { 1 } else { length / 3 + 1 };
    let distances = candidates.map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate));
    distances.filter(|(distance, _)| *distance <= bound).min_by_key(|(distance, _)| *distance).map(|(_, near)| near)
}
