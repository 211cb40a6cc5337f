//! Which addresses connections come from: one address has at most some 28,000 ports for one target.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::{Serialize, Serializer};

/// The first address on loopback, where a count is asked for.
const LOOPBACK_FIRST: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);
/// Addresses on loopback, at most: up to 127.254.255.254.
const COUNT_MAX: u32 = 253 * 65_536;
/// Connections from one address where nothing is asked for: a quarter of Linux' usual 28,232 ports.
const PER_ADDRESS: u64 = 7000;

/// Source addresses as the command line names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceOption {
    /// So many of 127.0.0.0/8; 0: the kernel chooses.
    Count(u32),
    /// These, by ranges: the first, and how many.
    Listed(Vec<(Ipv4Addr, u32)>),
}

impl FromStr for SourceOption {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Ok(count) = text.parse() {
            if count > COUNT_MAX {
                bail!("at most {COUNT_MAX} addresses of 127.0.0.0/8");
            }
            return Ok(Self::Count(count));
        }
        text.split(',').map(range).collect::<Result<_>>().map(Self::Listed)
    }
}

impl fmt::Display for SourceOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Listed(ranges) => {
                let parts: Vec<String> = ranges.iter().map(|(first, count)| format!("{first}+{count}")).collect();
                f.write_str(&parts.join(","))
            }
        }
    }
}

impl Serialize for SourceOption {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An address, or a prefix less its network and broadcast addresses.
fn range(text: &str) -> Result<(Ipv4Addr, u32)> {
    let wrong = || format!("`{text}` is no address: a number of loopback addresses, or 10.0.0.1,10.1.0.0/24");
    let Some((address, length)) = text.split_once('/') else {
        return Ok((text.parse().with_context(wrong)?, 1));
    };
    let (address, length): (Ipv4Addr, u32) =
        (address.parse().with_context(wrong)?, length.parse().with_context(wrong)?);
    if !(8..=30).contains(&length) {
        bail!("`{text}`: a prefix has 8 to 30 bits; single addresses are written without one");
    }
    let count = 1 << (32 - length);
    let network = u32::from(address) & !(count - 1);
    Ok((Ipv4Addr::from(network + 1), count - 2))
}

/// The addresses of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sources(Vec<(Ipv4Addr, u32)>);

impl Sources {
    /// What was asked for, or enough of loopback that ports never run short.
    ///
    /// # Errors
    /// Addresses of loopback are asked for and the target is elsewhere.
    pub(crate) fn choose(asked: Option<&SourceOption>, target: SocketAddr, connections: u64) -> Result<Self> {
        let is_here = target.ip().is_loopback() && target.is_ipv4();
        match asked {
            Some(SourceOption::Listed(ranges)) => Ok(Self(ranges.clone())),
            Some(SourceOption::Count(0)) => Ok(Self(Vec::new())),
            Some(SourceOption::Count(_)) if !is_here => {
                bail!("{target} is not on IPv4 loopback: give --source-ips a list, 10.0.0.1,10.1.0.0/24, or 0")
            }
            Some(SourceOption::Count(count)) => Ok(Self(vec![(LOOPBACK_FIRST, *count)])),
            None if is_here => {
                let count = u32::try_from(connections.div_ceil(PER_ADDRESS).max(1)).unwrap_or(COUNT_MAX);
                Ok(Self(vec![(LOOPBACK_FIRST, count.min(COUNT_MAX))]))
            }
            None => Ok(Self(Vec::new())),
        }
    }

    /// How many there are; 0: the kernel chooses.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// The address of a worker's connection: workers share none as long as there are enough.
    pub(super) fn pick(&self, worker: u64, workers: u64, connection: u64) -> Option<IpAddr> {
        let count = self.count();
        let (start, end) = (worker * count / workers, (worker + 1) * count / workers);
        let number = if end > start { start + connection % (end - start) } else { worker.checked_rem(count)? };
        self.at(number)
    }

    fn at(&self, mut number: u64) -> Option<IpAddr> {
        for (first, count) in &self.0 {
            if let Some(offset) = u32::try_from(number).ok().filter(|offset| offset < count) {
                return Some(Ipv4Addr::from(u32::from(*first) + offset).into());
            }
            number = number.saturating_sub(u64::from(*count));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn here() -> SocketAddr {
        "127.0.0.1:7400".parse().expect("an address")
    }

    #[test]
    fn a_count_is_of_loopback_and_a_list_is_taken_as_it_is() {
        let option: SourceOption = "3".parse().expect("a count");
        let sources = Sources::choose(Some(&option), here(), 10).expect("loopback");
        let all: Vec<String> = (0..3).filter_map(|number| sources.at(number)).map(|ip| ip.to_string()).collect();
        assert_eq!(all, ["127.1.0.1", "127.1.0.2", "127.1.0.3"]);
        let far = "10.0.0.9:7400".parse().expect("an address");
        assert!(Sources::choose(Some(&option), far, 10).is_err());
        assert_eq!(Sources::choose(None, far, 10).expect("the kernel chooses").count(), 0);

        let option: SourceOption = "10.0.0.1,10.0.0.2,10.1.0.77/24".parse().expect("a list");
        let sources = Sources::choose(Some(&option), far, 10).expect("a list is for everywhere");
        assert_eq!(sources.count(), 256);
        assert_eq!(sources.at(1).map(|ip| ip.to_string()).as_deref(), Some("10.0.0.2"));
        assert_eq!(sources.at(2).map(|ip| ip.to_string()).as_deref(), Some("10.1.0.1"));
        assert_eq!(sources.at(255).map(|ip| ip.to_string()).as_deref(), Some("10.1.0.254"));
        assert_eq!(sources.at(256), None);
        for wrong in ["", "x", "10.0.0.0/31", "10.0.0.0/4", "10.0.0", "1.2.3.4/x", "99999999"] {
            assert!(wrong.parse::<SourceOption>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn millions_have_enough_addresses_and_workers_share_none() {
        let sources = Sources::choose(None, here(), 2_277_846).expect("loopback");
        assert_eq!(sources.count(), 326);
        let mut seen = BTreeSet::new();
        for worker in 0..120 {
            let own: BTreeSet<_> = (0..100).filter_map(|connection| sources.pick(worker, 120, connection)).collect();
            assert!((2..=3).contains(&own.len()));
            assert!(own.into_iter().all(|address| seen.insert(address)), "two workers share an address");
        }
        assert_eq!(seen.len(), 326);
        let few = Sources::choose(Some(&SourceOption::Count(4)), here(), 1).expect("loopback");
        assert!((0..120).all(|worker| few.pick(worker, 120, worker).is_some()), "too few are shared");
    }
}
