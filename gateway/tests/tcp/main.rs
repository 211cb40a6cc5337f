//! The real server, in a process of its own, over real sockets. Nothing here waits for time to pass: everything waits
//! for the socket, and the deadlines only bound a failure.

mod backlog;
mod bad_input;
mod delivery;
mod devices;
mod home;
mod life;
mod login;
mod peer;
mod receipts;
mod requests;
mod sending;
mod topology;
