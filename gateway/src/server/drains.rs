//! Drains that operators ask for: turns readiness off, has the reactors ask clients to go, and says how far they are.
//! Owns when the one under way began. Never looks at a connection.

use std::sync::{Arc, Mutex, MutexGuard};

use culver_protocol::proto;

use super::Visible;
use crate::clock::{Clock as _, SystemClock};
use crate::metrics::Metrics;
use crate::ops::{self, DrainProgress, DrainRequest, FINISH_S_DEFAULT, Phase, Refusal};
use crate::reactor::parting::{Order, Pace};

/// Each client goes within this time after it was told: the pace spreads them, and this keeps those who were told in one
/// turn apart.
const RECONNECT_MS: u32 = 1000;

/// See the module.
pub(super) struct Drains {
    visible: Arc<Visible>,
    metrics: Arc<Metrics>,
    reactors: u32,
    /// Where a request does not say how fast.
    spread_s: u64,
    began: Mutex<Option<Began>>,
}

#[derive(Clone, Copy)]
struct Began {
    since_ms: u64,
    /// Clients that had been told before.
    told_before: u64,
}

impl Drains {
    pub(super) fn new(visible: &Arc<Visible>, metrics: &Arc<Metrics>, reactors: usize, spread_s: u64) -> Self {
        let reactors = u32::try_from(reactors).expect("the configuration bounds reactors");
        let (visible, metrics) = (Arc::clone(visible), Arc::clone(metrics));
        Self { visible, metrics, reactors, spread_s, began: Mutex::default() }
    }

    fn began(&self) -> MutexGuard<'_, Option<Began>> {
        self.began.lock().expect("a panic ends the process")
    }

    fn order(&self, request: DrainRequest) -> Order {
        let spread_s = request.spread_s.map_or(self.spread_s, u64::from);
        Order {
            goaway: proto::Goaway {
                reason: proto::goaway::Reason::Drain.into(),
                reconnect_min_ms: 0,
                reconnect_max_ms: RECONNECT_MS,
                alternates: request.alternates,
            },
            pace: match request.connections_per_s {
                Some(connections) => Pace::PerSecond { connections, reactors: self.reactors },
                None => Pace::Within { spread_us: spread_s.saturating_mul(1_000_000) },
            },
            finish_us: Some(u64::from(request.finish_s.unwrap_or(FINISH_S_DEFAULT)) * 1_000_000),
        }
    }
}

impl ops::Drains for Drains {
    fn begin(&self, request: DrainRequest) -> Result<DrainProgress, Refusal> {
        match self.visible.readiness.pass(Phase::Ready, Phase::Draining) {
            Ok(()) => {}
            Err(Phase::Draining) => {
                return Err(Refusal::conflict(
                    "a drain is under way: DELETE /drain ends it, GET /drain says how far it is",
                ));
            }
            Err(_) => return Err(Refusal::unavailable("the server is starting, or shutting down")),
        }
        let told_before = self.metrics.totals().goaways;
        *self.began() = Some(Began { since_ms: SystemClock.now().wall_ms, told_before });
        self.visible.stage.drain(self.order(request));
        self.visible.ring();
        tracing::info!("clients are asked to go");
        Ok(self.progress())
    }

    fn progress(&self) -> DrainProgress {
        let (began, totals) = (*self.began(), self.metrics.totals());
        DrainProgress {
            draining: began.is_some(),
            since_ms: began.map_or(0, |began| began.since_ms),
            told: began.map_or(0, |began| totals.goaways.saturating_sub(began.told_before)),
            connected: totals.connections,
        }
    }

    fn abort(&self) -> Result<DrainProgress, Refusal> {
        // Who comes as soon as it says that it is ready is let in: nobody is turned back by then but who is before the
        // reactors look.
        self.visible.stage.abort_drain();
        if self.visible.readiness.pass(Phase::Draining, Phase::Ready).is_err() {
            return Err(Refusal::conflict("no drain is under way"));
        }
        *self.began() = None;
        self.visible.ring();
        tracing::info!("nobody else is asked to go");
        Ok(self.progress())
    }
}
