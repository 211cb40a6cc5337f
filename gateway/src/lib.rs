//! The Culver messaging gateway, as a library so that tests reach its parts; the binary `culver` is a thin shell.

pub mod auth;
pub mod config;
pub mod ops;
pub mod preflight;
