//! Listeners within the range of ports that the kernel hands out to clients.
//!
//! Owns the warning. A range that takes in a listener's port does no harm until the listener is restarted: then a client
//! may hold its port, and bind(2) fails. Never writes a setting.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use anyhow::Result;

use crate::examine::{Change, sysctl_command};
use crate::machine::Machine;
use crate::procfs::numbers;

const RANGE: &str = "net.ipv4.ip_local_port_range";
const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";

/// What is to be said before these changes are made; `None`: they take in no listener's port.
///
/// # Errors
/// The listeners cannot be read.
pub(crate) fn warning(machine: &Machine, changes: &[Change]) -> Result<Option<String>> {
    let Some(change) = changes.iter().find(|change| change.setting == RANGE) else { return Ok(None) };
    let (Some(old), Some(new)) = (range(&change.old), range(&change.new)) else { return Ok(None) };
    let reserved = machine.namespace().list(RESERVED)?.unwrap_or_default();
    let kept_out = ranges(&reserved);
    let taken_in: BTreeSet<i64> = machine
        .namespace()
        .listening_ports()?
        .into_iter()
        .map(i64::from)
        .filter(|port| new.contains(port) && !old.contains(port))
        .filter(|port| !kept_out.iter().any(|range| range.contains(port)))
        .collect();
    if taken_in.is_empty() {
        return Ok(None);
    }
    let ports = taken_in.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    // What is written replaces what is there.
    let value = if reserved.is_empty() { ports.clone() } else { format!("{reserved},{ports}") };
    let command = sysctl_command(&machine.target().prefix(), RESERVED, &value);
    Ok(Some(format!(
        "{RANGE} {} takes in a port that somebody listens on here: {ports}. A client may be given it while the listener \
         is restarted, which then cannot bind it. To keep it out: {command}",
        change.new
    )))
}

fn range(text: &str) -> Option<RangeInclusive<i64>> {
    match numbers(text).as_slice() {
        [first, last] => Some(*first..=*last),
        _ => None,
    }
}

/// The ranges of a list such as `7400,8000-8010`.
fn ranges(list: &str) -> Vec<RangeInclusive<i64>> {
    let one = |word: &str| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    list.split(',').filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Place;
    use crate::testing::Fake;

    const HEADER: &str = "  sl  local_address rem_address   st tx_queue rx_queue\n";

    fn change(old: &str, new: &str) -> Change {
        Change { setting: RANGE, place: Place::Namespace, old: old.to_owned(), new: new.to_owned() }
    }

    /// Listeners on 7400 (IPv4 and IPv6) and 40000, then a connection of 8000.
    fn listening() -> Fake {
        let fake = Fake::new();
        let four = "   0: 00000000:1CE8 00000000:0000 0A 0\n   1: 0100007F:9C40 00000000:0000 0A 0\n   \
            2: 0100007F:1F40 0100007F:9C40 01 0\n";
        let six = "   0: 00000000000000000000000000000000:1CE8 00000000000000000000000000000000:0000 0A 0\n";
        fake.write("thread-self/net/tcp", &format!("{HEADER}{four}"));
        fake.write("thread-self/net/tcp6", &format!("{HEADER}{six}"));
        fake
    }

    #[test]
    fn a_range_that_takes_in_a_listener_is_told() {
        let fake = listening();
        let changes = [change("32768 60999", "1024 65535")];
        let text = warning(&fake.machine, &changes).expect("readable").expect("7400 is taken in");
        assert!(text.contains("listens on here: 7400. "), "40000 was in it before: {text}");
        assert!(text.ends_with("sysctl -w net.ipv4.ip_local_reserved_ports=7400"), "{text}");
        fake.set(RESERVED, "9000-9009\n");
        let text = warning(&fake.machine, &changes).expect("readable").expect("7400 is taken in");
        assert!(text.ends_with("ip_local_reserved_ports=9000-9009,7400"), "what is kept out already stays so: {text}");
    }

    #[test]
    fn what_is_kept_out_or_not_taken_in_is_not_told() {
        let fake = listening();
        for changes in [vec![], vec![change("32768 60999", "25534 65535")], vec![change("1024 60999", "1024 65535")]] {
            assert_eq!(warning(&fake.machine, &changes).expect("readable"), None);
        }
        let changes = [change("32768 60999", "1024 65535")];
        for reserved in ["7400\n", "80,7000-7500\n"] {
            fake.set(RESERVED, reserved);
            assert_eq!(warning(&fake.machine, &changes).expect("readable"), None, "{reserved}");
        }
        assert_eq!(warning(&Fake::new().machine, &changes).expect("readable"), None, "nobody listens");
    }

    #[test]
    fn a_list_of_ports_is_numbers_and_ranges() {
        assert_eq!(ranges("7400,8000-8010"), [7400..=7400, 8000..=8010]);
        assert_eq!(ranges(""), []);
        assert_eq!(ranges("x,-,5-"), []);
    }
}
