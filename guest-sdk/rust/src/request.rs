//! Methods for reading a request.

use serde::de::DeserializeOwned;

use crate::bindings::imports::wasmcage::cage::types::Request;
use crate::error::{Error, Result};

impl Request {
    /// Returns the HTTP method, or what another protocol has in its place.
    pub fn method(&self) -> &str {
        &self.action
    }

    /// Returns HTTP path and query as sent, or what another protocol has in their place.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Returns the target without its query, as sent.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Returns the decoded parameters of the query in order. A parameter without `=` has an empty value.
    pub fn parameters(&self) -> impl Iterator<Item = (String, String)> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
    }

    /// Returns the first value of the query parameter `name`, decoded.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.parameters().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// Returns the first value of the header `name`, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers_named(name).next()
    }

    /// Returns all values of the header `name`, in order.
    pub fn headers_named(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers.iter().filter(move |(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Returns the body as text.
    ///
    /// # Errors
    /// `BadArguments` when it is not UTF-8.
    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.body)
            .map_err(|error| Error::bad_arguments(format_args!("the body is no text: {error}")))
    }

    /// Converts the body from JSON.
    ///
    /// # Errors
    /// `BadArguments` when it is not JSON or does not fit `T`; the text says where.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Error::bad_arguments(format_args!("the body is not the JSON expected: {error}")))
    }
}

/// Decodes `%XX` and `+`. A `%` without two hexadecimal digits stays; bytes that are no UTF-8 become U+FFFD.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |offset: usize| bytes.get(at + offset).and_then(|digit| char::from(*digit).to_digit(16));
        match (bytes[at], hex(1), hex(2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
                continue;
            }
            (b'+', ..) => decoded.push(b' '),
            (byte, ..) => decoded.push(byte),
        }
        at += 1;
    }
    match String::from_utf8(decoded) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str) -> Request {
        Request {
            id: String::new(),
            interface_name: String::new(),
            protocol: "http".into(),
            action: "GET".into(),
            target: target.into(),
            headers: vec![("accept".into(), "a".into()), ("x".into(), "1".into()), ("x".into(), "2".into())],
            body: b"{\"a\": 1}".to_vec(),
        }
    }

    #[track_caller]
    fn check(target: &str, path: &str, parameters: &[(&str, &str)]) {
        let request = request(target);
        assert_eq!(request.path(), path);
        let came: Vec<_> = request.parameters().collect();
        let came: Vec<_> = came.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(came, parameters);
    }

    #[test]
    fn target_is_split_and_decoded() {
        check("/", "/", &[]);
        check("/a%20b", "/a%20b", &[]);
        check("/?", "/", &[]);
        check("/a?b=c&d", "/a", &[("b", "c"), ("d", "")]);
        check("/?a=1&a=2&&", "/", &[("a", "1"), ("a", "2")]);
        check("/?a%3db=c%26d+e", "/", &[("a=b", "c&d e")]);
        check("/?a=b=c?d", "/", &[("a", "b=c?d")]);
        check("/?a=%C3%A4%ff", "/", &[("a", "ä\u{fffd}")]);
        check("/?a=%&b=%2&c=%zz", "/", &[("a", "%"), ("b", "%2"), ("c", "%zz")]);
        check("work", "work", &[]);
    }

    #[test]
    fn headers_and_body_are_read() {
        let mut request = request("/?a=1&a=2");
        assert_eq!(request.parameter("a").as_deref(), Some("1"));
        assert_eq!(request.parameter("b"), None);
        assert_eq!(request.header("Accept"), Some("a"));
        assert_eq!(request.header("y"), None);
        assert_eq!(request.headers_named("X").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(request.text().unwrap(), "{\"a\": 1}");
        assert_eq!(request.json::<std::collections::BTreeMap<String, i32>>().unwrap()["a"], 1);
        assert!(matches!(request.json::<String>(), Err(Error::BadArguments(_))));
        request.body = vec![0xff];
        assert!(matches!(request.text(), Err(Error::BadArguments(_))));
    }
}
