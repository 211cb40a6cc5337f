//! The operators' port: `/metrics`, `/healthz`, `/readyz`, `/connections/worst`, `/backup`, `/drain`, and the signals that end the process.
//!
//! Owns one thread with a single-threaded runtime, away from the data path. Never touches a session or storage:
//! it sees them through a [`Snapshot`], and asks for the worst connections, a backup, a drain or the end through callbacks.

mod backup;
mod drain;
mod process;
mod text;
mod worst;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, JoinHandle};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{error, info};

use self::backup::Busy;
pub use self::backup::{Refusal, TakeBackup};
pub use self::drain::{DrainProgress, DrainRequest, Drains, DrainsArc, FINISH_S_DEFAULT};
pub use self::process::{cpu_seconds, resident_bytes};
pub use self::text::Snapshot;
pub use self::worst::FindWorst;

/// The queue of connections that wait to be accepted on the operators' port.
const BACKLOG: i32 = 128;

/// What the process is doing, as `/readyz` sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Recovering; clients cannot log in yet.
    Starting = 0,
    /// Serving.
    Ready = 1,
    /// Telling clients to go, for operators want it: it stays, and may be ready again.
    Draining = 2,
    /// Telling clients to go, and ending.
    Leaving = 3,
}

impl Phase {
    fn of(number: u8) -> Self {
        match number {
            0 => Self::Starting,
            1 => Self::Ready,
            2 => Self::Draining,
            _ => Self::Leaving,
        }
    }
}

/// The phase, shared between the server, which sets it, and the operators' port, which tells it.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicU8>);

impl Readiness {
    /// Moves on to `phase`.
    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Release);
    }

    /// Moves on to `phase`, if it is where it is thought to be.
    ///
    /// # Errors
    /// Where it is instead.
    pub fn pass(&self, from: Phase, to: Phase) -> Result<(), Phase> {
        let passed = self.0.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire);
        passed.map(|_| ()).map_err(Phase::of)
    }

    /// Where the process is.
    #[must_use]
    pub fn get(&self) -> Phase {
        Phase::of(self.0.load(Ordering::Acquire))
    }
}

/// Takes the numbers of the moment.
pub type TakeSnapshot = Arc<dyn Fn() -> Snapshot + Send + Sync>;

/// What the operators' port needs.
pub struct OpsSetup {
    /// Bound, not listening yet: [`crate::preflight::Ports::ops`].
    pub socket: socket2::Socket,
    /// Told by `/readyz`.
    pub readiness: Readiness,
    /// Told by `/metrics`.
    pub snapshot: TakeSnapshot,
    /// Called for `/backup`.
    pub backup: TakeBackup,
    /// Called for `/connections/worst`.
    pub worst: FindWorst,
    /// Called for `/drain`.
    pub drains: DrainsArc,
    /// Called once, on this thread, at the first SIGTERM or SIGINT. Must return soon and not block.
    pub shutdown: Box<dyn FnOnce() + Send>,
}

/// The running operators' port. Dropping it stops the thread.
pub struct Ops {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ops {
    /// Starts to listen, and to wait for signals.
    ///
    /// # Errors
    /// The socket cannot listen, or the thread or its runtime cannot start.
    pub fn spawn(setup: OpsSetup) -> io::Result<Self> {
        let OpsSetup { socket, readiness, snapshot, backup, worst, drains, shutdown } = setup;
        socket.set_nonblocking(true)?;
        socket.listen(BACKLOG)?;
        let listener = std::net::TcpListener::from(socket);
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Signals are caught from here on, not from whenever the thread gets to run.
        let signals = {
            let _entered = runtime.enter();
            [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?]
        };
        let (stop, stopped) = oneshot::channel();
        let router = router(Shared { readiness, snapshot, backup, worst, drains, busy: Busy::default() });
        let thread = thread::Builder::new().name("ops".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::spawn(await_signal(signals, shutdown));
                tokio::spawn(serve(listener, router));
                // Nothing is ever sent: the sender goes with [`Ops`], and the tasks go with the runtime.
                stopped.await.unwrap_or_default();
            });
        })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Ops {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the ops thread does not panic");
        }
    }
}

async fn serve(listener: std::net::TcpListener, router: Router) {
    let served = match TcpListener::from_std(listener) {
        Ok(listener) => axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        error!(%error, "the operators' port has failed; messages go on");
    }
}

async fn await_signal(
    [mut terminate, mut interrupt]: [tokio::signal::unix::Signal; 2],
    shutdown: Box<dyn FnOnce() + Send>,
) {
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    info!(signal = name, "shutting down");
    shutdown();
}

#[derive(Clone)]
struct Shared {
    readiness: Readiness,
    snapshot: TakeSnapshot,
    backup: TakeBackup,
    worst: FindWorst,
    drains: DrainsArc,
    busy: Busy,
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/connections/worst", get(worst::handle))
        .route("/backup", post(backup::handle))
        .route("/drain", get(drain::progress).post(drain::begin).delete(drain::abort))
        .with_state(shared)
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let text = text::encode(&(shared.snapshot)(), cpu_seconds(), resident_bytes());
    ([(header::CONTENT_TYPE, text::CONTENT_TYPE)], text)
}

async fn readyz(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    match shared.readiness.get() {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Ready => (StatusCode::OK, "ready\n"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        Phase::Leaving => (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::worst::Worst;

    /// Nobody asks for one.
    struct NoDrains;

    impl Drains for NoDrains {
        fn begin(&self, _: DrainRequest) -> Result<DrainProgress, Refusal> {
            unreachable!("nobody asks for one")
        }

        fn progress(&self) -> DrainProgress {
            DrainProgress::default()
        }

        fn abort(&self) -> Result<DrainProgress, Refusal> {
            unreachable!("nobody asks for it")
        }
    }

    #[test]
    fn readiness_follows_the_phase() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = crate::config::Config { listen: any, ops: any, ..crate::config::Config::default() };
        let ports = crate::preflight::Ports::hold(&config).expect("free ports");
        let readiness = Readiness::default();
        let snapshot: TakeSnapshot = Arc::new(|| Snapshot { sessions: 42, ..Snapshot::default() });
        let backup: TakeBackup = Arc::new(|_, _| unreachable!("nobody asks for one"));
        let worst: FindWorst = Arc::new(|count, _| (count == 7).then(Worst::default));
        let (socket, shutdown) = (ports.ops, Box::new(|| ()));
        let drains = Arc::new(NoDrains);
        let setup = OpsSetup { socket, readiness: readiness.clone(), snapshot, backup, worst, drains, shutdown };
        let ops = Ops::spawn(setup).expect("a thread");
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let get = |path: &str| {
            let mut response = agent.get(format!("http://{}{path}", ops.address())).call().expect("it answers");
            (response.status().as_u16(), response.body_mut().read_to_string().expect("text"))
        };
        assert_eq!(get("/readyz"), (503, "starting\n".to_owned()));
        readiness.set(Phase::Ready);
        assert_eq!(get("/readyz"), (200, "ready\n".to_owned()));
        readiness.pass(Phase::Ready, Phase::Draining).expect("it was ready");
        assert_eq!(get("/readyz"), (503, "draining\n".to_owned()));
        readiness.set(Phase::Leaving);
        assert_eq!(readiness.pass(Phase::Draining, Phase::Ready), Err(Phase::Leaving));
        assert_eq!(get("/readyz"), (503, "shutting down\n".to_owned()));
        assert_eq!(get("/drain"), (200, "{\"draining\":false,\"since_ms\":0,\"told\":0,\"connected\":0}\n".to_owned()));
        assert_eq!(get("/healthz").0, 200);
        assert_eq!(get("/backup").0, 405);
        assert_eq!(get("/connections/worst?count=7"), (200, "{\"connections\":[],\"unanswered\":[]}\n".to_owned()));
        assert_eq!(get("/connections/worst").0, 503, "there are no reactors yet");
        for query in ["count=0", "count=1001", "count=", "count=x", "coumt=1", "count=1&count=2", "1"] {
            let (status, said) = get(&format!("/connections/worst?{query}"));
            assert!(status == 400 && said.contains("?count=1 to 1000"), "{query}: {status} {said}");
        }
        assert!(get("/metrics").1.contains("\nculver_sessions 42\n"));
        let address = ops.address();
        drop(ops);
        std::net::TcpStream::connect(address).expect_err("it has gone");
    }
    /// Backups that begin, and end when they are told to.
    #[test]
    fn backups_are_taken_one_at_a_time_while_the_port_answers() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = crate::config::Config { listen: any, ops: any, ..crate::config::Config::default() };
        let ports = crate::preflight::Ports::hold(&config).expect("free ports");
        let readiness = Readiness::default();
        let snapshot: TakeSnapshot = Arc::new(Snapshot::default);
        let (began, begins) = std::sync::mpsc::channel();
        let (end, ends) = std::sync::mpsc::channel();
        let ends = std::sync::Mutex::new(ends);
        let backup: TakeBackup = Arc::new(move |to, _| {
            began.send(to).expect("the test waits for it");
            ends.lock().expect("one at a time").recv().expect("the test says when")
        });
        let worst: FindWorst = Arc::new(|_, _| None);
        let shutdown = Box::new(|| ());
        let drains = Arc::new(NoDrains);
        let setup =
            OpsSetup { socket: ports.ops, readiness: readiness.clone(), snapshot, backup, worst, drains, shutdown };
        let ops = Ops::spawn(setup).expect("a thread");
        let url = format!("http://{}/backup", ops.address());
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let ask = || {
            let request = agent.post(&url).content_type("application/json").send(r#"{"to": "/backup"}"#);
            let mut response = request.expect("it answers");
            (response.status().as_u16(), response.body_mut().read_to_string().expect("text"))
        };
        assert_eq!(ask().0, 503, "not before it is ready");
        readiness.set(Phase::Ready);
        for (result, expected) in
            [(Ok("{}".to_owned()), 200), (Err(Refusal::bad("what")), 400), (Err(Refusal::failed("why")), 500)]
        {
            thread::scope(|scope| {
                let first = scope.spawn(ask);
                assert_eq!(begins.recv().expect("it begins"), std::path::Path::new("/backup"));
                let (status, said) = ask();
                assert!(status == 409 && said.contains("another backup is under way"), "{status} {said}");
                end.send(result).expect("it waits");
                assert_eq!(first.join().expect("it ends").0, expected);
            });
        }
    }
}
