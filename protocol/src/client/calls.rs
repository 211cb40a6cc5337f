//! The requests under way on this connection. Nothing is sent again: their answers die with it.

use std::collections::VecDeque;

use super::ClientError;
use crate::limits::RPCS_IN_FLIGHT_MAX;

/// Takes no memory beside a pointer until the first request.
#[derive(Debug, Default)]
pub(super) struct Calls(Option<Box<Started>>);

#[derive(Debug, Default)]
struct Started {
    /// Of the latest request; no two of a client have the same.
    last_id: u64,
    /// Oldest first.
    unanswered: VecDeque<u64>,
}

impl Calls {
    /// The next request's id.
    pub(super) fn begin(&mut self) -> Result<u64, ClientError> {
        let started = self.0.get_or_insert_default();
        if started.unanswered.len() >= RPCS_IN_FLIGHT_MAX {
            return Err(ClientError::CallsFull);
        }
        started.last_id += 1;
        started.unanswered.push_back(started.last_id);
        Ok(started.last_id)
    }

    /// The request was answered. `false`: no such request (any more).
    pub(super) fn end(&mut self, id: u64) -> bool {
        let Some(started) = &mut self.0 else {
            return false;
        };
        let place = started.unanswered.iter().position(|unanswered| *unanswered == id);
        let was_there = place.is_some_and(|index| started.unanswered.remove(index).is_some());
        started.tidy();
        was_there
    }

    /// Ends the oldest request, if there is one.
    pub(super) fn end_oldest(&mut self) -> Option<u64> {
        let started = self.0.as_mut()?;
        let oldest = started.unanswered.pop_front();
        started.tidy();
        oldest
    }

    #[cfg(test)]
    pub(super) fn is_unallocated(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn is_awaiting(&self) -> bool {
        self.0.as_ref().is_some_and(|started| !started.unanswered.is_empty())
    }
}

impl Started {
    /// An idle client holds no more than it must.
    fn tidy(&mut self) {
        if self.unanswered.is_empty() {
            self.unanswered = VecDeque::new();
        }
    }
}
