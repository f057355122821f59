//! Encodes calls and their answers, for other cages over any transport, and for retried calls in the store. Messages come from
//! peers, so every length is checked against the bytes received, and no more than those is allocated.
//!
//! Numbers are big-endian; `text` is a u16 length and that many bytes of UTF-8; `long` is the same with a u32 length.
//!
//! Head of a call:
//! ```text
//! u8  version, 1
//! u8  flags: 1 idempotent
//! u8  log level of the request, 1 error to 5 trace; 0 not set
//! u32 milliseconds left until the deadline
//! i64 seconds, u64 random: the request's id
//! text cage, text module, text function
//! text interface, text protocol: where the request came in
//! text description, empty for none
//! u16 number of callers, text each (`cage/module`, the outermost first)
//! u8  number of facts, text name and text value each
//! u8  kind of the arguments: 0 JSON, 1 bytes, 2 component values; after 2: 16 bytes of fingerprint
//! ```
//! Head of an answer:
//! ```text
//! u8  version, 1
//! u8  0 to 2: kind of the result, as above; 16 and more: an error, in the order of `ErrorCode`. New errors are added at the end:
//!     for a peer that does not know one, the call is lost. Errors of guests are among the first, which all peers know.
//! long text of the error
//! ```
//! The body is apart from the head: arguments or result as they are, nothing for an error.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::call::{Call, CallAction};
use crate::error::DispatchError;
use crate::request::{Facts, Payload, RequestContext, RequestId};
use crate::telemetry::Level;
use crate::values::{Fingerprint, Values};

/// Largest head of a call or an answer.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
const VERSION: u8 = 1;
const IDEMPOTENT: u8 = 1;
/// Stands, with an empty module, for `CallAction::AcceptRetried`.
const ACCEPT_RETRIED: &str = "accept-retried-call";
/// Longer texts of errors are cut.
const ERROR_TEXT_BYTES_MAX: usize = 8 << 10;
/// Other texts in a head that are longer cannot be sent.
const TEXT_BYTES_MAX: usize = 4 << 10;
const CALLERS_MAX: usize = 1_000;
const FACTS_MAX: usize = u8::MAX as usize;

/// A head and its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub head: Bytes,
    pub body: Bytes,
}

impl Message {
    /// Joins both: `u32` length of the head, head, body.
    pub fn into_bytes(self) -> Vec<u8> {
        let Self { head, body } = self;
        let mut bytes = Vec::with_capacity(4 + head.len() + body.len());
        bytes.put_u32(u32::try_from(head.len()).expect("heads are bounded"));
        bytes.put_slice(&head);
        bytes.put_slice(&body);
        bytes
    }

    /// Separates head and body; none when bytes are missing.
    pub fn from_bytes(mut bytes: Bytes) -> Option<Self> {
        let head = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
        if head > bytes.len() {
            return None;
        }
        Some(Self { head: bytes.split_to(head), body: bytes })
    }
}

/// A message that is no call or answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what}: {text}")]
pub struct MalformedMessage {
    what: &'static str,
    text: String,
}

/// Encodes a call.
///
/// # Errors
/// `BadRequest` when a name is too long, or there are too many callers.
pub fn encode_call(call: &Call) -> Result<Message, DispatchError> {
    let Call { context, cage, action, arguments, idempotent } = call;
    let (module, function) = match action {
        CallAction::Run { module, function } => (module.as_str(), function.as_str()),
        CallAction::AcceptRetried => ("", ACCEPT_RETRIED),
    };
    let mut head = BytesMut::with_capacity(256);
    head.put_u8(VERSION);
    head.put_u8(if *idempotent { IDEMPOTENT } else { 0 });
    head.put_u8(context.level().map_or(0, |level| level as u8));
    head.put_u32(u32::try_from(context.deadline.left().as_millis()).unwrap_or(u32::MAX));
    let (seconds, random) = context.id.parts();
    head.put_i64(seconds);
    head.put_u64(random);
    let description = context.description().unwrap_or_default();
    for part in [cage, module, function, &*context.interface, &*context.protocol, &description] {
        put_text(&mut head, part)?;
    }
    let callers = context.callers.len();
    if callers > CALLERS_MAX {
        return Err(DispatchError::BadRequest(format!("{callers} callers, more than {CALLERS_MAX}")));
    }
    head.put_u16(callers as u16);
    for caller in &context.callers {
        put_text(&mut head, caller)?;
    }
    // A fact that is too long is left out, rather than failing the call.
    let fits = |(name, value): &(&str, &str)| name.len().max(value.len()) <= TEXT_BYTES_MAX;
    let facts: Vec<_> = context.facts.public().filter(fits).take(FACTS_MAX).collect();
    head.put_u8(facts.len() as u8);
    for (name, value) in facts {
        put_text(&mut head, name)?;
        put_text(&mut head, value)?;
    }
    let body = put_payload(&mut head, arguments);
    if head.len() > HEAD_BYTES_MAX {
        return Err(DispatchError::BadRequest(format!(
            "{} bytes of names, callers and facts, more than {HEAD_BYTES_MAX}",
            head.len()
        )));
    }
    Ok(Message { head: head.freeze(), body })
}

/// Decodes a call from `caller`, whose identity is verified. The call's facts and callers are set to this identity.
///
/// # Errors
/// The message is no call.
pub fn decode_call(message: Message, caller: &str) -> Result<Call, MalformedMessage> {
    let mut reader = HeadReader { what: "call", rest: message.head };
    reader.version()?;
    let idempotent = reader.u8()? & IDEMPOTENT != 0;
    let level = Level::from_u8(reader.u8()?);
    let left = Duration::from_millis(reader.u32()?.into());
    let id = RequestId::from_parts(reader.u64()? as i64, reader.u64()?);
    let (cage, module, function) = (reader.text()?, reader.text()?, reader.text()?);
    let (interface, protocol, description) = (reader.text()?, reader.text()?, reader.text()?);
    let callers = reader.callers(caller)?;
    let facts = reader.facts(caller, &callers)?;
    let arguments = reader.payload(message.body)?;
    reader.end()?;
    let action = match (&*module, &*function) {
        ("", ACCEPT_RETRIED) => CallAction::AcceptRetried,
        ("", other) => return Err(reader.malformed(format!("function {other:?} of no module"))),
        _ => CallAction::Run { module, function },
    };
    let context = RequestContext::new(interface.into(), protocol, left, Arc::new(facts)).continued(id, callers);
    if let Some(level) = level {
        context.set_level(level);
    }
    if !description.is_empty() {
        context.describe(&description);
    }
    Ok(Call { context: Arc::new(context), cage, action, arguments, idempotent })
}

/// Encodes an answer. A result that is too long becomes an error, and a long error text is cut.
pub fn encode_answer(result: Result<Payload, DispatchError>, body_bytes_max: usize) -> Message {
    let mut head = BytesMut::with_capacity(64);
    head.put_u8(VERSION);
    let result = result.and_then(|payload| match body_bytes(&payload) {
        bytes if bytes > body_bytes_max => {
            Err(DispatchError::Failed(format!("the result has {bytes} bytes, more than {body_bytes_max}")))
        }
        _ => Ok(payload),
    });
    match result {
        Ok(payload) => {
            let body = put_payload(&mut head, &payload);
            Message { head: head.freeze(), body }
        }
        Err(error) => {
            let (code, text) = to_code(error);
            head.put_u8(code as u8);
            let mut end = text.len().min(ERROR_TEXT_BYTES_MAX);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            head.put_u32(end as u32);
            head.put_slice(&text.as_bytes()[..end]);
            Message { head: head.freeze(), body: Bytes::new() }
        }
    }
}

/// Decodes an answer.
///
/// # Errors
/// The message is no answer.
pub fn decode_answer(message: Message) -> Result<Result<Payload, DispatchError>, MalformedMessage> {
    let mut reader = HeadReader { what: "answer", rest: message.head };
    reader.version()?;
    let answer = match reader.rest.first() {
        Some(code) if *code < ErrorCode::FIRST => Ok(reader.payload(message.body)?),
        Some(_) | None => {
            let code = reader.u8()?;
            let length = reader.u32()? as usize;
            let text = reader.utf8(length)?;
            let Some(code) = ErrorCode::ALL.into_iter().find(|known| *known as u8 == code) else {
                return Err(reader.malformed(format!("unknown kind {code}: {text}")));
            };
            Err(from_code(code, text))
        }
    };
    reader.end()?;
    Ok(answer)
}

/// Returns the length of arguments or a result.
pub fn body_bytes(payload: &Payload) -> usize {
    match payload {
        Payload::Json(json) => json.len(),
        Payload::Bytes(bytes) => bytes.len(),
        Payload::Values(values) => values.bytes().len(),
    }
}

/// Codes of errors in answers.
#[derive(Clone, Copy)]
#[repr(u8)]
enum ErrorCode {
    BadRequest = 16,
    NoSuchCage,
    NoSuchModule,
    NoSuchFunction,
    NotPermitted,
    Refused,
    Failed,
    Trap,
    DeadlineExceeded,
    Lost,
    Overloaded,
    Draining,
    Host,
    Unreachable,
}

impl ErrorCode {
    const FIRST: u8 = Self::BadRequest as u8;
    const ALL: [Self; 14] = [
        Self::BadRequest,
        Self::NoSuchCage,
        Self::NoSuchModule,
        Self::NoSuchFunction,
        Self::NotPermitted,
        Self::Refused,
        Self::Failed,
        Self::Trap,
        Self::DeadlineExceeded,
        Self::Lost,
        Self::Overloaded,
        Self::Draining,
        Self::Host,
        Self::Unreachable,
    ];
}

fn to_code(error: DispatchError) -> (ErrorCode, String) {
    match error {
        DispatchError::BadRequest(text) => (ErrorCode::BadRequest, text),
        DispatchError::NoSuchCage(text) => (ErrorCode::NoSuchCage, text),
        DispatchError::NoSuchModule(text) => (ErrorCode::NoSuchModule, text),
        DispatchError::NoSuchFunction(text) => (ErrorCode::NoSuchFunction, text),
        DispatchError::NotPermitted(text) => (ErrorCode::NotPermitted, text),
        DispatchError::Refused(text) => (ErrorCode::Refused, text),
        DispatchError::Failed(text) => (ErrorCode::Failed, text),
        DispatchError::Trap(text) => (ErrorCode::Trap, text),
        DispatchError::DeadlineExceeded(text) => (ErrorCode::DeadlineExceeded, text),
        DispatchError::Lost(text) => (ErrorCode::Lost, text),
        DispatchError::Overloaded(text) => (ErrorCode::Overloaded, text),
        DispatchError::Draining => (ErrorCode::Draining, String::new()),
        DispatchError::Host(text) => (ErrorCode::Host, text),
        DispatchError::Unreachable(text) => (ErrorCode::Unreachable, text),
    }
}

fn from_code(code: ErrorCode, text: String) -> DispatchError {
    match code {
        ErrorCode::BadRequest => DispatchError::BadRequest(text),
        ErrorCode::NoSuchCage => DispatchError::NoSuchCage(text),
        ErrorCode::NoSuchModule => DispatchError::NoSuchModule(text),
        ErrorCode::NoSuchFunction => DispatchError::NoSuchFunction(text),
        ErrorCode::NotPermitted => DispatchError::NotPermitted(text),
        ErrorCode::Refused => DispatchError::Refused(text),
        ErrorCode::Failed => DispatchError::Failed(text),
        ErrorCode::Trap => DispatchError::Trap(text),
        ErrorCode::DeadlineExceeded => DispatchError::DeadlineExceeded(text),
        ErrorCode::Lost => DispatchError::Lost(text),
        ErrorCode::Overloaded => DispatchError::Overloaded(text),
        ErrorCode::Draining => DispatchError::Draining,
        ErrorCode::Host => DispatchError::Host(text),
        ErrorCode::Unreachable => DispatchError::Unreachable(text),
    }
}

fn put_text(head: &mut BytesMut, text: &str) -> Result<(), DispatchError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(DispatchError::BadRequest(format!("a name of {} bytes, more than {TEXT_BYTES_MAX}", text.len())));
    }
    head.put_u16(text.len() as u16);
    head.put_slice(text.as_bytes());
    Ok(())
}

/// Writes the kind of a payload into the head. Returns the body.
fn put_payload(head: &mut BytesMut, payload: &Payload) -> Bytes {
    match payload {
        Payload::Json(json) => {
            head.put_u8(0);
            Bytes::copy_from_slice(json.as_bytes())
        }
        Payload::Bytes(bytes) => {
            head.put_u8(1);
            bytes.clone()
        }
        Payload::Values(values) => {
            head.put_u8(2);
            head.put_slice(&values.fingerprint());
            values.bytes()
        }
    }
}

/// Reads the fields of a head.
struct HeadReader {
    what: &'static str,
    rest: Bytes,
}

impl HeadReader {
    fn malformed(&self, text: impl Into<String>) -> MalformedMessage {
        MalformedMessage { what: self.what, text: text.into() }
    }

    fn need(&self, bytes: usize) -> Result<(), MalformedMessage> {
        if self.rest.len() < bytes {
            return Err(self.malformed(format!("{bytes} bytes expected, {} there", self.rest.len())));
        }
        Ok(())
    }

    fn u8(&mut self) -> Result<u8, MalformedMessage> {
        self.need(1).map(|()| self.rest.get_u8())
    }

    fn u16(&mut self) -> Result<u16, MalformedMessage> {
        self.need(2).map(|()| self.rest.get_u16())
    }

    fn u32(&mut self) -> Result<u32, MalformedMessage> {
        self.need(4).map(|()| self.rest.get_u32())
    }

    fn u64(&mut self) -> Result<u64, MalformedMessage> {
        self.need(8).map(|()| self.rest.get_u64())
    }

    fn version(&mut self) -> Result<(), MalformedMessage> {
        match self.u8()? {
            VERSION => Ok(()),
            other => Err(self.malformed(format!("version {other}, this is version {VERSION}"))),
        }
    }

    fn utf8(&mut self, length: usize) -> Result<String, MalformedMessage> {
        self.need(length)?;
        let bytes = self.rest.split_to(length);
        std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_| self.malformed("a text that is not UTF-8"))
    }

    fn text(&mut self) -> Result<String, MalformedMessage> {
        let length = self.u16()?;
        self.utf8(length.into())
    }

    /// Reads the callers, and makes sure that the last one is `caller`: a peer can speak for itself only.
    fn callers(&mut self, caller: &str) -> Result<Vec<Arc<str>>, MalformedMessage> {
        let count = usize::from(self.u16()?);
        if count > CALLERS_MAX {
            return Err(self.malformed(format!("{count} callers, more than {CALLERS_MAX}")));
        }
        let mut callers = Vec::with_capacity(count + 1);
        for _ in 0..count {
            callers.push(Arc::<str>::from(self.text()?));
        }
        let is_true = |last: &Arc<str>| last.split_once('/').is_some_and(|(cage, _)| cage == caller);
        if !callers.last().is_some_and(is_true) {
            callers.push(format!("{caller}/").into());
        }
        Ok(callers)
    }

    fn facts(&mut self, caller: &str, callers: &[Arc<str>]) -> Result<Facts, MalformedMessage> {
        let mut facts = Facts::default();
        for _ in 0..self.u8()? {
            let (name, value) = (self.text()?, self.text()?);
            // A peer whose fact is secret by its name is not believed: none carries it.
            if name != Facts::PASSWORD {
                facts.set(name, value);
            }
        }
        facts.set(Facts::SOURCE_CAGE, caller);
        let module = callers.last().and_then(|last| last.split_once('/')).map_or("", |(_, module)| module);
        facts.set(Facts::SOURCE_MODULE, module);
        if callers.len() <= 1 {
            facts.set(Facts::ORIGIN_CAGE, caller);
        }
        Ok(facts)
    }

    fn payload(&mut self, body: Bytes) -> Result<Payload, MalformedMessage> {
        match self.u8()? {
            0 => match std::str::from_utf8(&body) {
                Ok(json) => Ok(Payload::Json(json.to_owned())),
                Err(_) => Err(self.malformed("JSON that is not UTF-8")),
            },
            1 => Ok(Payload::Bytes(body)),
            2 => {
                let mut fingerprint = Fingerprint::default();
                self.need(fingerprint.len())?;
                self.rest.copy_to_slice(&mut fingerprint);
                Ok(Payload::Values(Values::encoded(fingerprint, body)))
            }
            other => Err(self.malformed(format!("unknown kind {other} of a payload"))),
        }
    }

    fn end(&self) -> Result<(), MalformedMessage> {
        match self.rest.len() {
            0 => Ok(()),
            more => Err(self.malformed(format!("{more} bytes more than expected"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(arguments: Payload) -> Call {
        let mut facts = Facts::default();
        facts.set(Facts::USERNAME, "alice");
        facts.set(Facts::PASSWORD, "secret");
        facts.set("zmq-identity", "worker-7");
        facts.set_secret("token", "also secret");
        let context = RequestContext::new("my_web".into(), "web", Duration::from_secs(5), Arc::new(facts));
        context.set_level(Level::Debug);
        context.describe("invoice 7");
        let context = Arc::new(context.for_call("runner", "front", None));
        let action = CallAction::Run { module: "work".into(), function: "handle".into() };
        Call { context, cage: "worker".into(), action, arguments, idempotent: true }
    }

    #[track_caller]
    fn check_call(arguments: Payload) {
        let sent = call(arguments);
        let came = decode_call(encode_call(&sent).unwrap(), "runner").unwrap();
        assert_eq!((&came.cage, &came.action), (&sent.cage, &sent.action));
        assert_eq!((came.arguments, came.idempotent), (sent.arguments, true));
        let (there, here) = (&sent.context, &came.context);
        assert_eq!((here.id, here.level(), here.description()), (there.id, there.level(), there.description()));
        assert_eq!(
            (&here.callers, &here.interface, &here.protocol),
            (&there.callers, &there.interface, &there.protocol)
        );
        assert!(here.deadline.left() <= Duration::from_secs(5) && !here.deadline.passed());
        let facts: Vec<_> = here.facts.iter().collect();
        assert!(facts.contains(&("username", "alice")) && facts.contains(&("origin-cage", "runner")), "{facts:?}");
        assert!(facts.contains(&("zmq-identity", "worker-7")), "{facts:?}");
        assert!(facts.iter().all(|(name, _)| !["password", "token"].contains(name)), "{facts:?}");
    }

    #[test]
    fn calls_arrive_as_they_were_sent() {
        check_call(Payload::Json(r#"{"args":["é"]}"#.into()));
        check_call(Payload::Bytes(Bytes::from_static(&[0, 255])));
        check_call(Payload::Values(Values::encoded([7; 16], Bytes::from_static(&[1, 2]))));
    }

    #[test]
    fn a_retried_call_that_is_handed_over_is_no_function_of_a_module() {
        let sent = Call { action: CallAction::AcceptRetried, ..call(Payload::Bytes(Bytes::new())) };
        let came = decode_call(encode_call(&sent).unwrap(), "runner").unwrap();
        assert_eq!(came.action, CallAction::AcceptRetried);
        let action = CallAction::Run { module: String::new(), function: "other".into() };
        let nameless = encode_call(&Call { action, ..sent }).unwrap();
        let malformed = decode_call(nameless, "runner").unwrap_err().to_string();
        assert_eq!(malformed, r#"malformed call: function "other" of no module"#);
    }

    #[test]
    fn a_caller_speaks_for_itself_only() {
        let came = decode_call(encode_call(&call(Payload::Json("{}".into()))).unwrap(), "mallory").unwrap();
        assert_eq!(came.context.facts.get(Facts::SOURCE_CAGE), Some("mallory"));
        assert_eq!(came.context.callers.last().map(|last| &**last), Some("mallory/"));
    }

    #[test]
    fn answers_arrive_as_they_were_sent() {
        let check = |result: Result<Payload, DispatchError>| {
            let expected = format!("{result:?}");
            let came = decode_answer(encode_answer(result, 100)).unwrap();
            assert_eq!(format!("{came:?}"), expected);
        };
        check(Ok(Payload::Json("[1]".into())));
        check(Ok(Payload::Bytes(Bytes::from_static(b"\0"))));
        check(Ok(Payload::Values(Values::encoded([255; 16], Bytes::new()))));
        check(Err(DispatchError::Draining));
        for code in ErrorCode::ALL.into_iter().filter(|code| *code as u8 != ErrorCode::Draining as u8) {
            check(Err(from_code(code, "text".into())));
        }
        let long = encode_answer(Ok(Payload::Bytes(Bytes::from(vec![0; 101]))), 100);
        assert!(matches!(decode_answer(long).unwrap(), Err(DispatchError::Failed(text)) if text.contains("101 bytes")));
        let cut = encode_answer(Err(DispatchError::Failed("é".repeat(8_000))), 100);
        assert!(matches!(decode_answer(cut).unwrap(), Err(DispatchError::Failed(text)) if text.len() == 8 << 10));
    }

    /// For callers of each fabric the call is lost then: whether the function has run is unknown.
    #[test]
    fn an_error_of_a_kind_that_is_unknown_is_no_answer() {
        let mut head = encode_answer(Err(DispatchError::Failed("why".into())), 100).head.to_vec();
        head[1] = ErrorCode::FIRST + ErrorCode::ALL.len() as u8;
        let malformed = decode_answer(Message { head: head.into(), body: Bytes::new() }).unwrap_err();
        assert_eq!(malformed.to_string(), "malformed answer: unknown kind 30: why");
    }

    /// These numbers must not change, because peers of other versions read them.
    #[test]
    fn errors_that_guests_answer_keep_their_numbers() {
        let number = |error| encode_answer(Err(error), 100).head[1];
        let text = || "why".to_owned();
        assert_eq!(number(DispatchError::BadRequest(text())), 16);
        assert_eq!(number(DispatchError::Refused(text())), 21);
        assert_eq!(number(DispatchError::Failed(text())), 22);
        assert_eq!(number(DispatchError::Unreachable(text())), 29);
    }

    #[test]
    fn fuzz_heads_are_refused_or_understood() {
        let (call, answer) = (
            encode_call(&call(Payload::Json("{}".into()))).unwrap(),
            encode_answer(Err(DispatchError::Failed("why".into())), 100),
        );
        arbtest::arbtest(|u| {
            for good in [&call, &answer] {
                let mut head = good.head.to_vec();
                for _ in 0..u.int_in_range(0..=4)? {
                    let at = u.choose_index(head.len())?;
                    head[at] = u.arbitrary()?;
                }
                head.truncate(u.int_in_range(0..=head.len())?);
                let message = Message { head: head.into(), body: Bytes::from(u.arbitrary::<Vec<u8>>()?) };
                let _ = decode_call(message.clone(), "runner");
                let _ = decode_answer(message);
            }
            Ok(())
        });
    }
}
