//! Tracks the calls from this process to cages elsewhere that are in flight. A call that comes back from there for the same
//! request needs no second permit of a cage of which the request holds one. This is decided by what is recorded here: if the
//! incoming call were believed, a peer could exceed a cage's `concurrency`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use wasmcage_core::request::{RequestContext, RequestId};

/// The number of calls that may come back at the same time for one call in flight. Further ones need a permit like any other.
const BACK_MAX: usize = 16;
/// The number of separately locked parts of the table, so that lanes rarely wait for each other.
const PARTS: usize = 16;

type Journeys = HashMap<RequestId, Vec<Arc<Journey>>>;

#[derive(Default)]
pub(super) struct Abroad {
    parts: [Mutex<Journeys>; PARTS],
}

/// A call in flight to one copy of a cage, or to all of them.
struct Journey {
    context: Arc<RequestContext>,
    /// The number of calls that came back and are being worked on.
    back: AtomicUsize,
}

/// Keeps the record of a call in flight until it is dropped.
pub(super) struct Away<'a> {
    abroad: &'a Abroad,
    journey: Arc<Journey>,
}

/// Counts a call that has come back until it is dropped.
pub(super) struct Back(Arc<Journey>);

impl Abroad {
    pub(super) fn leave(&self, context: &Arc<RequestContext>) -> Away<'_> {
        let journey = Arc::new(Journey { context: context.clone(), back: AtomicUsize::new(0) });
        self.part(context.id).lock().entry(context.id).or_default().push(journey.clone());
        Away { abroad: self, journey }
    }

    /// Returns a guard if the call is made for a request that holds a permit of this cage and waits for an answer from
    /// elsewhere. None if the call needs a permit of its own.
    pub(super) fn comes_back(&self, context: &RequestContext, cage: &str) -> Option<Back> {
        if !context.claims(cage) {
            return None;
        }
        let part = self.part(context.id).lock();
        let mut journeys = part.get(&context.id)?.iter().filter(|journey| journey.context.holds_permit_of(cage));
        journeys.find(|journey| journey.enter()).map(|journey| Back(journey.clone()))
    }

    fn part(&self, id: RequestId) -> &Mutex<Journeys> {
        let (_, random) = id.parts();
        &self.parts[random as usize % PARTS]
    }
}

impl Journey {
    fn enter(&self) -> bool {
        let more = |back| (back < BACK_MAX).then_some(back + 1);
        self.back.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        self.0.back.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        let id = self.journey.context.id;
        let mut part = self.abroad.part(id).lock();
        if let Some(journeys) = part.get_mut(&id) {
            journeys.retain(|journey| !Arc::ptr_eq(journey, &self.journey));
            if journeys.is_empty() {
                part.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn request() -> RequestContext {
        RequestContext::new("web".into(), "test", Duration::from_secs(5), Arc::default())
    }

    /// Makes the context of a call from a cage elsewhere, whose callers are those that the peer has sent.
    fn from_elsewhere(id: RequestId, callers: &[&str]) -> RequestContext {
        request().continued(id, callers.iter().map(|caller| Arc::from(*caller)).collect())
    }

    #[test]
    fn a_peer_gets_past_no_admission_by_what_it_says() {
        let abroad = Abroad::default();
        let forged = from_elsewhere(RequestId::new(), &["runner/front", "mallory/work"]);
        assert!(!forged.holds_permit_of("runner") && abroad.comes_back(&forged, "runner").is_none());

        // The peer knows the id of a request, but the request holds no permit of the cage that the peer names.
        let call = Arc::new(request().for_call("runner", "front", None));
        let _away = abroad.leave(&call);
        let forged = from_elsewhere(call.id, &["runner/front", "other/front", "mallory/work"]);
        assert!(abroad.comes_back(&forged, "other").is_none());
        // The callers that a peer has sent are not trusted either after its call has led to a further call from here.
        let further = Arc::new(forged.for_call("third", "work", None));
        let _away = abroad.leave(&further);
        assert!(abroad.comes_back(&forged, "other").is_none());
        assert!(!further.holds_permit_of("other") && further.holds_permit_of("third"));
    }

    #[test]
    fn a_request_that_comes_back_needs_no_second_place_while_it_is_on_its_way() {
        let abroad = Abroad::default();
        let call = Arc::new(request().for_call("runner", "front", None));
        let back = from_elsewhere(call.id, &["runner/front", "worker/work"]);
        let away = abroad.leave(&call);
        let all: Vec<_> = (0..BACK_MAX).map(|_| abroad.comes_back(&back, "runner").unwrap()).collect();
        assert!(abroad.comes_back(&back, "runner").is_none(), "more came back at once than are let in");
        drop(all);
        assert!(abroad.comes_back(&back, "runner").is_some());
        drop(away);
        assert!(abroad.comes_back(&back, "runner").is_none());
        assert!(abroad.parts.iter().all(|part| part.lock().is_empty()));
    }

    #[test]
    fn a_cage_is_not_taken_for_another_whose_name_begins_alike() {
        let context = request().for_call("run", "front", None);
        assert!(context.holds_permit_of("run") && !context.holds_permit_of("ru") && !context.holds_permit_of("runner"));
    }
}
