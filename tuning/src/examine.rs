//! Holds the catalogue against a machine: what is required, what is there, and what it would have to be.
//!
//! Owns the verdict of each setting. Never prints, and never changes a setting.

use anyhow::{Result, anyhow};
use serde::Serialize;

use crate::catalogue::{Facts, Goal, KERNEL_BYTES_PER_END, Kind, MEBIBYTE, Setting, Shape, settings};
use crate::machine::{Machine, Place};
use crate::procfs::numbers;

/// How a setting stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Ok,
    Missing,
    /// Nothing is required.
    Info,
    /// This kernel has no such setting, or it cannot be seen from here.
    Absent,
}

/// One setting on one machine.
pub(crate) struct Examined {
    pub(crate) setting: &'static Setting,
    /// `None`: not below /proc/sys, or not there.
    pub(crate) place: Option<Place>,
    /// The whole value as the kernel tells it.
    pub(crate) present: Option<String>,
    pub(crate) required: Option<u64>,
    /// What there is of it, in the setting's unit.
    pub(crate) current: Option<u64>,
    /// What the setting would have to be to give what is required: that, and what others use already.
    total: Option<u64>,
}

/// A setting that is to be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Change {
    pub(crate) setting: &'static str,
    pub(crate) place: Place,
    pub(crate) old: String,
    pub(crate) new: String,
}

/// Every setting of the catalogue on this machine, in its order.
///
/// # Errors
/// A setting cannot be read.
pub(crate) fn examine(machine: &Machine, goal: &Goal) -> Result<Vec<Examined>> {
    let facts = machine.facts()?;
    settings().map(|setting| Examined::of(setting, machine, goal, &facts)).collect()
}

impl Examined {
    fn of(setting: &'static Setting, machine: &Machine, goal: &Goal, facts: &Facts) -> Result<Self> {
        let required = (setting.required)(goal, facts);
        let simple =
            |current| Self { setting, place: None, present: None, required, current: Some(current), total: required };
        match setting.kind {
            Kind::OpenFilesSoft => Ok(simple(machine.open_files()?.soft)),
            Kind::OpenFilesHard => Ok(simple(machine.open_files()?.hard)),
            Kind::MemoryAvailable => {
                let theirs = machine.sockets_of_target()?.saturating_mul(KERNEL_BYTES_PER_END);
                Ok(simple(machine.host().memory_bytes("MemAvailable")?.saturating_add(theirs) / MEBIBYTE))
            }
            Kind::Written(shape) => Self::of_sysctl(setting, shape, required, machine, goal),
            Kind::Shown => Self::of_sysctl(setting, Shape::Number, required, machine, goal),
        }
    }

    fn of_sysctl(
        setting: &'static Setting,
        shape: Shape,
        required: Option<u64>,
        machine: &Machine,
        goal: &Goal,
    ) -> Result<Self> {
        let absent = Self { setting, place: None, present: None, required, current: None, total: None };
        let Some(place) = machine.place(setting)? else { return Ok(absent) };
        let Some(present) = machine.at(place).sysctl(setting.name)? else { return Ok(absent) };
        let amount = shape
            .amount(&numbers(&present), goal)
            .ok_or_else(|| anyhow!("{} has fewer numbers than it should: {present:?}", setting.name))?;
        let used = match shape {
            Shape::Beside(taken) => machine.number(taken)?.unwrap_or(0).saturating_sub(machine.sockets_of_target()?),
            Shape::Number | Shape::Pages | Shape::Ports => 0,
        };
        Ok(Self {
            setting,
            place: Some(place),
            present: Some(present),
            required,
            current: Some(amount.saturating_sub(used)),
            total: required.map(|required| shape.spare(required).saturating_add(used)),
        })
    }

    pub(crate) fn state(&self) -> State {
        match (self.required, self.current) {
            (_, None) => State::Absent,
            (None, Some(_)) => State::Info,
            (Some(required), Some(current)) if current >= required => State::Ok,
            (Some(_), Some(_)) => State::Missing,
        }
    }

    /// What is to be written so that the setting suffices, or comes as near as it can; `None`: nothing.
    pub(crate) fn change(&self, goal: &Goal) -> Option<Change> {
        if self.state() != State::Missing {
            return None;
        }
        let (place, old, new) = (self.place?, self.present.clone()?, self.sufficient(goal)?);
        (old != new).then_some(Change { setting: self.setting.name, place, old, new })
    }

    /// The value with which the setting suffices: the present one, where that does. `None`: it is not one to write.
    pub(crate) fn sufficient(&self, goal: &Goal) -> Option<String> {
        let Kind::Written(shape) = self.setting.kind else { return None };
        let present = numbers(self.present.as_ref()?);
        let raised = shape.raised(&present, self.total?, goal)?;
        Some(raised.iter().map(i64::to_string).collect::<Vec<_>>().join(" "))
    }

    /// How to get there, where it is missing.
    pub(crate) fn mend(&self, machine: &Machine, goal: &Goal) -> Option<String> {
        if self.state() != State::Missing {
            return None;
        }
        let required = self.required?;
        Some(match self.setting.kind {
            Kind::OpenFilesSoft | Kind::OpenFilesHard => format!(
                "LimitNOFILE={required} in the systemd unit, or \"* hard nofile {required}\" (for root: \
                 \"root hard nofile {required}\") in /etc/security/limits.d/culver.conf and log in again, or more --fd-tables"
            ),
            Kind::MemoryAvailable => {
                format!("a machine, or a smaller share of this one for others, with {required} MiB to spare")
            }
            Kind::Shown => return None,
            Kind::Written(Shape::Ports) => self.mend_ports(required, machine, goal),
            Kind::Written(_) => command(machine, &self.change(goal)?),
        })
    }

    fn mend_ports(&self, required: u64, machine: &Machine, goal: &Goal) -> String {
        let change = self.change(goal);
        let widest = change.as_ref().map(|change| change.new.as_str()).or(self.present.as_deref()).unwrap_or_default();
        let one = Goal { source_addresses: 1, ..*goal };
        let ports = Shape::Ports.amount(&numbers(widest), &one).unwrap_or(1).max(1);
        let addresses = required.div_ceil(ports);
        let command = change.map(|change| command(machine, &change));
        let more = (addresses > goal.source_addresses).then(|| {
            format!(
                "--source-ips {addresses}: so many addresses for the clients (on loopback all of 127.0.0.0/8 is there)"
            )
        });
        [command, more].into_iter().flatten().collect::<Vec<_>>().join(", and ")
    }
}

/// The command that makes a change.
pub(crate) fn command(machine: &Machine, change: &Change) -> String {
    sysctl_command(&prefix(machine, change.place), change.setting, &change.new)
}

/// The command that gives a setting a value, with what has to stand before it.
pub(crate) fn sysctl_command(prefix: &str, setting: &str, value: &str) -> String {
    let quote = if value.contains(' ') { "\"" } else { "" };
    format!("{prefix}sysctl -w {setting}={quote}{value}{quote}")
}

fn prefix(machine: &Machine, place: Place) -> String {
    match place {
        Place::Namespace => machine.target().prefix(),
        Place::Host => String::new(),
    }
}
