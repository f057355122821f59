//! `wasmcage ps`: what runs, as the running cages tell it themselves.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Value, json};

use super::{CommandError, RootArg, holder, print, selected};
use crate::control;
use crate::supervisor::STOPPED;
use crate::supervisor::pid_lock::Holder;

/// Show what runs: cages, interfaces, modules, versions, request counts, latencies
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage ps
  wasmcage ps hello --json")]
pub(super) struct PsArgs {
    /// Names of cages [default: all in the root]
    #[arg(value_name = "CAGE")]
    cages: Vec<String>,
    /// For programs: {\"processes\": [..], \"stopped\": [..], \"silent\": [..]}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    root: RootArg,
}

/// A cage as seen from outside.
#[derive(Default)]
struct Seen {
    /// What each process says of itself, with the cages that were asked for; by pid.
    processes: BTreeMap<u64, Value>,
    stopped: Vec<String>,
    /// Running, but not answering (yet): names and why.
    silent: Vec<(String, String)>,
}

impl PsArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let root = &self.root.root;
        let mut seen = Seen::default();
        for cage in selected(root, &self.cages)? {
            match holder(root, &cage)? {
                Holder::None => seen.stopped.push(cage),
                Holder::Pid(pid) => match control::ask(&root.join(&cage), &cage, "ps", Value::Null) {
                    Ok(process) => seen.add(process, pid),
                    Err(error) => seen.silent.push((cage, wasmcage::telemetry::error_chain(&error))),
                },
            }
        }
        if self.json {
            print(seen.json())?;
        } else {
            print(seen.table().trim_end())?;
        }
        Ok(STOPPED)
    }
}

impl Seen {
    /// Cages of one process are shown together.
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

    fn table(&self) -> String {
        let mut text = String::new();
        for process in self.processes.values() {
            for cage in process["cages"].as_array().into_iter().flatten() {
                text += &cage_table(process, cage);
            }
        }
        for (cage, error) in &self.silent {
            text += &format!("{cage}  running, but silent: {error}\n\n");
        }
        for cage in &self.stopped {
            text += &format!("{cage}  not running\n");
        }
        if text.is_empty() { "no cages\n".into() } else { text }
    }
}

fn cage_table(process: &Value, cage: &Value) -> String {
    let mut text = format!(
        "{}  pid {} (primary {}), version {}, since {}, {} in work, {} waiting\n",
        word(&cage["cage"]),
        process["pid"],
        process["primary_pid"],
        word(&process["version"]),
        word(&process["started"]),
        cage["in_work"],
        cage["waiting"],
    );
    if let Some(error) = cage["config_error"].as_str() {
        text += &format!("  cage.toml was not taken: {error}\n");
    }
    let mut rows = vec![row(["INTERFACE", "ADDRESS", "MODULE", "REQUESTS", "NOT OK", "P50", "P99"])];
    let mut notes = String::new();
    for interface in cage["interfaces"].as_array().into_iter().flatten() {
        let addresses: Vec<_> = interface["addresses"].as_array().into_iter().flatten().map(word).collect();
        let (name, module) = (word(&interface["interface"]), word(&interface["module"]));
        rows.push(with_readings([name.clone(), addresses.join(" "), module], &interface["readings"]));
        if let Some(error) = interface["error"].as_str() {
            notes += &format!("  interface {name} does not serve: {error}\n");
        }
    }
    text += &aligned(&rows);
    let mut rows = vec![row(["MODULE", "VERSION", "INSTANCES", "REQUESTS", "NOT OK", "P50", "P99"])];
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
    text += &notes;
    text.push('\n');
    text
}

type Row = [String; 7];

fn row(cells: [&str; 7]) -> Row {
    cells.map(str::to_owned)
}

fn with_readings(first: [String; 3], readings: &Value) -> Row {
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

/// Three digits are enough for a person.
fn duration(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

/// A string as it is, anything else as JSON, nothing as a dash.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

/// Nothing when there is only the heading.
fn aligned(rows: &[Row]) -> String {
    if rows.len() < 2 {
        return String::new();
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
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
                    "cage": cage, "in_work": 1, "waiting": 0, "config_error": null,
                    "interfaces": [{ "interface": "web", "protocol": "http", "module": "interface_web",
                        "addresses": ["http://127.0.0.1:8080/"], "error": null, "readings": readings }],
                    "modules": [{ "module": "interface_web", "refused": "no such export", "traps": 0,
                        "version": { "number": 2, "sha256": "0123456789abcdef", "instances": 3 }, "readings": readings }],
                }],
            })
        };
        let mut seen = Seen::default();
        seen.add(process("one"), Some(6));
        seen.add(process("two"), Some(6));
        seen.stopped.push("three".into());
        let parsed: Value = serde_json::from_str(&seen.json()).unwrap();
        assert_eq!(parsed["processes"][0]["cages"][1]["cage"], "two");
        assert_eq!(parsed["processes"][0]["primary_pid"], 6);
        assert_eq!(parsed["stopped"], json!(["three"]));
        let one = "\
one  pid 7 (primary 6), version 0.1.0, since 2026-11-20T11:00:00Z, 1 in work, 0 waiting
  INTERFACE  ADDRESS                 MODULE         REQUESTS  NOT OK  P50     P99
  web        http://127.0.0.1:8080/  interface_web  1200      100     120 µs  3.4 ms
  MODULE         VERSION           INSTANCES  REQUESTS  NOT OK  P50     P99
  interface_web  2 (0123456789ab)  3          1200      100     120 µs  3.4 ms
  module interface_web was refused: no such export

";
        assert_eq!(seen.table(), format!("{one}{}three  not running\n", one.replacen("one", "two", 1)));
        assert_eq!(Seen::default().table(), "no cages\n");
    }

    #[test]
    fn durations_are_short() {
        for (micros, expected) in [(0, "0 µs"), (999, "999 µs"), (1_500, "1.5 ms"), (2_000_000, "2.0 s")] {
            assert_eq!(duration(micros), expected);
        }
    }
}
