//! Calls that are made later: checked and written down here for the store, which keeps them until they are done.

use super::{DispatchError, Dispatcher};
use crate::host_api::Home;
use crate::request::{RequestContext, RetriedCall};
use crate::store::NewCall;

impl Dispatcher {
    /// What the store is to accept for a call that a module asks for while it works on `request`: names and grants are
    /// checked, the id is given its scope.
    ///
    /// # Errors
    /// `BadRequest`, `NotPermitted`.
    pub fn new_retried_call(
        &self,
        home: &Home,
        _request: &RequestContext,
        call: RetriedCall,
    ) -> Result<NewCall, DispatchError> {
        if let Some(cage) = call.target.cage.as_ref().filter(|cage| **cage != *home.cage) {
            self.check_grant(home, cage)?;
        }
        Err(DispatchError::Host("retried calls are not in this version".into()))
    }
}
