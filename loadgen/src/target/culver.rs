//! A Culver server that runs already: its address, its ops port, its development credentials.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use culver_protocol::client::{Credential, Encryption};
use culver_protocol::crypto::KeyPair;
use culver_protocol::id::{DeviceId, UserId};
use serde::Serialize;

use super::credentials::Credentials;
use super::sealing::{Sealing, SuiteOption, device_key};
use super::{Sample, Target};

/// Longest wait for the ops port.
const OPS_TIMEOUT: Duration = Duration::from_secs(5);

/// The server under load.
pub(crate) struct Culver {
    address: SocketAddr,
    ops: Ops,
    credentials: Credentials,
    sealing: Option<Sealing>,
}

/// Who is there, by the server's own word.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Presence {
    pub(crate) sessions: u64,
    pub(crate) connections: u64,
}

impl Culver {
    /// Finds the server: reads the credentials and asks the ops port once.
    pub(crate) fn find(address: SocketAddr, ops: SocketAddr, credentials: &Path, suite: SuiteOption) -> Result<Self> {
        let ops = Ops::new(ops);
        ops.metrics().context("is the server running? `culver serve` starts it")?;
        let credentials = Credentials::load(credentials)?;
        let sealing = credentials.sealing(suite)?;
        Ok(Self { address, ops, credentials, sealing })
    }

    /// How connections to it are sealed; `None`: not at all.
    pub(crate) fn sealing(&self) -> Option<Sealing> {
        self.sealing
    }

    /// How many connections it takes; `None`: it does not tell.
    pub(crate) fn connections_max(&self) -> Result<Option<u64>> {
        Ok(self.ops.metrics()?.get("culver_connections_max").map(whole))
    }

    /// How many connections and logged-in sessions it says it has.
    pub(crate) fn presence(&self) -> Result<Presence> {
        let metrics = self.ops.metrics()?;
        Ok(Presence {
            sessions: whole(metrics.value("culver_sessions")?),
            connections: whole(metrics.value("culver_connections")?),
        })
    }

    /// What tokens are made with.
    pub(crate) fn credentials(&self) -> &Credentials {
        &self.credentials
    }
}

impl Target for Culver {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn credential(&self, user: UserId, device: DeviceId) -> Result<Credential> {
        let key = self.sealing.map(|_| device_key(user, device));
        Ok(Credential::Token(self.credentials.token(user, device, key.as_ref().map(KeyPair::public))?))
    }

    fn encryption(&self, user: UserId, device: DeviceId) -> Option<Encryption> {
        self.sealing.map(|sealing| sealing.encryption(user, device))
    }

    fn sample(&mut self) -> Result<Sample> {
        let metrics = self.ops.metrics()?;
        let seconds = metrics.value("culver_process_cpu_seconds_total")?;
        let engine = ["memtable", "block_cache", "table_reader"]
            .iter()
            .filter_map(|part| metrics.get(&format!("culver_rocksdb_{part}_bytes")))
            .sum();
        Ok(Sample {
            cpu_us: whole(seconds * 1e6),
            rss_bytes: whole(metrics.value("culver_process_resident_bytes")?),
            engine_bytes: whole(engine),
            allocated_bytes: metrics.get("culver_allocated_bytes").map(whole),
        })
    }
}

/// An ops port.
#[derive(Clone)]
pub(crate) struct Ops {
    address: SocketAddr,
    agent: ureq::Agent,
}

impl Ops {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(OPS_TIMEOUT)).build();
        Self { address, agent: config.into() }
    }

    /// Reads all metrics.
    pub(crate) fn metrics(&self) -> Result<Metrics> {
        let url = format!("http://{}/metrics", self.address);
        let mut answer = self.agent.get(&url).call().with_context(|| format!("no metrics from {url}"))?;
        let text = answer.body_mut().read_to_string().with_context(|| format!("no metrics from {url}"))?;
        Ok(Metrics { text })
    }

    /// Whether the server says that it is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.agent.get(format!("http://{}/readyz", self.address)).call().is_ok()
    }
}

/// One scrape, in Prometheus' text format.
pub(crate) struct Metrics {
    text: String,
}

impl Metrics {
    /// The sum over all label sets of one metric; `None`: it is not there.
    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        let values = self.text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let labelled = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map(|(_, rest)| rest);
            let value = labelled.unwrap_or(rest).strip_prefix(' ')?;
            value.split_whitespace().next()?.parse::<f64>().ok()
        });
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// Like [`Metrics::get`], where the metric must be there.
    pub(crate) fn value(&self, name: &str) -> Result<f64> {
        let Some(value) = self.get(name) else { bail!("the ops port does not tell {name}") };
        Ok(value)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "metrics are counts, below 2^52")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_labels_and_never_mixed_up() {
        let text =
            "# HELP a_total x\n# TYPE a_total counter\na_total{t=\"1\"} 2\na_total{t=\"2\"} 3.5\na_totals 9\nb 4\n";
        let metrics = Metrics { text: text.to_owned() };
        assert_eq!(metrics.get("a_total"), Some(5.5));
        assert_eq!(metrics.get("b"), Some(4.0));
        assert_eq!(metrics.get("a"), None);
        assert!(metrics.value("c").is_err());
    }
}
