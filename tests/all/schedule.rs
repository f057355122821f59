//! Interfaces that fire at the times of a cron expression. What time it is, and what a clock that is set does, is tested
//! without one: see the unit tests of `host/protocols/schedule`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use wasmcage::host::StartError;
use wasmcage_core::request::Deadline;
use wasmcage_store::{CallFilter, Space, Store, StoreSettings};
use wasmcage_tests::{Root, RunningCage, TestCage, eventually, guest};

use crate::resources::{rows, sqlite};

const EVERY_SECOND: &str = "cron = \"* * * * * *\"\ntime_zone = \"Europe/Berlin\"";

fn nightly(keys: &str, takes_ms: u32) -> TestCage {
    TestCage::new()
        .config(&format!("[interfaces.nightly]\nprotocol = \"schedule\"\n{keys}"))
        .config(&format!("[modules.interface_nightly]\nconfig = {{ takes_ms = {takes_ms} }}"))
        .module("scheduled", "interface_nightly")
}

/// The times whose requests have got to that point, in order, and how many the module was told it missed before each.
fn told(cage: &RunningCage, point: &str) -> Vec<(String, u64)> {
    told_in(&cage.log(), point)
}

fn told_in(log: &str, point: &str) -> Vec<(String, u64)> {
    let lines = log.lines().filter_map(|line| {
        let (_, line) = line.split_once("nightly of ")?;
        let (time, rest) = line.split_once(' ')?;
        let missed = rest.split_once(", ").and_then(|(_, missed)| missed.split(' ').next()?.parse().ok());
        rest.starts_with(point).then(|| (time.to_owned(), missed.unwrap_or(0)))
    });
    lines.collect()
}

fn times(cage: &RunningCage, point: &str) -> Vec<String> {
    told(cage, point).into_iter().map(|(time, _)| time).collect()
}

async fn until(cage: &RunningCage, point: &str, count: usize) -> Vec<String> {
    eventually(&format!("{count} {point}"), || Some(times(cage, point)).filter(|times| times.len() >= count)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_time_fires_once_with_its_name() {
    let cage = nightly(EVERY_SECOND, 0).start().await;
    let times = until(&cage, "is done", 3).await;
    assert!(times.is_sorted() && times.iter().collect::<BTreeSet<_>>().len() == times.len(), "{times:?}");
    assert!(times[0].starts_with("20") && times[0].contains("T") && times[0].contains(":00"), "{times:?}");
    assert!(times[0].ends_with("+01:00") || times[0].ends_with("+02:00"), "{times:?}");
    let snapshot = cage.snapshot();
    let interface = snapshot.cages[0].interfaces.iter().find(|known| known.protocol == "schedule").unwrap();
    let news = interface.status.clone().unwrap();
    assert!(news.strip_prefix("next ").unwrap() > &*times[0], "{news} after {times:?}");
    assert!(cage.host().serving().is_empty());
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_comes_while_the_last_is_in_work_is_left_out_and_counted() {
    let cage = nightly("every = \"1s\"", 2_500).start().await;
    until(&cage, "begins", 3).await;
    let begun = told(&cage, "begins");
    assert!(begun[1].1 >= 1 && begun[2].1 >= 1, "{begun:?}");
    cage.logged("scheduled times before this one were left out").await;
    // One after the other.
    let log = cage.log();
    let ended = log.find("is done").unwrap();
    assert_eq!(log[..ended].matches("begins").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ticks_may_overlap_or_wait() {
    let cage = nightly("every = \"1s\"\noverlap = \"allow\"", 2_500).start().await;
    until(&cage, "begins", 2).await;
    assert_eq!(times(&cage, "is done"), [""; 0]);

    let cage = nightly("every = \"1s\"\noverlap = \"queue\"\nqueue_max = 2", 1_500).start().await;
    until(&cage, "is done", 3).await;
    let begun = told(&cage, "begins");
    // The second one waited for the first, and was not left out.
    assert_eq!(begun[1].1, 0, "{begun:?}");
    assert!(begun.is_sorted(), "{begun:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tick_in_work_is_finished_before_the_cage_ends() {
    let cage = nightly(EVERY_SECOND, 2_000).start().await;
    until(&cage, "begins", 1).await;
    let logs = fs::read_dir(cage.directory().join("logs")).unwrap().map(|file| file.unwrap().path());
    // The directory goes with the cage, a file that is open stays.
    let mut logs: Vec<_> = logs.filter(|file| file.extension().is_some_and(|x| x == "log")).map(File::open).collect();
    assert!(cage.stop().await);
    let mut log = String::new();
    for file in &mut logs {
        file.as_mut().unwrap().read_to_string(&mut log).unwrap();
    }
    assert_eq!((log.matches("begins").count(), log.matches("is done").count()), (1, 1), "{log}");
}

/// What a cage leaves behind that was stopped when the schedule was settled up to `settled`, in seconds since 1970.
async fn stopped_at(cage: &TestCage, schedule: &str, settled: u64) {
    let store = Store::new("test", &cage.directory().join("state"), StoreSettings { minimum_free_bytes: 0 });
    let record = format!("{{\"schedule\":\"{schedule}\",\"settled\":{settled}}}").into_bytes();
    let write = store.write(Deadline::after(Duration::from_secs(60)), move |writer| {
        writer.put(Space::Interfaces, b"schedule/nightly".to_vec(), record);
        Ok(())
    });
    write.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passed_while_the_cage_was_down_is_caught_up() {
    const DAY: u64 = 24 * 3600;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    // Ten times were due since, the last one today; none is within seconds of now, but at midnight.
    let settled = now / DAY * DAY - 10 * DAY;
    for (catch_up, expected) in [("once", vec![9]), ("all\"\ncatch_up_max = 3\noverlap = \"skip", vec![7, 0, 0])] {
        let cage = nightly(&format!("every = \"24h\"\ntime_zone = \"UTC\"\ncatch_up = \"{catch_up}\""), 10);
        stopped_at(&cage, "24h UTC", settled).await;
        let cage = cage.start().await;
        until(&cage, "is done", expected.len()).await;
        let missed: Vec<_> = told(&cage, "begins").into_iter().map(|(_, missed)| missed).collect();
        assert_eq!(missed, expected, "{}", cage.log());
        assert!(cage.stop().await);
    }
    // The record of another schedule says nothing of this one.
    let cage = nightly("every = \"1s\"\ntime_zone = \"UTC\"\ncatch_up = \"once\"", 0);
    stopped_at(&cage, "24h UTC", settled).await;
    let cage = cage.start().await;
    until(&cage, "is done", 1).await;
    assert_eq!(told(&cage, "begins")[0].1, 0);
}

/// What the requests of a cage were told that fires each second and was down for so long: seconds of the day, and how many
/// times before were missed. How many of them came before the downtime.
async fn through_a_downtime(keys: &str, downtime: Duration) -> (Vec<(u64, u64)>, usize) {
    let root = Root::new(&[("clock", &["scheduled"])]);
    root.configure(
        "clock",
        &format!(
            "[interfaces.nightly]\nprotocol = \"schedule\"\nmodule = \"scheduled\"\nevery = \"1s\"\ntime_zone = \"UTC\"\n\
             overlap = \"queue\"\nqueue_max = 1000\n{keys}"
        ),
    );
    let told = || {
        let logs = fs::read_dir(root.cage("clock").join("logs")).into_iter().flatten().flatten();
        let log: String = logs.map(|log| fs::read_to_string(log.path()).unwrap_or_default()).collect();
        told_in(&log, "begins")
    };
    let mut run = root.run("clock").await;
    eventually("two times", || (told().len() >= 2).then_some(())).await;
    root.stop("clock").await;
    run.wait().await.unwrap();
    let before = told().len();
    tokio::time::sleep(downtime).await;
    let mut run = root.run("clock").await;
    eventually("three more times", || (told().len() >= before + 3).then_some(())).await;
    root.stop("clock").await;
    run.wait().await.unwrap();
    let second = |time: &str| {
        let clock = &time[time.find('T').unwrap() + 1..][..8];
        clock.split(':').fold(0, |sum, part| sum * 60 + part.parse::<u64>().unwrap())
    };
    (told().into_iter().map(|(time, missed)| (second(&time), missed)).collect(), before)
}

/// Seconds between two requests, one after the other.
fn gaps(told: &[(u64, u64)]) -> Vec<u64> {
    const DAY: u64 = 24 * 3600;
    told.windows(2).map(|pair| (pair[1].0 + DAY - pair[0].0) % DAY).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_catches_up_leaves_out_no_second_of_a_short_downtime() {
    let (told, _) = through_a_downtime("catch_up = \"all\"", Duration::from_secs(3)).await;
    assert!(gaps(&told).iter().all(|gap| *gap == 1), "{told:?}");
    assert!(told.iter().all(|(_, missed)| *missed == 0), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_catches_up_once_counts_what_it_leaves_out() {
    // A time that is no more than ten seconds late counts as on time.
    let (told, before) = through_a_downtime("catch_up = \"once\"", Duration::from_secs(14)).await;
    assert!(told[before].1 > 0, "{told:?}");
    let counted: Vec<_> = told[1..].iter().map(|(_, missed)| missed + 1).collect();
    assert_eq!(gaps(&told), counted, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_catches_nothing_up_begins_anew() {
    let (told, before) = through_a_downtime("catch_up = \"none\"", Duration::from_secs(3)).await;
    assert!(gaps(&told)[before - 1] >= 3 && told[before].1 == 0, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nightly_job_moves_the_orders_of_the_day_away_and_reports_them() {
    let allowed = |module: &str| format!("[modules.{module}]\nallow = {{ resources = [\"db\"] }}\n");
    let cage = TestCage::new()
        .module("order", "interface_web")
        .module("nightly", "interface_nightly")
        .module("resource_user", "user")
        .http("web")
        .config(&format!("[interfaces.nightly]\nprotocol = \"schedule\"\n{EVERY_SECOND}"))
        .config(&(sqlite("db", "a.db", "") + &allowed("interface_web") + &allowed("interface_nightly")))
        .config(&allowed("user"))
        .start()
        .await;
    let answer = cage.client("web").post("/", "tea").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let log = cage.logged("1 orders until ").await;
    let (_, night) = log.split_once("1 orders until ").unwrap();
    let night = night.split_whitespace().next().unwrap().trim_matches('"');
    assert_eq!(rows(&cage, "db", "select item from archive").await, json!([["tea"]]));
    assert_eq!(rows(&cage, "db", "select count(*) from orders").await, json!([[0]]));
    let store = &cage.host().cage(cage.name()).unwrap().dispatcher().services().store;
    let calls = store.calls(&CallFilter { limit: 10, ..CallFilter::default() }).unwrap();
    let report = calls.iter().find(|call| call.id == night).unwrap_or_else(|| panic!("{night} is not in {calls:?}"));
    assert_eq!((&*report.module, &*report.function), ("mail", "send"));
    // Later nights find nothing.
    cage.logged("no orders until ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_store_a_schedule_warns_and_goes_on() {
    let cage = nightly("every = \"1s\"\ncatch_up = \"once\"", 0);
    // No directory can be made where a file is.
    fs::write(cage.directory().join("state"), "").unwrap();
    let cage = cage.start().await;
    until(&cage, "is done", 2).await;
    cage.logged("may catch up wrongly after a restart").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_module_times_pass_and_with_one_they_do_not() {
    let cage =
        TestCage::new().config(&format!("[interfaces.nightly]\nprotocol = \"schedule\"\n{EVERY_SECOND}")).start().await;
    cage.logged("no module is there for a scheduled request").await;
    cage.deploy("interface_nightly", &fs::read(guest("scheduled")).unwrap());
    until(&cage, "is done", 1).await;
    // A changed schedule begins anew.
    cage.configure("[interfaces.nightly]\nprotocol = \"schedule\"\ncron = \"@yearly\"\ntime_zone = \"UTC\"");
    let next = |cage: &RunningCage| {
        let snapshot = cage.snapshot();
        snapshot.cages[0].interfaces.iter().find(|known| known.interface == "nightly")?.status.clone()
    };
    let news = eventually("the next year", || next(&cage).filter(|news| news.contains("-01-01T00:00:00+00:00"))).await;
    assert!(news.starts_with("next 20"), "{news}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_together() {
    let refused = async |keys: &str| {
        let error = nightly(keys, 0).try_start().await.err().expect("mistakes");
        let StartError::Config { source, .. } = error else { panic!("{error:?}") };
        wasmcage_core::telemetry::error_chain(&source)
    };
    let keys = "cron = \"* 25 * * *\"\noverlap = \"skp\"\ntime_zone = \"Europe/Berlyn\"\ncatch_upp = \"once\"";
    let text = refused(keys).await;
    for part in
        ["\"* 25 * * *\" is no cron expression", "did you mean \"skip\"", "Europe/Berlyn", "did you mean `catch_up`"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = refused("cron = \"61 * * * * *\"").await;
    assert!(text.contains("is no cron expression") && text.contains("[second] minute hour"), "{text}");
    let text = refused("every = \"15 parsecs\"").await;
    assert!(text.contains("such as \"15m\""), "{text}");
    let text = refused("").await;
    assert!(text.contains("required and not set, like `every`"), "{text}");
    let text = refused("cron = \"@daily\"\nevery = \"1h\"").await;
    assert!(text.contains("either `cron` or `every`"), "{text}");
    let text = refused("cron = \"0 0 30 2 *\"").await;
    assert!(text.contains("no time that is still to come"), "{text}");
}
