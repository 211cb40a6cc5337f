//! What the kernel says about this process: CPU time and resident memory.

use rustix::time::{ClockId, clock_gettime};

/// User and system time of all threads, ended ones too, to the nanosecond: clock_gettime(2) with
/// `CLOCK_PROCESS_CPUTIME_ID`.
#[must_use]
pub fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    std::time::Duration::try_from(time).expect("CPU time is never negative").as_secs_f64()
}

/// Resident memory: the second field of /proc/self/statm (proc_pid_statm(5)), in pages. 0 where there is no /proc.
#[must_use]
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
    pages.saturating_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_grows_with_work() {
        let before = cpu_seconds();
        let mut state = 1_u64;
        // Bounded: no CPU does this many dependent divisions within the clock's resolution.
        for divisor in 1..2_000_000_u64 {
            state = std::hint::black_box(state.wrapping_mul(6_364_136_223_846_793_005) / divisor + 1);
        }
        assert!(cpu_seconds() > before, "{state}");
    }

    #[test]
    fn a_process_is_resident() {
        assert!(resident_bytes() > 100_000);
    }
}
