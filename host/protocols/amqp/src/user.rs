//! The name of the user that runs this process, for fingerprints: from the environment, as in Postage, or else from the
//! password database.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How long a directory service may take; after that the user's id stands for the name.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The longest line of the database that is read.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// The user's name. It is looked up once.
pub(super) fn user() -> String {
    static USER: LazyLock<String> = LazyLock::new(|| {
        let name = ["LOGNAME", "USER", "LNAME", "USERNAME"].into_iter().find_map(|name| std::env::var(name).ok());
        name.filter(|name| !name.is_empty()).unwrap_or_else(|| name_of(rustix::process::getuid().as_raw()))
    });
    USER.clone()
}

/// The name of the user with this id, or the id itself if it has no name.
fn name_of(uid: u32) -> String {
    let file = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = find(&file, uid).or_else(|| find(&getent(uid).unwrap_or_default(), uid));
    found.unwrap_or_else(|| uid.to_string())
}

/// Finds the name in lines such as `name:x:1000:1000:..`.
fn find(lines: &str, uid: u32) -> Option<String> {
    lines.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid) && !name.is_empty()).then(|| name.to_owned())
    })
}

/// The user's line in the system's other databases, such as those of a network.
fn getent(uid: u32) -> Option<String> {
    let mut command = Command::new("getent");
    command.args(["passwd", &uid.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let until = Instant::now() + LOOKUP_TIMEOUT;
    while child.try_wait().ok()?.is_none() {
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(POLL_INTERVAL);
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
        assert_eq!(find(lines, 1000).as_deref(), Some("ann"));
        assert_eq!(find(lines, 0).as_deref(), Some("root"));
        assert_eq!(find(lines, 7), None);
        assert_eq!(find(lines, 5), None);
        assert_eq!(name_of(0), "root");
        assert_eq!(name_of(4_000_000_000), "4000000000");
    }
}
