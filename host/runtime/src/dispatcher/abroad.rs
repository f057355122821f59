//! Calls that are on their way from this process to cages elsewhere. A call that comes from there on behalf of the same
//! request needs no second place in a cage in which the request has one. That it has one is known here; what the call says of
//! itself would let a peer in past a cage's `concurrency`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use wasmcage_core::request::{RequestContext, RequestId};

/// Calls that may come back at one time for one that is on its way; further ones need a place like any other.
const BACK_MAX: usize = 16;
/// Requests of different lanes rarely meet at the same part.
const PARTS: usize = 16;

type Journeys = HashMap<RequestId, Vec<Arc<Journey>>>;

#[derive(Default)]
pub(super) struct Abroad {
    parts: [Mutex<Journeys>; PARTS],
}

/// One call, or one to all copies of a cage.
struct Journey {
    context: Arc<RequestContext>,
    /// Calls that came back and are in work.
    back: AtomicUsize,
}

/// Keeps a call on its way until it is dropped.
pub(super) struct Away<'a> {
    abroad: &'a Abroad,
    journey: Arc<Journey>,
}

/// A call that has come back, until it is dropped.
pub(super) struct Back(Arc<Journey>);

impl Abroad {
    pub(super) fn leave(&self, context: &Arc<RequestContext>) -> Away<'_> {
        let journey = Arc::new(Journey { context: context.clone(), back: AtomicUsize::new(0) });
        self.part(context.id).lock().entry(context.id).or_default().push(journey.clone());
        Away { abroad: self, journey }
    }

    /// Whether the call is made for a request that has a place in this cage and waits for an answer from elsewhere.
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

    /// The call as it comes from a cage elsewhere, with callers of its peer's choice.
    fn from_elsewhere(id: RequestId, callers: &[&str]) -> RequestContext {
        request().continued(id, callers.iter().map(|caller| Arc::from(*caller)).collect())
    }

    #[test]
    fn a_peer_gets_past_no_admission_by_what_it_says() {
        let abroad = Abroad::default();
        let forged = from_elsewhere(RequestId::new(), &["runner/front", "mallory/work"]);
        assert!(!forged.holds_permit_of("runner") && abroad.comes_back(&forged, "runner").is_none());

        // It knows the id of a request, which has no place in the cage that the peer names.
        let call = Arc::new(request().for_call("runner", "front", None));
        let _away = abroad.leave(&call);
        let forged = from_elsewhere(call.id, &["runner/front", "other/front", "mallory/work"]);
        assert!(abroad.comes_back(&forged, "other").is_none());
        // What a peer has said once does not become true when its call goes on from here.
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
