//! As process 1, such as in a container, the primary is given every process whose parent has died: compilers, and what
//! programs in the container start. Nobody else can take note of their end, and until then each keeps its place in the
//! system's table of processes.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, waitpid};

/// Between two looks. What has ended at both is nobody's: children of this process are waited for at once.
const INTERVAL: Duration = Duration::from_secs(5);

/// Takes note of the ends of adopted processes for as long as the future is polled. Only process 1 has any.
pub(super) async fn reap() {
    if std::process::id() != 1 {
        return;
    }
    let mut before = BTreeSet::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        before = look(&before);
    }
}

/// Reaps those that had ended before, and returns those that have ended since.
fn look(before: &BTreeSet<i32>) -> BTreeSet<i32> {
    let ended = ended_children();
    for pid in ended.intersection(before).filter_map(|pid| Pid::from_raw(*pid)) {
        // Whoever was quicker has done the same.
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
    ended.difference(before).copied().collect()
}

/// Children that have ended and are still in the table of processes.
fn ended_children() -> BTreeSet<i32> {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ended = processes.filter_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(process.path().join("stat")).ok()?;
        // The name before these is in brackets, and may have brackets itself.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        (fields.next() == Some("Z") && fields.next() == Some(own.as_str())).then_some(pid)
    });
    ended.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_and_is_nobodys_is_taken_note_of() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while !ended_children().contains(&pid) {
            assert!(std::time::Instant::now() < until, "the child has not ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        // Not at the first look: its parent may be about to wait for it. Other tests' children are left to them.
        let own = |ended: BTreeSet<i32>| ended.into_iter().filter(|ended| *ended == pid).collect::<BTreeSet<_>>();
        let first = own(look(&BTreeSet::new()));
        assert!(first.contains(&pid) && ended_children().contains(&pid));
        look(&first);
        assert!(!ended_children().contains(&pid));
        assert!(child.wait().is_err(), "nothing is left to wait for");
    }
}
