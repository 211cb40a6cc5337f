//! `POST /backup`: asks the server for a backup, one at a time, and answers when it is complete. Takes none itself.
//!
//! The body is `{"to": "/an/absolute/path"}`, the answer JSON: what there is, or `{"error": "…"}`. Only this machine may
//! ask; and no web page in a browser on it, for none may name this content type to a server that has not agreed, nor name
//! this machine by a name of its own.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::{Phase, Shared};

pub(super) const JSON: &str = "application/json";

/// Takes a backup to this directory, and gives up soon once the flag is set. Says what there is then, in JSON. Called on
/// a thread that may block.
pub type TakeBackup = Arc<dyn Fn(PathBuf, &AtomicBool) -> Result<String, Refusal> + Send + Sync>;

/// Why there is no backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    error: String,
}

impl Refusal {
    /// What was asked for cannot be.
    #[must_use]
    pub fn bad(error: &str) -> Self {
        Self::with(StatusCode::BAD_REQUEST, error)
    }

    /// It was tried, and failed.
    #[must_use]
    pub fn failed(error: &str) -> Self {
        Self::with(StatusCode::INTERNAL_SERVER_ERROR, error)
    }

    /// Something else is under way, or nothing is.
    #[must_use]
    pub fn conflict(error: &str) -> Self {
        Self::with(StatusCode::CONFLICT, error)
    }

    /// Not now.
    #[must_use]
    pub fn unavailable(error: &str) -> Self {
        Self::with(StatusCode::SERVICE_UNAVAILABLE, error)
    }

    /// What is said.
    #[must_use]
    pub fn error(&self) -> &str {
        &self.error
    }

    pub(super) fn with(status: StatusCode, error: &str) -> Self {
        Self { status, error: error.to_owned() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let error = serde_json::json!({ "error": self.error });
        (self.status, [(header::CONTENT_TYPE, JSON)], format!("{error}\n")).into_response()
    }
}

/// The body of a request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    to: PathBuf,
}

/// Set while a backup is taken.
#[derive(Clone, Default)]
pub(super) struct Busy(Arc<AtomicBool>);

/// Sets it back.
struct Turn(Busy);

impl Busy {
    fn begin(&self) -> Result<Turn, Refusal> {
        if self.0.swap(true, Ordering::AcqRel) {
            return Err(Refusal::with(StatusCode::CONFLICT, "another backup is under way: wait until it is complete"));
        }
        Ok(Turn(self.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

/// Breaks a backup off when whoever asked for it has gone.
#[derive(Default)]
struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

pub(super) async fn handle(
    State(shared): State<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<impl IntoResponse, Refusal> {
    let to = check(peer, &headers, &body)?;
    if shared.readiness.get() != Phase::Ready {
        return Err(Refusal::unavailable("the server is not ready: ask again when /readyz says so"));
    }
    let turn = shared.busy.begin()?;
    let wanted = Wanted::default();
    let is_unwanted = Arc::clone(&wanted.0);
    let take = Arc::clone(&shared.backup);
    let taking = tokio::task::spawn_blocking(move || {
        let taken = take(to, &is_unwanted);
        drop(turn);
        taken
    });
    let text = taking.await.map_err(|_| Refusal::unavailable("the server is shutting down"))??;
    drop(wanted);
    Ok(([(header::CONTENT_TYPE, JSON)], text + "\n"))
}

/// Whether a host was named by its address, or as what every machine calls itself. A web page whose own name leads to
/// this machine is of the same origin as this port, and needs nobody's leave.
pub(super) fn is_of_this_machine(host: &HeaderValue) -> bool {
    let host = host.to_str().unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// Whoever changes anything asks from this machine, and by its address.
pub(super) fn must_be_of_this_machine(peer: SocketAddr, headers: &HeaderMap, path: &str) -> Result<(), Refusal> {
    if !peer.ip().to_canonical().is_loopback() {
        return Err(Refusal::with(StatusCode::FORBIDDEN, &format!("only this machine may ask for {path}")));
    }
    if !headers.get(header::HOST).is_some_and(is_of_this_machine) {
        return Err(Refusal::with(StatusCode::FORBIDDEN, &format!("ask by address: http://127.0.0.1:PORT{path}")));
    }
    Ok(())
}

pub(super) fn must_be_json(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind != JSON) {
        return Err(Refusal::with(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send `content-type: application/json`"));
    }
    Ok(())
}

fn check(peer: SocketAddr, headers: &HeaderMap, body: &Bytes) -> Result<PathBuf, Refusal> {
    must_be_of_this_machine(peer, headers, "/backup")?;
    must_be_json(headers)?;
    let request: Request = serde_json::from_slice(body)
        .map_err(|error| Refusal::bad(&format!("send {{\"to\": \"/an/absolute/path\"}}: {error}")))?;
    if !request.to.is_absolute() {
        return Err(Refusal::bad(&format!("{} is no absolute path", request.to.display())));
    }
    Ok(request.to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_addresses_and_one_name() {
        let is_ours = |host: &str| is_of_this_machine(&HeaderValue::from_str(host).expect("a header"));
        for host in ["127.0.0.1:7401", "127.0.0.1", "[::1]:7401", "[::1]", "localhost:7401", "LocalHost", "10.0.0.7:1"]
        {
            assert!(is_ours(host), "{host}");
        }
        for host in
            ["evil.example:7401", "evil.example", "localhost.evil.example:7401", "", ":7401", "[evil]:7401", "\u{7f}"]
        {
            assert!(!HeaderValue::from_str(host).is_ok_and(|host| is_of_this_machine(&host)), "{host}");
        }
    }
}
