//! Being asked to end: the first SIGINT or SIGTERM is noted, so that a run closes its connections; the second ends it.

use std::sync::atomic::{AtomicBool, Ordering};

static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the run was asked to end.
pub(crate) fn is_interrupted() -> bool {
    IS_INTERRUPTED.load(Ordering::Relaxed)
}

/// From now on the first signal only asks.
#[expect(unsafe_code, reason = "no safe wrapper knows sigaction(2)")]
pub(crate) fn catch_interrupts() {
    let handler: extern "C" fn(libc::c_int) = note_interrupt;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: a zeroed sigaction is a valid one, with an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART | libc::SA_RESETHAND;
        // SAFETY: the action is initialised, and its handler does nothing but store into a static atomic.
        let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        assert_eq!(result, 0, "these signals can be caught");
    }
}

extern "C" fn note_interrupt(_signal: libc::c_int) {
    IS_INTERRUPTED.store(true, Ordering::Relaxed);
}
