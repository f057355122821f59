//! Addresses to listen at.

use std::str::FromStr;

/// `host:port`: the host may be a name, the port 0 for any free one.
pub struct ListenAddress(pub String);

impl FromStr for ListenAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(Self(text.to_owned())),
            _ => Err(()),
        }
    }
}
