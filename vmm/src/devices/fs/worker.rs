//! The queues: every message goes to the session, whichever queue it came through.

use std::sync::Arc;

use super::backend::Session;
use crate::devices::serve::{BrokenQueue, Handler, Request};

/// Hands messages to a session. One per worker.
pub(super) struct Messages(pub(super) Arc<Session>);

impl Handler for Messages {
    fn handle(&mut self, request: &Request<'_>) -> Result<u32, BrokenQueue> {
        self.0.serve(request)
    }
}
