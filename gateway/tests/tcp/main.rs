//! The real server, in a process of its own, over real sockets. Nothing here waits for time to pass: everything waits
//! for the socket, and the deadlines only bound a failure.

// Their functions are tests by macro, which the lints for tests cannot see.
#[cfg(test)]
mod backlog;
#[cfg(test)]
mod backup;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod delivery;
#[cfg(test)]
mod devices;
#[cfg(test)]
mod drain;
#[cfg(test)]
mod home;
#[cfg(test)]
mod inherit;
#[cfg(test)]
mod life;
#[cfg(test)]
mod login;
#[cfg(test)]
mod logins;
#[cfg(test)]
mod peer;
#[cfg(test)]
mod peers;
#[cfg(test)]
mod rates;
#[cfg(test)]
mod receipts;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod sending;
#[cfg(test)]
mod space;
#[cfg(test)]
mod tables;
#[cfg(test)]
mod topology;
