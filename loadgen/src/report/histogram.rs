//! Latencies: one HdrHistogram per worker and measured slot, merged at the end, told as percentiles.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest latency told apart: two minutes.
const LATENCY_US_MAX: u64 = 120_000_000;
/// Longest wait told apart: an hour.
const WAIT_US_MAX: u64 = 3600 * 1_000_000;

/// Latencies in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    histogram: Histogram<u64>,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("bounds and digits are within range");
        Self { histogram }
    }

    /// For what may take far longer than any answer: merged only with its like.
    pub(crate) fn of_waits() -> Self {
        let histogram = Histogram::new_with_bounds(1, WAIT_US_MAX, 3).expect("bounds and digits are within range");
        Self { histogram }
    }

    /// Records one latency; what is beyond the range counts as its end.
    pub(crate) fn record(&mut self, us: u64) {
        self.histogram.saturating_record(us.max(1));
    }

    /// Records one latency so many times.
    pub(crate) fn record_many(&mut self, us: u64, count: u64) {
        self.histogram.saturating_record_n(us.max(1), count);
    }

    /// Adds what another worker recorded.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("those that are merged have the same bounds");
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.histogram.reset();
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        let at = |quantile| if self.histogram.is_empty() { 0 } else { self.histogram.value_at_quantile(quantile) };
        Percentiles {
            count: self.histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: if self.histogram.is_empty() { 0 } else { self.histogram.max() },
        }
    }
}

/// A distribution in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    pub(crate) count: u64,
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

/// The middle value; the mean of the two middle ones where their number is even; 0 of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.len() / 2;
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    if sorted.len() % 2 == 1 { at(upper) } else { f64::midpoint(at(upper.saturating_sub(1)), at(upper)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_is_as_good_as_recording_in_one_place() {
        let (mut one, mut two, mut all) = (Latencies::new(), Latencies::new(), Latencies::new());
        for us in 1..=10_000 {
            if us % 3 == 0 {
                one.record(us)
            } else {
                two.record(us)
            }
            all.record(us);
        }
        one.merge(&two);
        assert_eq!(one.percentiles(), all.percentiles());
        assert_eq!(one.percentiles().count, 10_000);
        let p50 = one.percentiles().p50;
        assert!((4990..=5010).contains(&p50), "{p50}");
    }

    #[test]
    fn the_end_of_the_range_keeps_what_is_beyond() {
        let mut latencies = Latencies::new();
        latencies.record(u64::MAX);
        latencies.record(0);
        assert_eq!(latencies.percentiles().count, 2);
        assert!(latencies.percentiles().max >= LATENCY_US_MAX);
        latencies.clear();
        assert_eq!(latencies.percentiles(), Percentiles::default());
        let mut waits = Latencies::of_waits();
        waits.record(10 * LATENCY_US_MAX);
        assert!(waits.percentiles().max >= 10 * LATENCY_US_MAX, "a wait may be longer");
    }

    #[test]
    fn medians() {
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(median(&[]), 0.0));
        assert!(close(median(&[3.0, 1.0, 2.0]), 2.0));
        assert!(close(median(&[4.0, 1.0, 2.0, 3.0]), 2.5));
    }
}
