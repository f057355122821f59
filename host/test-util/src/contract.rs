//! What every interface owes, as tests: see `host/protocol/README.md`. A protocol says how its interface is configured and asked
//! (`Subject`), and has all of them by one line:
//!
//! ```ignore
//! wasmcage_test_util::contract!(LinesSubject);
//! ```

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::{Behaviour, TestHost, TestInterface};
use wasmcage_core::error::DispatchError;
use wasmcage_core::telemetry::error_chain;
use wasmcage_protocol::Protocol;

/// Longer than anything here takes; a test that meets it has failed.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// What became of a request, as its client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was acknowledged as done.
    Done,
    /// It was refused, or is kept to be tried again.
    NotDone,
    /// Nobody is told how such a request ends.
    Untold,
}

/// How the interface of one protocol is configured and asked.
#[async_trait]
pub trait Subject: Default + Send + Sync + 'static {
    fn protocol(&self) -> Box<dyn Protocol>;

    /// Keys of an interface that works, with nothing of its name or address in common with that of another host.
    fn keys(&self, host: &TestHost) -> String;

    /// The same, at the address that another interface has, or had a moment ago.
    fn keys_at(&self, host: &TestHost, _address: &str) -> String {
        self.keys(host)
    }

    /// Whether a request that cannot be served is kept and tried again, instead of refused.
    fn keeps_requests(&self) -> bool {
        false
    }

    /// Whether it takes one request after the other, so that its successor waits for the one in work.
    fn is_sequential(&self) -> bool {
        false
    }

    /// Has one request come in, and returns what becomes of it.
    async fn ask(&self, host: &TestHost, interface: &TestInterface) -> Answer;
}

/// A protocol whose interface needs something that another may be in the way of, such as a port or a broker.
#[async_trait]
pub trait NeedsOthers: Subject {
    /// Makes a host on which the interface cannot serve now.
    async fn unavailable(&self, host: &TestHost) -> Unavailable;
}

/// What is in the way of an interface, until this is dropped.
pub struct Unavailable {
    /// Keys of the interface.
    pub keys: String,
    /// Part of the error or of the status.
    pub text: &'static str,
    /// Keeps it in the way.
    pub kept: Box<dyn std::any::Any + Send>,
}

/// A test for each promise. A subject that is `NeedsOthers` says so: `contract!(Subject, needs others)`.
#[macro_export]
macro_rules! contract {
    ($subject:ty, needs others) => {
        $crate::contract!($subject);
        $crate::contract!(@ $subject; what_it_needs_and_cannot_have_is_told);
    };
    ($subject:ty) => {
        $crate::contract!(@ $subject;
            a_mistake_is_told_with_its_key
            a_request_is_done_and_the_host_alone_counts_it
            a_drain_finishes_what_is_in_work_and_takes_nothing_new
            a_successor_gets_the_address_while_the_old_one_finishes
            a_panic_in_a_request_is_seen_and_ends_that_request_only
            what_was_not_done_is_not_acknowledged
            without_a_module_nothing_is_acknowledged_and_it_is_counted_once
        );
    };
    (@ $subject:ty; $($promise:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                $crate::contract::$promise::<$subject>().await;
            }
        )*
    };
}

fn started<S: Subject>(subject: &S, host: &TestHost) -> TestInterface {
    host.start(subject.protocol(), &subject.keys(host)).unwrap()
}

async fn ask<S: Subject>(subject: &S, host: &TestHost, interface: &TestInterface) -> Answer {
    let asked = tokio::time::timeout(TIMEOUT, subject.ask(host, interface)).await;
    asked.expect("a request comes to an end")
}

/// It serves, whatever happened before.
async fn check_serves<S: Subject>(subject: &S, host: &TestHost, interface: &TestInterface) {
    host.dispatch.behave(Behaviour::Echo);
    let answer = ask(subject, host, interface).await;
    assert!(matches!(answer, Answer::Done | Answer::Untold), "{answer:?}");
}

pub async fn a_mistake_is_told_with_its_key<S: Subject>() {
    let (subject, host) = (S::default(), TestHost::default());
    let keys = format!("{}\nno_such_key_of_any_protocol = 1", subject.keys(&host));
    let error = host.start(subject.protocol(), &keys).err().expect("a mistake").to_string();
    assert!(error.contains("no_such_key_of_any_protocol"), "{error}");
}

pub async fn what_it_needs_and_cannot_have_is_told<S: NeedsOthers>() {
    let (subject, host) = (S::default(), TestHost::default());
    let Unavailable { keys, text, kept } = subject.unavailable(&host).await;
    let interface = host.start(subject.protocol(), &keys).unwrap();
    let told = async {
        loop {
            let error = interface.error.lock().as_ref().map(|error| error_chain(error));
            let said = error.into_iter().chain(interface.endpoint.status()).collect::<Vec<_>>();
            if said.iter().any(|said| said.contains(text)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let told = tokio::time::timeout(TIMEOUT, told).await;
    assert!(told.is_ok(), "{text:?} is in neither {:?} nor {:?}", interface.error, interface.endpoint.status());
    // It does not hold up the cage's stop, and serves as soon as it can.
    drop(kept);
    check_serves(&subject, &host, &interface).await;
    interface.drain.begin();
    interface.ended().await;
}

pub async fn a_request_is_done_and_the_host_alone_counts_it<S: Subject>() {
    let (subject, host) = (S::default(), TestHost::default());
    let interface = started(&subject, &host);
    for _ in 0..2 {
        check_serves(&subject, &host, &interface).await;
    }
    let readings = interface.endpoint.readings.snapshot();
    assert_eq!((readings.requests, readings.in_work), (0, 0), "the interface has counted, too: {readings:?}");
    assert_eq!(host.tasks.snapshot().count, 0, "{:?}", host.tasks.snapshot());
}

pub async fn a_drain_finishes_what_is_in_work_and_takes_nothing_new<S: Subject>() {
    let (subject, host) = (Arc::new(S::default()), Arc::new(TestHost::default()));
    host.dispatch.behave(Behaviour::Wait);
    let interface = Arc::new(started(&*subject, &host));
    let asked = {
        let (subject, host, interface) = (subject.clone(), host.clone(), interface.clone());
        tokio::spawn(async move { ask(&*subject, &host, &interface).await })
    };
    host.dispatch.until_begun(1).await;
    interface.drain.begin();
    if !subject.is_sequential() {
        interface.endpoint.wait_until_closed().await;
    }
    assert!(!interface.has_ended(), "it has left a request that is in work");
    host.dispatch.release(1);
    let answer = asked.await.unwrap();
    assert!(matches!(answer, Answer::Done | Answer::Untold), "{answer:?}");
    Arc::into_inner(interface).unwrap().ended().await;
    assert_eq!(host.dispatch.begun(), 1, "something new was taken");
}

pub async fn a_successor_gets_the_address_while_the_old_one_finishes<S: Subject>() {
    let (subject, host) = (Arc::new(S::default()), Arc::new(TestHost::default()));
    host.dispatch.behave(Behaviour::Wait);
    let old = Arc::new(started(&*subject, &host));
    let asked = {
        let (subject, host, old) = (subject.clone(), host.clone(), old.clone());
        tokio::spawn(async move { ask(&*subject, &host, &old).await })
    };
    host.dispatch.until_begun(1).await;
    let address = old.endpoint.addresses().first().map(|address| address.text().to_owned()).unwrap_or_default();
    old.drain.begin();
    if subject.is_sequential() {
        host.dispatch.release(1);
    }
    old.endpoint.wait_until_closed().await;
    let new = host.start(subject.protocol(), &subject.keys_at(&host, &address)).unwrap();
    check_serves(&*subject, &host, &new).await;
    assert!(subject.is_sequential() || !old.has_ended());
    host.dispatch.release(1);
    let answer = asked.await.unwrap();
    assert!(matches!(answer, Answer::Done | Answer::Untold), "{answer:?}");
    Arc::into_inner(old).unwrap().ended().await;
}

pub async fn a_panic_in_a_request_is_seen_and_ends_that_request_only<S: Subject>() {
    let (subject, host) = (Arc::new(S::default()), Arc::new(TestHost::default()));
    host.dispatch.behave(Behaviour::Panic);
    let interface = Arc::new(started(&*subject, &host));
    let asked = {
        let (subject, host, interface) = (subject.clone(), host.clone(), interface.clone());
        tokio::spawn(async move { ask(&*subject, &host, &interface).await })
    };
    host.dispatch.until_ended(1).await;
    let seen = async {
        while host.tasks.snapshot().count == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(TIMEOUT, seen).await.is_ok(), "nobody has seen the panic");
    host.dispatch.behave(Behaviour::Echo);
    // A request that is kept is done when it is tried again; one that is not was answered, or its connection has ended.
    asked.await.unwrap();
    check_serves(&*subject, &host, &interface).await;
    interface.drain.begin();
    Arc::into_inner(interface).unwrap().ended().await;
}

pub async fn what_was_not_done_is_not_acknowledged<S: Subject>() {
    const ERRORS: [fn() -> DispatchError; 6] = [
        || DispatchError::Overloaded("as asked".to_owned()),
        || DispatchError::Draining,
        || DispatchError::Host("as asked".to_owned()),
        || DispatchError::Trap("as asked".to_owned()),
        || DispatchError::DeadlineExceeded("as asked".to_owned()),
        || DispatchError::Unreachable("as asked".to_owned()),
    ];
    for error in ERRORS {
        let (subject, host) = (S::default(), TestHost::default());
        host.dispatch.behave(Behaviour::Fail(error));
        let interface = started(&subject, &host);
        let answer = ask(&subject, &host, &interface).await;
        assert!(matches!(answer, Answer::NotDone | Answer::Untold), "{:?}: {answer:?}", error());
        check_serves(&subject, &host, &interface).await;
    }
}

pub async fn without_a_module_nothing_is_acknowledged_and_it_is_counted_once<S: Subject>() {
    let (subject, host) = (S::default(), TestHost::default());
    host.dispatch.behave(Behaviour::NoModule);
    let interface = started(&subject, &host);
    let answer = ask(&subject, &host, &interface).await;
    assert!(matches!(answer, Answer::NotDone | Answer::Untold), "{answer:?}");
    if !subject.keeps_requests() {
        let readings = interface.endpoint.readings.snapshot();
        assert_eq!((readings.requests, readings.outcomes.get("not-found")), (1, Some(&1)), "{readings:?}");
    }
    check_serves(&subject, &host, &interface).await;
}
