//! Each promise, broken: the oracle must notice.
