//! `wasmcage ps`: shows what runs, as reported by the running cages themselves.

use std::collections::BTreeMap;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use serde_json::{Value, json};

use super::{CommandError, RootArg, completion, directories, holder, print, selected};
use crate::control;
use crate::supervisor::STOPPED;
use crate::supervisor::pid_lock::LockHolder;

/// Members of the flock that a table shows, unless `--flock` asks for all.
const MEMBERS_SHOWN: usize = 20;

/// Show what runs: cages, interfaces, modules, versions, request counts, latencies, and who else is in the flock
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage ps
  wasmcage ps hello --json
  wasmcage ps hello --flock     with every copy of a cage that it knows elsewhere")]
pub(super) struct PsArgs {
    /// Names of cages [default: all in the root]
    #[arg(value_name = "CAGE", add = ArgValueCandidates::new(completion::cages))]
    cages: Vec<String>,
    /// Show every copy of the flock's cages that is known elsewhere, not the first 20 only
    #[arg(long)]
    flock: bool,
    /// For programs: {"processes": [..], "stopped": [..], "silent": [..]}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    root: RootArg,
}

/// The state of the requested cages.
#[derive(Default)]
struct CageStates {
    /// The report of each process by pid, with the requested cages only.
    processes: BTreeMap<u64, Value>,
    stopped: Vec<String>,
    /// Cages that run but do not answer (yet), and why.
    silent: Vec<(String, String)>,
}

impl PsArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let root = &self.root.root;
        let mut seen = CageStates::default();
        for cage in selected(root, &self.cages)? {
            match holder(root, &cage)? {
                LockHolder::None => seen.stopped.push(cage),
                LockHolder::Pid(pid) => match control::ask(&directories(root).run(&cage), &cage, "ps", Value::Null) {
                    Ok(process) => seen.add(process, pid),
                    Err(error) => seen.silent.push((cage, wasmcage_core::telemetry::error_chain(&error))),
                },
            }
        }
        if self.json {
            print(seen.json())?;
        } else {
            let table = seen.table(if self.flock { usize::MAX } else { MEMBERS_SHOWN });
            match table.is_empty() {
                true => {
                    print(format_args!("there are no cages in {}; --root names another directory", root.display()))?
                }
                false => print(table.trim_end())?,
            }
        }
        Ok(STOPPED)
    }
}

impl CageStates {
    /// Adds the report of a process. Cages of one process are shown together.
    fn add(&mut self, mut process: Value, primary: Option<i32>) {
        process["primary_pid"] = json!(primary);
        let pid = process["pid"].as_u64().unwrap_or_default();
        match self.processes.entry(pid) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(process);
            }
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                if let (Some(cages), Some(more)) =
                    (entry.get_mut()["cages"].as_array_mut(), process["cages"].as_array_mut())
                {
                    cages.append(more);
                }
            }
        }
    }

    fn json(&self) -> String {
        let silent: Vec<_> = self.silent.iter().map(|(cage, error)| json!({ "cage": cage, "error": error })).collect();
        let processes: Vec<_> = self.processes.values().collect();
        let all = json!({ "processes": processes, "stopped": self.stopped, "silent": silent });
        format!("{all:#}")
    }

    fn table(&self, members_max: usize) -> String {
        let mut text = String::new();
        for process in self.processes.values() {
            for cage in process["cages"].as_array().into_iter().flatten() {
                text += &cage_table(process, cage, members_max);
            }
        }
        for (cage, error) in &self.silent {
            text += &format!("{cage}  running, but silent: {error}\n\n");
        }
        for cage in &self.stopped {
            text += &format!("{cage}  not running\n");
        }
        text
    }
}

fn cage_table(process: &Value, cage: &Value, members_max: usize) -> String {
    let mut text = format!(
        "{}  pid {} (primary {}), flock {}, version {}, since {}, {} in work, {} waiting\n",
        word(&cage["cage"]),
        process["pid"],
        process["primary_pid"],
        word(&cage["flock"]),
        word(&process["version"]),
        word(&process["started"]),
        cage["in_work"],
        cage["waiting"],
    );
    if let Some(error) = cage["config_error"].as_str() {
        text += &format!("  cage.toml was not taken: {error}\n");
    }
    let mut rows = vec![["INTERFACE", "ADDRESS", "MODULE", "REQUESTS", "NOT OK", "P50", "P99"].map(str::to_owned)];
    let mut notes = String::new();
    for interface in cage["interfaces"].as_array().into_iter().flatten() {
        let (name, module) = (word(&interface["interface"]), word(&interface["module"]));
        let addresses = words(&interface["addresses"]);
        let address = match interface["status"].as_str() {
            None => addresses,
            Some(status) if addresses == "-" => status.to_owned(),
            Some(status) => {
                notes += &format!("  interface {name}: {status}\n");
                addresses
            }
        };
        rows.push(with_readings([name.clone(), address, module], &interface["readings"]));
        if let Some(error) = interface["error"].as_str() {
            notes += &format!("  interface {name} does not serve: {error}\n");
        }
    }
    text += &aligned(&rows);
    let mut rows = vec![["MODULE", "VERSION", "INSTANCES", "REQUESTS", "NOT OK", "P50", "P99"].map(str::to_owned)];
    for module in cage["modules"].as_array().into_iter().flatten() {
        let (name, version) = (word(&module["module"]), &module["version"]);
        let shown = match version["sha256"].as_str() {
            Some(sha256) => format!("{} ({})", version["number"], sha256.get(..12).unwrap_or(sha256)),
            None => "none".into(),
        };
        rows.push(with_readings([name.clone(), shown, word(&version["instances"])], &module["readings"]));
        if let Some(reason) = module["refused"].as_str() {
            notes += &format!("  module {name} was refused: {reason}\n");
        }
    }
    text += &aligned(&rows);
    text += &resources_table(&cage["resources"]);
    for resource in cage["resources"].as_array().into_iter().flatten() {
        if let Some(trouble) = resource["trouble"].as_str() {
            notes += &format!("  resource {} does not work: {trouble}\n", word(&resource["resource"]));
        }
    }
    text += &members_table(&cage["members"], members_max);
    text += &notes;
    if let Some(last) = cage["panics"]["last"].as_str() {
        text += &format!("  {} panics of the host's own code, the last: {last}\n", cage["panics"]["count"]);
    }
    text.push('\n');
    text
}

/// Column "IN USE" has the connections in use and the size of the pool.
fn resources_table(resources: &Value) -> String {
    let mut rows = vec![["RESOURCE", "PROTOCOL", "IN USE", "REQUESTS", "NOT OK", "P50", "P99"].map(str::to_owned)];
    for resource in resources.as_array().into_iter().flatten() {
        let connections = format!("{} of {}", resource["in_use"], resource["size"]);
        let first = [word(&resource["resource"]), word(&resource["protocol"]), connections];
        rows.push(with_readings(first, &resource["readings"]));
    }
    aligned(&rows)
}

/// Lists the copies of other cages that this one knows.
fn members_table(members: &Value, members_max: usize) -> String {
    let head = ["MEMBER", "COPY", "NODE", "VERSION", "ADDRESS", "FOUND", "HEALTH", "IN FLIGHT", "LATENCY"];
    let mut rows = vec![head.map(str::to_owned)];
    let members = members.as_array().map(Vec::as_slice).unwrap_or_default();
    rows.extend(members.iter().take(members_max).map(|member| {
        let [cage, copy, node, version, found, health, in_flight] =
            ["cage", "copy", "node", "version", "found", "health", "in_flight"].map(|key| word(&member[key]));
        let latency = member["latency_us"].as_u64().map_or_else(|| "-".to_owned(), duration);
        [cage, copy, node, version, words(&member["addresses"]), found, health, in_flight, latency]
    }));
    let mut text = aligned(&rows);
    if members.len() > members_max {
        text += &format!("  and {} more: --flock shows all\n", members.len() - members_max);
    }
    text
}

fn with_readings(first: [String; 3], readings: &Value) -> [String; 7] {
    let requests = readings["requests"].as_u64().unwrap_or_default();
    let ok = readings["outcomes"]["ok"].as_u64().unwrap_or_default();
    let latency = |name: &str| match readings["processing"][name].as_u64() {
        Some(_) if requests == 0 => "-".to_owned(),
        Some(micros) => duration(micros),
        None => "-".to_owned(),
    };
    let [a, b, c] = first;
    [a, b, c, requests.to_string(), requests.saturating_sub(ok).to_string(), latency("p50_us"), latency("p99_us")]
}

/// Formats a duration with up to three digits before the point.
fn duration(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

/// Formats a cell: a string as it is, null and an empty string as a dash, anything else as JSON.
pub(super) fn word(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

/// Formats a list of strings.
fn words(list: &Value) -> String {
    let words: Vec<_> = list.as_array().into_iter().flatten().map(word).collect();
    if words.is_empty() { "-".into() } else { words.join(" ") }
}

/// Aligns the columns of a table. Returns no text when there is only the heading.
pub(super) fn aligned<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    if rows.len() < 2 {
        return String::new();
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let lines = rows.iter().map(|row| {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("  {}\n", cells.join("  ").trim_end())
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_two_cages_is_one_in_json_and_two_in_the_table() {
        let readings = json!({
            "requests": 1200, "in_work": 0, "outcomes": { "ok": 1100, "failed": 100 },
            "processing": { "p50_us": 120, "p90_us": 200, "p99_us": 3400, "max_us": 9000 },
        });
        let process = |cage: &str| {
            json!({
                "node": "n", "pid": 7, "version": "0.1.0", "started": "2026-11-20T11:00:00Z", "lanes": 2,
                "cages": [{
                    "cage": cage, "in_work": 1, "waiting": 0, "config_error": null, "flock": "default",
                    "interfaces": [{ "interface": "web", "protocol": "http", "module": "interface_web",
                        "addresses": ["http://127.0.0.1:8080/"], "error": null, "readings": readings },
                        { "interface": "mail", "protocol": "amqp", "module": "", "status": "the broker takes no messages",
                        "addresses": ["amqp://b (q)"], "error": null, "readings": { "requests": 0 } },
                        { "interface": "rpc", "protocol": "rpc", "module": "", "addresses": [], "error": null,
                        "readings": { "requests": 0 } },
                        { "interface": "nightly", "protocol": "schedule", "module": "report", "addresses": [],
                        "status": "next 2026-11-22T03:00:00+01:00", "error": null, "readings": { "requests": 0 } }],
                    "members": [{ "cage": "far", "copy": "0123456789abcdef", "node": "", "version": "0.1.0",
                        "addresses": ["10.0.0.7:7420", "[fe80::1]:7420"], "found": "multicast", "health": "connected",
                        "in_flight": 3, "latency_us": 250 },
                        { "cage": "near", "copy": "fedcba9876543210", "node": "n", "version": "", "addresses": [],
                        "found": "registry", "health": "idle", "in_flight": 0, "latency_us": null }],
                    "modules": [{ "module": "interface_web", "refused": "no such export", "traps": 0,
                        "version": { "number": 2, "sha256": "0123456789abcdef", "instances": 3 }, "readings": readings }],
                    "resources": [{ "resource": "db", "protocol": "sql", "size": 16, "in_use": 2, "readings": readings,
                        "trouble": "the broker takes no messages" }],
                    "panics": { "count": 3, "last": "interface web panicked at x.rs:1:2: why" },
                }],
            })
        };
        let mut seen = CageStates::default();
        seen.add(process("one"), Some(6));
        seen.add(process("two"), Some(6));
        seen.stopped.push("three".into());
        let parsed: Value = serde_json::from_str(&seen.json()).unwrap();
        assert_eq!(parsed["processes"][0]["cages"][1]["cage"], "two");
        assert_eq!(parsed["processes"][0]["primary_pid"], 6);
        assert_eq!(parsed["stopped"], json!(["three"]));
        let one = "\
one  pid 7 (primary 6), flock default, version 0.1.0, since 2026-11-20T11:00:00Z, 1 in work, 0 waiting
  INTERFACE  ADDRESS                         MODULE         REQUESTS  NOT OK  P50     P99
  web        http://127.0.0.1:8080/          interface_web  1200      100     120 µs  3.4 ms
  mail       amqp://b (q)                    -              0         0       -       -
  rpc        -                               -              0         0       -       -
  nightly    next 2026-11-22T03:00:00+01:00  report         0         0       -       -
  MODULE         VERSION           INSTANCES  REQUESTS  NOT OK  P50     P99
  interface_web  2 (0123456789ab)  3          1200      100     120 µs  3.4 ms
  RESOURCE  PROTOCOL  IN USE   REQUESTS  NOT OK  P50     P99
  db        sql       2 of 16  1200      100     120 µs  3.4 ms
  MEMBER  COPY              NODE  VERSION  ADDRESS                       FOUND      HEALTH     IN FLIGHT  LATENCY
  far     0123456789abcdef  -     0.1.0    10.0.0.7:7420 [fe80::1]:7420  multicast  connected  3          250 µs
  near    fedcba9876543210  n     -        -                             registry   idle       0          -
  interface mail: the broker takes no messages
  module interface_web was refused: no such export
  resource db does not work: the broker takes no messages
  3 panics of the host's own code, the last: interface web panicked at x.rs:1:2: why

";
        assert_eq!(seen.table(MEMBERS_SHOWN), format!("{one}{}three  not running\n", one.replacen("one", "two", 1)));
        let short = seen.table(1);
        assert!(short.contains("far") && !short.contains("near"), "{short}");
        assert!(short.contains("  and 1 more: --flock shows all\n"), "{short}");
        assert_eq!(CageStates::default().table(MEMBERS_SHOWN), "");
    }

    #[test]
    fn durations_are_short() {
        for (micros, expected) in [(0, "0 µs"), (999, "999 µs"), (1_500, "1.5 ms"), (2_000_000, "2.0 s")] {
            assert_eq!(duration(micros), expected);
        }
    }
}
