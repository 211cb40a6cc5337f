//! The whole server, with devices and disks, in one thread and in virtual time, under a seeded scheduler that is out to
//! break it.

// Their functions are tests by macro, which the lints for tests cannot see.
#[cfg(test)]
mod attacks;
#[cfg(test)]
mod calm;
#[cfg(test)]
mod device;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod lives;
#[cfg(test)]
mod net;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod parties;
#[cfg(test)]
mod plan;
#[cfg(all(test, feature = "planted-bugs"))]
mod planted;
#[cfg(test)]
mod run;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod server;
#[cfg(test)]
mod shrink;
#[cfg(test)]
mod silence;
#[cfg(test)]
mod source;
#[cfg(test)]
mod steps;
#[cfg(test)]
mod trace;
#[cfg(test)]
mod world;
