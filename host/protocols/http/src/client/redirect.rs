//! Follows redirections to the same server, beneath the resource's `url`, up to the configured number. Any other
//! redirection is returned to the module as the response.

use http::header::{self, HeaderMap, HeaderName};
use http::uri::Uri;
use http::{Method, Response, StatusCode};

use super::config::ClientConfig;
use super::operation::{ClientRequest, has_dot_segments};

/// The headers that describe a body; they are dropped with it.
const BODY_HEADERS: [HeaderName; 4] =
    [header::CONTENT_ENCODING, header::CONTENT_LANGUAGE, header::CONTENT_LOCATION, header::CONTENT_TYPE];

/// The next request after this response; none if the response is returned to the module.
pub(super) fn next<B>(config: &ClientConfig, sent: ClientRequest, response: &Response<B>) -> Option<ClientRequest> {
    let status = response.status();
    let as_get = match status {
        StatusCode::SEE_OTHER => sent.head.method != Method::HEAD,
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => sent.head.method == Method::POST,
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => false,
        _ => return None,
    };
    let uri = location(config, &sent.head.uri, response.headers())?;
    let ClientRequest { mut head, mut body } = sent;
    head.uri = uri;
    if as_get {
        head.method = Method::GET;
        body.clear();
        BODY_HEADERS.iter().for_each(|name| drop(head.headers.remove(name)));
    }
    Some(ClientRequest { head, body })
}

/// The URL of the redirection, if it is beneath the resource's `url`.
fn location(config: &ClientConfig, from: &Uri, headers: &HeaderMap) -> Option<Uri> {
    let location = headers.get(header::LOCATION)?.to_str().ok()?;
    let location = location.split('#').next()?;
    let base = &config.base;
    let target = if location.starts_with("//") {
        return None;
    } else if location.starts_with('/') {
        location.to_owned()
    } else if location.contains("://") {
        let uri: Uri = location.parse().ok()?;
        let same = |uri: &Uri| (uri.scheme().cloned(), uri.host().map(str::to_ascii_lowercase), port(uri));
        if same(&uri) != same(from) || uri.authority()?.as_str().contains('@') {
            return None;
        }
        uri.path_and_query()?.as_str().to_owned()
    } else {
        let (directory, _) = from.path().rsplit_once('/')?;
        format!("{directory}/{location}")
    };
    let rest = target.strip_prefix(base.path.as_str())?;
    let is_beneath = rest.is_empty() || rest.starts_with(['/', '?']);
    if is_beneath && !has_dot_segments(&target) { base.join(&target[base.path.len()..]) } else { None }
}

fn port(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 })
}
