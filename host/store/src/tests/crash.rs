//! A workload with keys and queues of two modules, run with a fault at each change of the disk.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;

use super::*;
use crate::crash::{Disk, Fault, Workload, crash_everywhere, run};

/// Keys and queue of one module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ModuleContent {
    keys: BTreeMap<String, StateValue>,
    queue: VecDeque<StateValue>,
}

impl ModuleContent {
    fn apply(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Set(key, value) => drop(self.keys.insert(key.clone(), value.clone())),
                Step::Delete(key) => drop(self.keys.remove(key)),
                Step::Push(_, value) => self.queue.push_back(value.clone()),
                Step::Pop(_) => drop(self.queue.pop_front()),
                other => panic!("the workload has no {other:?}"),
            }
        }
    }

    fn read(store: &Store, module: &str) -> Result<Self, StoreError> {
        let page = store.scan(module, &Range::default(), 1_000, None)?;
        let queue = store.peek(module, "q", 1_000)?;
        assert_eq!(store.length(module, "q")?, queue.len() as u64);
        let kept = Self { keys: page.entries.into_iter().collect(), queue: queue.into() };
        let found = store.modules()?.into_iter().find(|(name, _)| name == module);
        assert_eq!(found.map_or(0, |(_, usage)| usage.entries), (kept.keys.len() + kept.queue.len()) as u64);
        Ok(kept)
    }
}

#[derive(Default)]
struct TwoModules {
    number: usize,
    kept: [ModuleContent; 2],
    /// Transactions that may or may not have been done.
    in_doubt: [Option<Vec<Step>>; 2],
}

const NAMES: [&str; 2] = ["a", "b"];
const STEPS: usize = 24;

impl TwoModules {
    fn steps(number: usize, module: usize) -> Vec<Step> {
        let value = json(&format!("\"{}\"", "x".repeat(number * 331 % 3_000)));
        let key = format!("k{}", number * 7 % 5);
        let mut steps = vec![
            Step::Set(key, value.clone()),
            Step::Push("q".into(), value),
            Step::Set("n".into(), json(&number.to_string())),
        ];
        if number % 3 == module {
            steps.extend([Step::Pop("q".into()), Step::Pop("q".into()), Step::Delete(format!("k{}", number % 5))]);
        }
        steps
    }
}

impl Workload for TwoModules {
    async fn step(&mut self, store: &Store) -> bool {
        self.number += 1;
        let steps = [0, 1].map(|module| Self::steps(self.number, module));
        let write = |module: usize| store.transact(NAMES[module], QUOTA, steps[module].clone(), None, soon());
        let (first, second) = tokio::join!(write(0), write(1));
        for ((module, steps), result) in steps.into_iter().enumerate().zip([first, second]) {
            match result {
                Ok(_) => self.kept[module].apply(&steps),
                Err(_) => self.in_doubt[module] = Some(steps),
            }
        }
        self.number < STEPS
    }

    fn check(&mut self, store: &Store) -> Result<(), StoreError> {
        for (module, name) in NAMES.into_iter().enumerate() {
            let found = ModuleContent::read(store, name)?;
            if let Some(steps) = self.in_doubt[module].take()
                && found != self.kept[module]
            {
                self.kept[module].apply(&steps);
            }
            assert_eq!(found, self.kept[module], "module {name} after step {}", self.number);
        }
        Ok(())
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_fault_at_any_change() {
    let points = crash_everywhere(TwoModules::default).await;
    println!("{points} crash points");
    assert!(points >= 500, "{points} crash points");
}

/// Shows that the harness finds lost writes: a disk that does not sync fails the workload's check, at least for one seed, and
/// there is no other panic.
#[tokio::test]
async fn a_disk_that_does_not_sync_is_found_out() {
    let mut found_out = 0;
    for seed in 0..20 {
        let disk = Disk::new(seed);
        disk.fail_at(150, Fault::PowerLoss);
        let mut workload = TwoModules::default();
        let store = disk.store();
        workload.step(&store).await;
        disk.lie();
        drop(store);
        let Err(panic) = AssertUnwindSafe(run(&disk, &mut workload)).catch_unwind().await else { continue };
        let text = panic.downcast_ref::<String>().map_or("", String::as_str);
        let is_lost = text.contains("after step");
        assert!(is_lost || text.contains("a disk that works can be read"), "seed {seed}: {text}");
        found_out += 1;
    }
    assert!(found_out > 0, "twenty power losses on a disk that does not sync, and nothing was lost");
}
