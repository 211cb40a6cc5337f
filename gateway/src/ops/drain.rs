//! `/drain`: asks clients to go while the server stays (POST), says how far that is (GET), and asks nobody any more
//! (DELETE). Tells nobody itself.
//!
//! The body of POST is JSON, all of it optional; the answer to each is `{"draining": …, "since_ms": …, "told": …,
//! "connected": …}`, or `{"error": "…"}`. Only this machine may begin and end it, as with `/backup`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use culver_protocol::limits::{ALTERNATE_LEN_MAX, ALTERNATES_MAX};
use serde::{Deserialize, Serialize};

use super::backup::{JSON, must_be_json, must_be_of_this_machine};
use super::{Refusal, Shared};

/// Fastest pace: more than there are connections to most servers.
const CONNECTIONS_PER_S_MAX: u32 = 1_000_000;
/// Longest time in which all are told: a day.
const SPREAD_S_MAX: u32 = 86_400;
/// Longest time that those have who were told.
const FINISH_S_MAX: u32 = 3600;
/// And where none is named.
pub const FINISH_S_DEFAULT: u32 = 30;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainRequest {
    /// Clients told in a second, over all reactors.
    pub connections_per_s: Option<u32>,
    /// Or: seconds in which all are told, evenly.
    pub spread_s: Option<u32>,
    /// Where clients may go instead: `host:port`.
    pub alternates: Vec<String>,
    /// Seconds after the last was told in which they may go by themselves.
    pub finish_s: Option<u32>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainProgress {
    /// Whether clients are asked to go, or were and stay away.
    pub draining: bool,
    /// Since when, in milliseconds since 1970; 0 where not.
    pub since_ms: u64,
    /// Clients told since then.
    pub told: u64,
    /// Connections that are there.
    pub connected: u64,
}

/// Who does it.
pub trait Drains: Send + Sync {
    /// Begins.
    ///
    /// # Errors
    /// Not now.
    fn begin(&self, request: DrainRequest) -> Result<DrainProgress, Refusal>;
    /// Says how far it is.
    fn progress(&self) -> DrainProgress;
    /// Ends it: the server is ready again.
    ///
    /// # Errors
    /// There is nothing to end.
    fn abort(&self) -> Result<DrainProgress, Refusal>;
}

/// What does it, shared.
pub type DrainsArc = Arc<dyn Drains>;

impl DrainRequest {
    fn parse(body: &[u8]) -> Result<Self, Refusal> {
        // Names are needed: a list would be taken for them in their order.
        let named = serde_json::from_slice(body).map(serde_json::Value::Object);
        let request: Self = named.and_then(serde_json::from_value).map_err(|error| {
            Refusal::bad(&format!(
                "send {{\"connections_per_s\": N or \"spread_s\": S, \"alternates\": [\"host:port\"], \"finish_s\": F}}, \
                 all of it optional: {error}"
            ))
        })?;
        if request.connections_per_s.is_some() && request.spread_s.is_some() {
            return Err(Refusal::bad("connections_per_s and spread_s both say how fast: send one of them"));
        }
        within("connections_per_s", request.connections_per_s, 1, CONNECTIONS_PER_S_MAX)?;
        within("spread_s", request.spread_s, 0, SPREAD_S_MAX)?;
        within("finish_s", request.finish_s, 0, FINISH_S_MAX)?;
        if request.alternates.len() > ALTERNATES_MAX {
            return Err(Refusal::bad(&format!("there are at most {ALTERNATES_MAX} alternates")));
        }
        match request.alternates.iter().find(|alternate| !is_address(alternate)) {
            Some(wrong) => Err(Refusal::bad(&format!(
                "alternate {wrong:?} is no host:port, or has more than {ALTERNATE_LEN_MAX} bytes"
            ))),
            None => Ok(request),
        }
    }
}

fn within(name: &str, value: Option<u32>, least: u32, most: u32) -> Result<(), Refusal> {
    match value {
        Some(value) if !(least..=most).contains(&value) => {
            Err(Refusal::bad(&format!("{name} = {value} is not possible: {least} to {most}")))
        }
        _ => Ok(()),
    }
}

/// A name or an address, and a port. An IPv6 address stands in brackets.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_name = |name: &str| {
        let is_fit = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_');
        !name.is_empty() && name.chars().all(is_fit)
    };
    let is_bracketed = || text.parse::<SocketAddr>().is_ok();
    let is_port = port.chars().all(|digit| digit.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    text.len() <= ALTERNATE_LEN_MAX && is_port && (is_name(host) || is_bracketed())
}

pub(super) async fn begin(
    State(shared): State<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<impl IntoResponse, Refusal> {
    must_be_of_this_machine(peer, &headers, "/drain")?;
    must_be_json(&headers)?;
    Ok(answer(&shared.drains.begin(DrainRequest::parse(&body)?)?))
}

pub(super) async fn progress(State(shared): State<Shared>) -> impl IntoResponse {
    answer(&shared.drains.progress())
}

pub(super) async fn abort(
    State(shared): State<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Refusal> {
    must_be_of_this_machine(peer, &headers, "/drain")?;
    Ok(answer(&shared.drains.abort()?))
}

fn answer(progress: &DrainProgress) -> impl IntoResponse + use<> {
    let text = serde_json::to_string(progress).expect("numbers are JSON");
    ([(header::CONTENT_TYPE, JSON)], text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_request_is_optional() {
        assert_eq!(DrainRequest::parse(b"{}").expect("nothing named"), DrainRequest::default());
        let all = br#"{"connections_per_s": 500, "alternates": ["b.example:7400", "[::1]:7400"], "finish_s": 0}"#;
        let request = DrainRequest::parse(all).expect("possible");
        assert_eq!((request.connections_per_s, request.alternates.len(), request.finish_s), (Some(500), 2, Some(0)));
    }

    #[test]
    fn a_bad_request_gets_one_clear_error() {
        for (body, expected) in [
            ("", "all of it optional"),
            ("[]", "all of it optional"),
            ("[500]", "all of it optional"),
            (r#"{"spread": 1}"#, "unknown field `spread`"),
            (r#"{"spread_s": -1}"#, "invalid value"),
            (r#"{"spread_s": 86401}"#, "spread_s = 86401 is not possible: 0 to 86400"),
            (r#"{"connections_per_s": 0}"#, "connections_per_s = 0 is not possible: 1 to 1000000"),
            (r#"{"finish_s": 3601}"#, "finish_s = 3601 is not possible: 0 to 3600"),
            (r#"{"connections_per_s": 1, "spread_s": 1}"#, "send one of them"),
            (r#"{"alternates": ["a:1","a:1","a:1","a:1","a:1","a:1","a:1","a:1","a:1"]}"#, "at most 8"),
        ] {
            let error = DrainRequest::parse(body.as_bytes()).expect_err(body);
            assert!(error.error().contains(expected), "{body}: {}", error.error());
        }
        let long = format!("{}:1", "a".repeat(ALTERNATE_LEN_MAX));
        for alternate in ["", "host", "host:", ":7400", "host:0", "host:65536", "host:+1", "a b:1", "::1:7400", &long] {
            let body = serde_json::json!({ "alternates": [alternate] }).to_string();
            let error = DrainRequest::parse(body.as_bytes()).expect_err(alternate);
            assert!(error.error().contains("is no host:port"), "{alternate}: {}", error.error());
        }
    }
}
