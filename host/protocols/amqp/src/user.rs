//! Who runs this process, as a fingerprint says it: what the environment says, as Postage does, else what the password database
//! says of the user's number.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// A directory service that takes longer is not waited for: the number has to do.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);
/// Of one line of the database.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// Looked for once.
pub(super) fn user() -> String {
    static USER: LazyLock<String> = LazyLock::new(|| {
        let said = ["LOGNAME", "USER", "LNAME", "USERNAME"].into_iter().find_map(|name| std::env::var(name).ok());
        said.filter(|name| !name.is_empty()).unwrap_or_else(|| of_number(rustix::process::getuid().as_raw()))
    });
    USER.clone()
}

/// The number itself, if nobody knows a name.
fn of_number(number: u32) -> String {
    let file = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = named(&file, number).or_else(|| named(&asked(number).unwrap_or_default(), number));
    found.unwrap_or_else(|| number.to_string())
}

/// By lines such as `name:x:1000:1000:..`.
fn named(lines: &str, number: u32) -> Option<String> {
    lines.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, known) = (fields.next()?, fields.nth(1)?);
        (known.parse() == Ok(number) && !name.is_empty()).then(|| name.to_owned())
    })
}

/// What the system's other databases say, such as those of a network.
fn asked(number: u32) -> Option<String> {
    let mut command = Command::new("getent");
    command.args(["passwd", &number.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let until = Instant::now() + LOOKUP_TIMEOUT;
    while child.try_wait().ok()?.is_none() {
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(LOOK);
    }
    let mut line = String::new();
    child.stdout.take()?.take(LINE_BYTES_MAX).read_to_string(&mut line).ok()?;
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_known_without_an_environment() {
        assert!(!user().is_empty());
        let lines = "root:x:0:0:root:/root:/bin/sh\n\nodd\n:x:7:7\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(named(lines, 1000).as_deref(), Some("ann"));
        assert_eq!(named(lines, 0).as_deref(), Some("root"));
        assert_eq!(named(lines, 7), None);
        assert_eq!(named(lines, 5), None);
        assert_eq!(of_number(0), "root");
        assert_eq!(of_number(4_000_000_000), "4000000000");
    }
}
