//! The sans-io client.
