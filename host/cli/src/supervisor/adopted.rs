//! Reaps adopted processes. As process 1, for example in a container, the primary becomes the parent of every process
//! whose parent has died: compilers, and what other programs in the container start. Unless it waits for them, each
//! keeps its entry in the system's process table after its end.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, waitpid};

/// Interval of the checks. A process that has ended at two checks in a row was adopted: other children are waited for at
/// once.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Reaps adopted processes as long as the future is polled. Only process 1 has any.
pub(super) async fn reap() {
    if std::process::id() != 1 {
        return;
    }
    let mut before = BTreeSet::new();
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        before = reap_ended(&before);
    }
}

/// Reaps those that had ended at the check before. Returns those that have ended since.
fn reap_ended(before: &BTreeSet<i32>) -> BTreeSet<i32> {
    let ended = ended_children();
    for pid in ended.intersection(before).filter_map(|pid| Pid::from_raw(*pid)) {
        // An error means that somebody else has reaped it.
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
    ended.difference(before).copied().collect()
}

/// Returns the children that have ended and are still in the process table.
fn ended_children() -> BTreeSet<i32> {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ended = processes.filter_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(process.path().join("stat")).ok()?;
        // The program's name before these fields is in brackets, and may have brackets itself.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        (fields.next() == Some("Z") && fields.next() == Some(own.as_str())).then_some(pid)
    });
    ended.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_process_is_reaped_at_the_second_check() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while !ended_children().contains(&pid) {
            assert!(std::time::Instant::now() < until, "the child has not ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        // Not at the first check, since its parent may be about to wait for it. Children of other tests are left alone.
        let own = |ended: BTreeSet<i32>| ended.into_iter().filter(|ended| *ended == pid).collect::<BTreeSet<_>>();
        let first = own(reap_ended(&BTreeSet::new()));
        assert!(first.contains(&pid) && ended_children().contains(&pid));
        reap_ended(&first);
        assert!(!ended_children().contains(&pid));
        assert!(child.wait().is_err(), "nothing is left to wait for");
    }
}
