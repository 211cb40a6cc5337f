//! The command line: every option with its meaning.
//!
//! Owns names, defaults and help. Never acts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, value_parser};

use crate::catalogue::{Goal, Role};
use crate::namespace::Target;
use crate::plan::Format;

/// Beyond it no machine has threads.
const FD_TABLES_MAX: u64 = 65_536;

/// Kernel settings for the Culver messaging gateway
#[derive(Debug, Parser)]
#[command(
    name = "culver-tune",
    version,
    after_help = "Exit codes: 0 ready or done · 1 failure · 2 bad usage · 3 something is missing, or was left alone"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What this machine needs for a number of connections, what it has, and how to mend what is missing
    #[command(after_help = "Examples:\n  \
        culver-tune check --connections 100000\n  \
        culver-tune check --connections 15000 --role both --source-ips 2 --explain\n  \
        culver-tune check --connections 2000000 --fd-tables 120 --pid $(pidof culver)\n  \
        culver-tune check --connections 1000000 --json - | jq '.findings[] | select(.enough | not)'\n\n\
        It reads /proc and changes nothing. Without --pid, the limit of open files is that of the shell that starts it.\n\
        Exits 0 if the machine is ready, 3 if something is missing.")]
    Check {
        #[command(flatten)]
        goal: GoalOptions,
        /// Say of each line by which formula it is required, why, and where the setting is documented
        #[arg(long)]
        explain: bool,
        /// Write the result as JSON; `-`: to standard output, which then holds nothing else
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// What would have to be changed, and why; also as files that make it so at every boot
    #[command(after_help = "Examples:\n  \
        culver-tune plan --connections 1000000\n  \
        culver-tune plan --connections 1000000 --format sysctl.d > /etc/sysctl.d/90-culver.conf\n  \
        culver-tune plan --connections 1000000 --format systemd > /etc/systemd/system/culver.service.d/limits.conf\n\n\
        It reads /proc and changes nothing. The files hold what suffices already too, as it is now.")]
    Plan {
        #[command(flatten)]
        goal: GoalOptions,
        /// How to tell it
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Set what is missing, until the next boot or rollback
    #[command(after_help = "Examples:\n  \
        culver-tune apply --connections 1000000 --dry-run\n  \
        culver-tune apply --connections 2000000 --role both --source-ips 480 --fd-tables 120\n  \
        culver-tune apply --connections 100000 --netns blue\n\n\
        It writes only settings of its own list, never lowers one, and writes down each before it does.\n\
        Exits 0 if the machine is ready afterwards, 3 if something is missing that no setting mends, 1 if it could not\n\
        be done; as anybody but root it prints the commands and changes nothing.")]
    Apply {
        #[command(flatten)]
        goal: GoalOptions,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        journal: JournalOptions,
    },
    /// Undo what `apply` has set, but nothing that somebody else has changed since
    #[command(after_help = "Examples:\n  \
        culver-tune rollback\n  \
        culver-tune rollback --journal /root/tune.jsonl\n\n\
        It may be run again at any time, also after it or `apply` was killed.\n\
        Exits 0 if everything is as it was, 3 if something was left alone, 1 if something could not be put back.")]
    Rollback {
        #[command(flatten)]
        journal: JournalOptions,
    },
}

/// For what, and where.
#[derive(Debug, Args)]
pub(crate) struct GoalOptions {
    /// How many connections are wanted
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    connections: u64,
    /// What is to run here
    #[arg(long, value_enum, default_value_t = Role::Server)]
    role: Role,
    /// From how many addresses the clients here connect
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = value_parser!(u64).range(1..))]
    source_ips: u64,
    /// How many logins are expected in a second [default: N / 60, within 1,000..50,000]
    #[arg(long, value_name = "PER_S", value_parser = value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Over how many descriptor tables connections are spread: the reactors of a server with --private-fd-tables
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = value_parser!(u64).range(1..=FD_TABLES_MAX))]
    fd_tables: u64,
    /// Look at the limits and the network namespace of this process
    #[arg(long, value_name = "PID", value_parser = value_parser!(u32).range(1..), conflicts_with = "netns")]
    pid: Option<u32>,
    /// Look at this network namespace, as `ip netns` names it
    #[arg(long, value_name = "NAME")]
    netns: Option<String>,
}

impl GoalOptions {
    pub(crate) fn goal(&self) -> Goal {
        Goal {
            connections: self.connections,
            role: self.role,
            source_addresses: self.source_ips,
            logins_per_s: self.rate.unwrap_or_else(|| Goal::default_logins_per_s(self.connections)),
            descriptor_tables: self.fd_tables,
        }
    }

    pub(crate) fn target(&self) -> Target {
        match (self.pid, &self.netns) {
            (Some(pid), _) => Target::Process(pid),
            (None, Some(name)) => Target::Named(name.clone()),
            (None, None) => Target::Own,
        }
    }
}

/// Where it is written down.
#[derive(Debug, Args)]
pub(crate) struct JournalOptions {
    /// Where it is written down what was changed
    #[arg(long = "journal", value_name = "FILE", default_value = "/var/lib/culver-tune/journal.jsonl")]
    pub(crate) path: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    /// Other programs tell people to run this line.
    #[test]
    fn names_of_options_stay() {
        let line = "culver-tune apply --connections 2277846 --role both --source-ips 480 --fd-tables 120";
        let Command::Apply { goal, dry_run: false, journal } = parse(line).expect("as told").command else {
            panic!("it is apply")
        };
        assert_eq!(journal.path.to_str(), Some("/var/lib/culver-tune/journal.jsonl"));
        let goal = goal.goal();
        assert_eq!((goal.connections, goal.role, goal.source_addresses), (2_277_846, Role::Both, 480));
        assert_eq!((goal.descriptor_tables, goal.logins_per_s), (120, 37_964));
    }

    #[test]
    fn whose_namespace_is_said_once() {
        let target = |options: &str| match parse(&format!("culver-tune check --connections 1{options}"))?.command {
            Command::Check { goal, .. } => Ok::<_, clap::Error>(goal.target()),
            _ => panic!("it is check"),
        };
        assert_eq!(target("").expect("good"), Target::Own);
        assert_eq!(target(" --pid 7").expect("good"), Target::Process(7));
        assert_eq!(target(" --netns blue").expect("good"), Target::Named("blue".to_owned()));
        assert!(target(" --netns blue --pid 7").is_err());
        assert!(target(" --pid 0").is_err());
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        for options in
            ["--connections 0", "--connections -1", "--connections 1 --fd-tables 0", "--connections 1 --rate 0"]
        {
            assert!(parse(&format!("culver-tune plan {options}")).is_err(), "{options}");
        }
        assert!(parse("culver-tune plan --connections 1 --fd-tables 65537").is_err());
        assert!(parse("culver-tune plan").is_err());
    }
}
