//! `wasmcage doctor`: checks how the cages of a root can find and reach others, what does not work, and what to do about
//! it. It makes, starts and removes nothing.

mod cage;
mod machine;
mod peer;
mod reverse;

use std::collections::BTreeSet;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use serde_json::{Value, json};
use wasmcage_config::CageConfig;
use wasmcage_core::telemetry::error_chain;
use wasmcage_fabric::{LanConfig, RpcConfig};

use super::{CommandError, RootArg, completion, config, print, selected};
use crate::supervisor::{FAILED, STOPPED};

/// Tell whether cages can find and call each other, why not, and what to do
///
/// Exits with 1 when something fails. Run it on both machines when cages on two of them do not find each other.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage doctor
  wasmcage doctor worker
  wasmcage doctor --json                   for programs: \"findings\", each with \"verdict\": ok, warn or fail")]
pub(super) struct DoctorArgs {
    /// Names of cages [default: all in the root]
    #[arg(value_name = "CAGE", add = ArgValueCandidates::new(completion::cages))]
    cages: Vec<String>,
    /// For programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    root: RootArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Severity {
    Ok,
    /// It works, but not for long, or not completely.
    Warn,
    Fail,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

struct Finding {
    severity: Severity,
    /// The cage that it concerns; none if it concerns the machine.
    cage: Option<String>,
    check: String,
    text: String,
    /// Advice: what to do, or to try from another machine.
    hint: Option<String>,
}

/// The findings about the machine or about one cage, in order.
struct Findings {
    cage: Option<String>,
    list: Vec<Finding>,
}

impl Findings {
    fn of(cage: Option<&str>) -> Self {
        Self { cage: cage.map(str::to_owned), list: Vec::new() }
    }

    fn add(&mut self, severity: Severity, check: &str, text: impl Into<String>, hint: Option<String>) {
        self.list.push(Finding { severity, cage: self.cage.clone(), check: check.to_owned(), text: text.into(), hint });
    }

    fn ok(&mut self, check: &str, text: impl Into<String>) {
        self.add(Severity::Ok, check, text, None);
    }

    fn warn(&mut self, check: &str, text: impl Into<String>, hint: impl Into<String>) {
        self.add(Severity::Warn, check, text, Some(hint.into()));
    }

    fn fail(&mut self, check: &str, text: impl Into<String>, hint: impl Into<String>) {
        self.add(Severity::Fail, check, text, Some(hint.into()));
    }
}

/// A cage whose interface `rpc` uses fabric `lan`.
struct LanCage {
    config: CageConfig,
    lan: LanConfig,
}

impl DoctorArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let root = &self.root.root;
        let mut of_cages = Vec::new();
        let mut lan_cages = Vec::new();
        for cage in selected(root, &self.cages)? {
            let mut findings = Findings::of(Some(&cage));
            let mut reverse = Vec::new();
            if let Some(config) = usable(config(root, &cage), &mut findings) {
                reverse = reverse::read(&config, &mut findings);
                lan_cages.extend(read(config, &mut findings));
            }
            of_cages.push((cage, reverse, findings));
        }
        let mut all = Findings::of(None);
        machine::check(&lan_cages, &mut all);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| CommandError::failed("cannot start a runtime to connect with", error))?;
        for (cage, reverse, mut findings) in of_cages {
            if let Some(lan_cage) = lan_cages.iter().find(|lan_cage| lan_cage.config.cage == cage) {
                cage::check(root, lan_cage, &runtime, &mut findings)?;
            }
            for interface in &reverse {
                reverse::check(root, interface, &runtime, &mut findings)?;
            }
            all.list.append(&mut findings.list);
        }
        print(if self.json { format!("{:#}", report_json(&all.list)) } else { report(&all.list) })?;
        let failed = all.list.iter().any(|finding| finding.severity == Severity::Fail);
        Ok(if failed { FAILED } else { STOPPED })
    }
}

fn usable(config: Result<CageConfig, CommandError>, findings: &mut Findings) -> Option<CageConfig> {
    match config {
        Ok(config) => Some(config),
        Err(error) => {
            findings.fail("cage.toml", error_chain(&error), "correct it; a running cage goes on with what it had");
            None
        }
    }
}

/// Reads the configuration of interface `rpc`; none if there is nothing to check.
fn read(config: CageConfig, findings: &mut Findings) -> Option<LanCage> {
    let Some(interface) = config.interfaces.get("rpc").filter(|interface| interface.enabled) else {
        findings.warn(
            "interfaces.rpc",
            "not enabled: cages in other processes cannot call this one, nor it them",
            "remove `enabled = false` from [interfaces.rpc] if they should",
        );
        return None;
    };
    match RpcConfig::read(interface.section.clone()).map(|rpc| rpc.fabric.into_lan()) {
        Ok(Some(lan)) => Some(LanCage { config, lan }),
        Ok(None) => {
            findings.ok("fabric", "nats: calls go through its servers, and nothing that is checked here is needed");
            None
        }
        Err(error) => {
            findings.fail("interfaces.rpc", error_chain(&error), "correct it in cage.toml");
            None
        }
    }
}

/// Returns the flocks of these cages, sorted.
fn flocks(cages: &[LanCage]) -> BTreeSet<&str> {
    cages.iter().map(|cage| cage.config.flock.as_str()).collect()
}

fn report(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.chars().count()).max().unwrap_or_default();
    let mut text = String::new();
    let mut last = None;
    for finding in findings {
        if last != Some(&finding.cage) {
            text += &match &finding.cage {
                None => "machine\n".to_owned(),
                Some(cage) => format!("cage {cage}\n"),
            };
            last = Some(&finding.cage);
        }
        let Finding { severity, check, text: found, .. } = finding;
        text += &format!("  {:<4}  {check:<width$}  {found}\n", severity.word());
        if let Some(hint) = &finding.hint {
            text += &format!("  {:>4}  {:<width$}  {hint}\n", "->", "");
        }
    }
    text.trim_end().to_owned()
}

fn report_json(findings: &[Finding]) -> Value {
    let one = |finding: &Finding| {
        let Finding { severity, cage, check, text, hint } = finding;
        json!({ "verdict": severity.word(), "cage": cage, "check": check, "text": text, "hint": hint })
    };
    json!({ "findings": findings.iter().map(one).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_grouped_by_what_they_concern() {
        let mut all = Findings::of(None);
        all.ok("clock", "right");
        let mut cage = Findings::of(Some("worker"));
        cage.fail("listen", "taken", "take another");
        cage.warn("keys", "old", "renew them");
        all.list.append(&mut cage.list);
        let expected = "machine\n  ok    clock   right\ncage worker\n  fail  listen  taken\n    ->          take another\n  \
                        warn  keys    old\n    ->          renew them";
        assert_eq!(report(&all.list), expected);
        assert_eq!(report_json(&all.list)["findings"][1]["verdict"], "fail");
        assert_eq!(report(&[]), "");
    }
}
