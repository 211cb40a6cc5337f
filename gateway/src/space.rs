//! Room on the disks: hubs ask [`Space`] whether there is some for what is new, and a [`Reserve`] says when there is not.
//! Never looks at a disk itself.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether every disk has room for what is new. One thread says so, and hubs look once a turn.
#[derive(Debug, Default)]
pub struct Space {
    is_low: AtomicBool,
}

impl Space {
    /// From now on it is so. Whether that is news.
    pub fn set_low(&self, is_low: bool) -> bool {
        // It guards nothing: a turn earlier or later does not matter.
        self.is_low.swap(is_low, Ordering::Relaxed) != is_low
    }

    /// Whether what is new has to wait.
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.is_low.load(Ordering::Relaxed)
    }
}

/// The room that is to stay free on one disk. What has fallen below it has to rise clearly above, so that senders are
/// not let in and turned away by turns.
#[derive(Clone, Copy, Debug)]
pub struct Reserve {
    bytes: u64,
    is_low: bool,
}

impl Reserve {
    /// So many bytes; 0: none.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self { bytes, is_low: false }
    }

    /// So many bytes are free: whether that is too little.
    pub fn judge(&mut self, free: u64) -> bool {
        self.is_low = free < if self.is_low { self.enough() } else { self.bytes };
        self.is_low
    }

    /// Whether there was too little when it was last judged.
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.is_low
    }

    /// So many bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// So many bytes have to be free once there were too few: an eighth more.
    #[must_use]
    pub fn enough(&self) -> u64 {
        self.bytes.saturating_add(self.bytes / 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_too_little_is_enough_only_when_there_is_clearly_more() {
        let mut reserve = Reserve::new(800);
        let judged = [800, 799, 800, 899, 900, 800, 0].map(|free| reserve.judge(free));
        assert_eq!(judged, [false, true, true, true, false, false, true]);
    }

    #[test]
    fn no_reserve_is_never_too_little_and_the_greatest_never_enough() {
        assert!(!Reserve::new(0).judge(0));
        let mut all = Reserve::new(u64::MAX);
        assert!(all.judge(u64::MAX - 1) && all.enough() == u64::MAX);
    }

    #[test]
    fn news_is_told_once() {
        let space = Space::default();
        assert_eq!([false, true, true, false].map(|is_low| space.set_low(is_low)), [false, true, false, true]);
        assert!(!space.is_low());
    }
}
