//! `GET /connections/worst?count=20`: which connections have the most unsent bytes, as JSON. Asks reactors through a
//! callback; touches no connection.
//!
//! It tells users and where they connect from: only this machine may ask, and no web page in a browser on it that goes by
//! a name of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;

use super::Shared;
use super::backup::{JSON, Refusal, is_of_this_machine};
use crate::reactor::worst::Worst;

/// How many are told where nothing is said of it, and at most.
const COUNT_DEFAULT: usize = 20;
const COUNT_MAX: usize = 1000;
/// How long reactors are waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Finds so many of the connections with the most unsent bytes, within this time; `None`: there are no reactors yet.
/// Called on a thread that may block.
pub type FindWorst = Arc<dyn Fn(usize, Duration) -> Option<Worst> + Send + Sync>;

pub(super) async fn handle(
    State(shared): State<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<impl IntoResponse, Refusal> {
    if !peer.ip().to_canonical().is_loopback() {
        return Err(Refusal::with(StatusCode::FORBIDDEN, "only this machine may ask for connections"));
    }
    if !headers.get(header::HOST).is_some_and(is_of_this_machine) {
        return Err(Refusal::with(StatusCode::FORBIDDEN, "ask by address: http://127.0.0.1:PORT/connections/worst"));
    }
    let count = count(query.as_deref())?;
    let find = Arc::clone(&shared.worst);
    let found = tokio::task::spawn_blocking(move || find(count, PATIENCE)).await;
    let worst = found.map_err(|_| Refusal::unavailable("the server is shutting down"))?;
    let worst = worst.ok_or_else(|| Refusal::unavailable("the server is starting"))?;
    let text = serde_json::to_string(&worst).map_err(|error| Refusal::failed(&error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, JSON)], text + "\n"))
}

fn count(query: Option<&str>) -> Result<usize, Refusal> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(COUNT_DEFAULT) };
    let count = query.strip_prefix("count=").and_then(|count| count.parse().ok());
    count
        .filter(|count| (1..=COUNT_MAX).contains(count))
        .ok_or_else(|| Refusal::bad(&format!("ask with ?count=1 to {COUNT_MAX}, or with nothing for {COUNT_DEFAULT}")))
}
