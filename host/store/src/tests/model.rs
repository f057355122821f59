//! Keys, queues, quota and scans against maps in memory.

use std::collections::{BTreeMap, VecDeque};

use arbtest::arbitrary::{Result as Drawn, Unstructured};
use arbtest::arbtest;

use super::*;
use crate::crash::Disk;
use crate::overlay::Overlay;

const KEYS: [&str; 6] = ["a", "a\0", "ab", "b", "b\u{10ffff}", "ü"];
const QUEUES: [&str; 2] = ["q", "q2"];
const SMALL: Quota = Quota { bytes: 40, entries: 6 };

#[derive(Clone, Default)]
struct Model {
    keys: BTreeMap<String, StateValue>,
    queues: BTreeMap<String, VecDeque<StateValue>>,
}

fn content_bytes(value: &StateValue) -> u64 {
    match value {
        StateValue::Json(text) => text.len() as u64,
        StateValue::Bytes(bytes) => bytes.len() as u64,
    }
}

impl Model {
    fn usage(&self) -> Quota {
        let keys: u64 = self.keys.iter().map(|(key, value)| key.len() as u64 + content_bytes(value)).sum();
        let queues: u64 = self.queues.values().flatten().map(content_bytes).sum();
        let entries = self.keys.len() + self.queues.values().map(VecDeque::len).sum::<usize>();
        Quota { bytes: keys + queues, entries: entries as u64 }
    }

    /// Does a step. None: the transaction fails.
    fn step(&mut self, step: &Step) -> Option<StepResult> {
        let length = |queue: &VecDeque<StateValue>| StepResult::Number(queue.len() as i64);
        Some(match step {
            Step::Get(key) => StepResult::Value(self.keys.get(key).cloned()),
            Step::Set(key, value) => {
                self.keys.insert(key.clone(), value.clone());
                StepResult::Done
            }
            Step::Delete(key) => StepResult::Deleted(self.keys.remove(key).is_some()),
            Step::Check(key, expected) => (self.keys.get(key) == expected.as_ref()).then_some(StepResult::Done)?,
            Step::Increment(key, by) => {
                let number = match self.keys.get(key) {
                    None => 0,
                    Some(StateValue::Json(text)) => text.parse::<i64>().ok()?,
                    Some(StateValue::Bytes(_)) => return None,
                };
                let sum = number.checked_add(*by)?;
                self.keys.insert(key.clone(), json(&sum.to_string()));
                StepResult::Number(sum)
            }
            Step::Push(queue, value) => {
                let queue = self.queues.entry(queue.clone()).or_default();
                queue.push_back(value.clone());
                length(queue)
            }
            Step::Pop(queue) => StepResult::Value(self.queues.entry(queue.clone()).or_default().pop_front()),
            Step::Length(queue) => length(self.queues.entry(queue.clone()).or_default()),
            Step::Retry(_) => return None,
        })
    }

    /// Does all steps. None: the transaction fails, and nothing is done.
    fn transact(&mut self, steps: &[Step]) -> Option<Vec<StepResult>> {
        let mut after = self.clone();
        let outcomes = steps.iter().map(|step| after.step(step)).collect::<Option<Vec<_>>>()?;
        let (before, now) = (self.usage(), after.usage());
        let over = |now: u64, before: u64, allowed: u64| now > allowed && now > before;
        if over(now.bytes, before.bytes, SMALL.bytes) || over(now.entries, before.entries, SMALL.entries) {
            return None;
        }
        *self = after;
        Some(outcomes)
    }

    fn scan(&self, range: &Range) -> Vec<(String, StateValue)> {
        let wanted = |key: &str| {
            key.starts_with(&range.prefix)
                && range.from.as_deref().is_none_or(|from| key >= from)
                && range.to.as_deref().is_none_or(|to| key < to)
        };
        let found = self.keys.iter().filter(|(key, _)| wanted(key)).map(|(key, value)| (key.clone(), value.clone()));
        let mut found: Vec<_> = found.collect();
        if range.descending {
            found.reverse();
        }
        found
    }
}

fn key(u: &mut Unstructured<'_>) -> Drawn<String> {
    u.choose(&KEYS).map(|key| (*key).to_owned())
}

fn value(u: &mut Unstructured<'_>) -> Drawn<StateValue> {
    Ok(match u.int_in_range(0..=2)? {
        0 => StateValue::Bytes(vec![7; u.int_in_range(0..=12)?]),
        1 => json(&i64::MAX.to_string()),
        _ => json("5"),
    })
}

fn step(u: &mut Unstructured<'_>) -> Drawn<Step> {
    let queue = (*u.choose(&QUEUES)?).to_owned();
    Ok(match u.int_in_range(0..=7)? {
        0 => Step::Get(key(u)?),
        1 => Step::Set(key(u)?, value(u)?),
        2 => Step::Delete(key(u)?),
        3 => Step::Check(key(u)?, if u.arbitrary()? { Some(value(u)?) } else { None }),
        4 => Step::Increment(key(u)?, u.int_in_range(-2..=2)?),
        5 => Step::Push(queue, value(u)?),
        6 => Step::Pop(queue),
        _ => Step::Length(queue),
    })
}

fn range(u: &mut Unstructured<'_>) -> Drawn<Range> {
    let some = |u: &mut Unstructured<'_>| Ok(if u.arbitrary()? { Some(key(u)?) } else { None });
    let prefix = u.choose(&["", "", "a", "b", "ab"])?;
    Ok(Range { prefix: (*prefix).to_owned(), from: some(u)?, to: some(u)?, descending: u.arbitrary()? })
}

fn scanned(store: &Store, range: &Range, limit: usize) -> Vec<(String, StateValue)> {
    let mut found = Vec::new();
    let mut cursor = None;
    loop {
        let page = store.scan("m", range, limit, cursor.as_deref()).unwrap();
        assert!(page.entries.len() <= limit);
        found.extend(page.entries);
        cursor = page.next;
        if cursor.is_none() {
            return found;
        }
    }
}

#[test]
fn a_module_keeps_what_maps_would() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    arbtest(|u| {
        let store = Disk::new(0).store();
        let mut model = Model::default();
        for _ in 0..u.int_in_range(1..=12)? {
            let steps = (0..u.int_in_range(1..=5)?).map(|_| step(u)).collect::<Drawn<Vec<_>>>()?;
            let rehearsed = store.rehearse("m", SMALL, &steps);
            let done = runtime.block_on(store.transact("m", SMALL, steps.clone(), None, soon()));
            assert_eq!(rehearsed, done);
            assert_eq!(model.transact(&steps), done.ok(), "{steps:?}");
            let range = range(u)?;
            assert_eq!(scanned(&store, &range, u.int_in_range(1..=3)?), model.scan(&range), "{range:?}");
        }
        for queue in QUEUES {
            let expected = model.queues.remove(queue).unwrap_or_default();
            assert_eq!(VecDeque::from(store.peek("m", queue, 100).unwrap()), expected);
            model.queues.insert(queue.to_owned(), expected);
        }
        let usage = store.modules().unwrap();
        assert_eq!(usage.first().map_or(Quota { bytes: 0, entries: 0 }, |(_, usage)| *usage), model.usage());
        Ok(())
    });
}

/// A write's own changes override those of its group, and those override what is committed.
#[test]
fn a_write_sees_all_layers() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    arbtest(|u| {
        let store = Disk::new(0).store();
        let mut layers: [Vec<(u8, Option<u8>)>; 3] = Default::default();
        for layer in &mut layers {
            *layer = (0..u.int_in_range(0..=8)?)
                .map(|_| Ok((u.int_in_range(0..=9)?, u.arbitrary()?)))
                .collect::<Drawn<_>>()?;
        }
        let mut model = BTreeMap::new();
        for (key, value) in layers.iter().flatten() {
            match value {
                Some(value) => drop(model.insert(vec![*key], vec![*value])),
                None => drop(model.remove([*key].as_slice())),
            }
        }
        let [committed, group, own] = layers;
        let write = |writer: &mut Writer<'_>, layer: &[(u8, Option<u8>)]| {
            for (key, value) in layer {
                match value {
                    Some(value) => writer.put(Space::Interfaces, vec![*key], vec![*value]),
                    None => writer.remove(Space::Interfaces, vec![*key]),
                }
            }
        };
        let first = store.write(soon(), move |writer| {
            write(writer, &committed);
            Ok(())
        });
        runtime.block_on(first).unwrap();
        let (from, to, limit) = (u.int_in_range(0..=9)?, u.int_in_range(0..=10)?, u.int_in_range(0..=12)?);
        let descending = u.arbitrary()?;
        let mut expected: Vec<_> =
            model.range(vec![from]..vec![to.max(from)]).map(|(key, value)| (key.clone(), value.clone())).collect();
        if descending {
            expected.reverse();
        }
        expected.truncate(limit);
        let found = store.read(|reader| {
            let nothing = Overlay::default();
            let queues = std::sync::Arc::default();
            let mut before = Writer::new(reader.snapshot, &nothing, &queues);
            write(&mut before, &group);
            let (group, _) = before.into_parts();
            let mut writer = Writer::new(reader.snapshot, &group, &queues);
            write(&mut writer, &own);
            for key in 0..10 {
                assert_eq!(writer.get(Space::Interfaces, &[key])?.as_ref(), model.get([key].as_slice()));
            }
            writer.range(Space::Interfaces, &[from], &[to], limit, descending)
        });
        assert_eq!(found, Ok(expected));
        Ok(())
    });
}
