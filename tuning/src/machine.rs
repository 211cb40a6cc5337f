//! The machine a server runs on: its settings, wherever they are.
//!
//! Owns which settings belong to the namespace and which to the whole machine, told apart by what is really there.
//! Never judges a value.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::catalogue::{Facts, Scope, Setting};
use crate::counters::Counter;
use crate::namespace::{Namespace, Target};
use crate::procfs::{Limit, Procfs, numbers};

/// Where a setting is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Place {
    Host,
    Namespace,
}

/// A machine, seen from a network namespace and as a whole.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    namespace: Procfs,
    host: Procfs,
    target: Target,
}

impl Machine {
    /// The machine as the processes of `target` see it.
    ///
    /// # Errors
    /// There is no such process or namespace, or it may not be entered.
    pub(crate) fn open(target: Target) -> Result<Self> {
        let namespace = Procfs::of(Namespace::open(&target)?);
        let host = Procfs::of(Namespace::initial()?);
        Ok(Self { namespace, host, target })
    }

    /// A machine of a test's own.
    #[cfg(test)]
    pub(crate) fn of(namespace: Procfs, host: Procfs, target: Target) -> Self {
        Self { namespace, host, target }
    }

    pub(crate) fn namespace(&self) -> &Procfs {
        &self.namespace
    }

    pub(crate) fn host(&self) -> &Procfs {
        &self.host
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    pub(crate) fn at(&self, place: Place) -> &Procfs {
        match place {
            Place::Host => &self.host,
            Place::Namespace => &self.namespace,
        }
    }

    /// Where this kernel has the setting; `None`: nowhere that can be seen from here.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(crate) fn place(&self, setting: &Setting) -> Result<Option<Place>> {
        let there = |place| Ok::<_, anyhow::Error>(self.at(place).sysctl(setting.name)?.is_some());
        if setting.scope == Scope::Host {
            return Ok(there(Place::Host)?.then_some(Place::Host));
        }
        let seen = there(Place::Namespace)?;
        if seen && (!setting.is_written() || self.namespace.is_writable(setting.name)?) {
            return Ok(Some(Place::Namespace));
        }
        // Shown read-only, or not at all, within a namespace: then it is one for all of them.
        if there(Place::Host)? {
            return Ok(Some(Place::Host));
        }
        Ok(seen.then_some(Place::Namespace))
    }

    /// The first number of a file below /proc/sys, of the namespace if it has one.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>> {
        let text = match self.namespace.sysctl(name)? {
            None => self.host.sysctl(name)?,
            some => some,
        };
        Ok(text.and_then(|text| numbers(&text).first().map(|number| number.unsigned_abs())))
    }

    /// How many files the server may hold open: the process asked about, or else this one and what it starts.
    ///
    /// # Errors
    /// The process is gone.
    pub(crate) fn open_files(&self) -> Result<Limit> {
        match &self.target {
            Target::Process(pid) => self.host.open_files(&pid.to_string()),
            Target::Own | Target::Named(_) => self.host.open_files("self"),
        }
    }

    /// Sockets that the process asked about, or its neighbours in the namespace, have open: they are part of the goal
    /// already, not others' use. Nothing is known of them when nobody is asked about.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub(crate) fn sockets_of_target(&self) -> Result<u64> {
        match self.target {
            Target::Process(_) => Ok(Counter::Sockstat("TCP", "inuse").read(self)?.unwrap_or(0)),
            Target::Own | Target::Named(_) => Ok(0),
        }
    }

    /// What formulas depend on.
    ///
    /// # Errors
    /// The memory's size is not told.
    pub(crate) fn facts(&self) -> Result<Facts> {
        let page_bytes = u64::try_from(rustix::param::page_size()).context("the size of a page")?;
        let syncookies = self.number("net.ipv4.tcp_syncookies")?.is_some_and(|mode| mode > 0);
        Ok(Facts { memory_bytes: self.host.memory_bytes("MemTotal")?, page_bytes, syncookies })
    }
}
