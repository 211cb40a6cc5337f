//! `culver-loadgen`: puts a Culver server, or this machine's floor, under load; measures, checks and reports.

mod clock;
mod dense;
mod journal;
mod links;
mod options;
mod plan;
mod preflight;
mod procfs;
mod report;
mod scenario;
mod sys;
mod target;
mod units;
mod verify;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::report::{BadUsage, Document, JsonTo};
use crate::target::cutdisk::NoFuse;

#[derive(Parser)]
#[command(
    name = "culver-loadgen",
    version,
    about = "Load generator and checker for the Culver messaging gateway",
    after_help = "Exit codes: 0 all promises kept · 1 failure · 2 bad usage · 3 a promise or threshold missed · \
        4 no FUSE here\n\n\
        Examples:\n  culver-loadgen chat --pairs 64 --duration 10s\n  culver-loadgen crash --culver ./culver --rounds 20\n  \
        culver-loadgen density --connections 15000 --json density.json"
)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// Pairs that talk: latency, server CPU per message, and the proof that nothing is lost
    #[command(
        after_help = "Examples:\n  culver-loadgen chat --pairs 64 --in-flight 8 --payload 256 --duration 20s\n  culver-loadgen chat --rate 5000 --interleave 5 --with-floor --floor-sync --json chat.json"
    )]
    Chat(Box<scenario::chat::ChatOptions>),
    /// This machine's floor: the same frames relayed by bare epoll, without storage
    #[command(
        after_help = "Examples:\n  culver-loadgen floor --pairs 64 --in-flight 8\n  culver-loadgen floor --rate 5000 --sync --data-dir /var/tmp --json -"
    )]
    Floor(Box<scenario::floor::FloorOptions>),
    /// What receipts, a second device or encryption add to the server CPU of a message
    #[command(
        after_help = "Examples:\n  culver-loadgen cost recipient-device --in-flight 8 --added-share-max 0.4\n  culver-loadgen cost encryption --in-flight 8 --suite aes256 --added-share-max 0.25\n  culver-loadgen cost receipts --in-flight 1 --with-floor --added-to-floor-max 1.15 \\\n    --plain-target 127.0.0.1:7410 --plain-ops 127.0.0.1:7411 --plain-credentials plain/dev-credentials.json"
    )]
    Cost(Box<scenario::cost::CostOptions>),
    /// Kills the server under load again and again: nothing acknowledged may be lost
    #[command(
        args_override_self = true,
        after_help = "Examples:\n  culver-loadgen crash --culver target/release/culver --rounds 20 --kill-after 200ms..2s\n  culver-loadgen crash --culver ./culver --verify-each-round -- --reactors 2\n  culver-loadgen crash --culver ./culver-crash-points --at all --rounds 27 --hubs 2 --devices 1..3 --reads"
    )]
    Crash(Box<scenario::crash::CrashOptions>),
    /// Cuts the power of the server's disk again and again, and lets it fail: nothing acknowledged may be lost
    #[command(
        args_override_self = true,
        after_help = "Examples:\n  culver-loadgen powercut --culver ./culver --disk target/release/examples/cutdisk --rounds 30\n  culver-loadgen powercut --culver ./culver --disk ./cutdisk --devices 1..3 --verify-each-round -- --hubs 2\n\nEvery kind of round comes in turn, and with it every kind of cut: `drop` loses all that was not synced, `subset`\nkeeps some of its pages, `torn` the first of them and a part of the next."
    )]
    Powercut(Box<scenario::powercut::PowercutOptions>),
    /// Fills the inboxes of users who are away, then all of them come
    #[command(
        after_help = "Examples:\n  culver-loadgen drain --users 100 --messages 1000 --entries-per-cpu-s-min 100000"
    )]
    Drain(Box<scenario::drain::DrainOptions>),
    /// What an idle connection costs, and whether its memory comes back
    #[command(
        after_help = "Examples:\n  culver-loadgen density --connections 15000 --user-bytes-max 192 --given-back-min 0.9\n  culver-loadgen density --connections 2277846 --tickets tickets --with-floor --memory-ratio-max 1.05 --message \\\n    --hold 10m --quiet 60s --beside-pairs 64 --beside-ratio-max 1.15 --json density.json\n\nA worker has a descriptor table of its own, for which the limit of descriptors holds by itself: there are as many\nworkers as the connections need."
    )]
    Density(Box<scenario::density::DensityOptions>),
    /// One message to each of many idle connections, as fast as it goes
    #[command(
        after_help = "Examples:\n  culver-loadgen idle-burst --connections 15000 --rounds 3\n  culver-loadgen idle-burst --connections 1000000 --tickets tickets --message-rate 20000 --delivery-p99-ms-max 500"
    )]
    IdleBurst(Box<scenario::idle_burst::IdleBurstOptions>),
    /// What a login of each kind costs the server, beside one in plaintext and the arithmetic in it
    #[command(
        after_help = "Examples:\n  culver-loadgen handshake --target 127.0.0.1:7400 --server-pid 4711 --resume-max-us 60 \\\n    --forward-secret-max-us 110 --ik-ratio-max 1.5 --json handshake.json\n  culver-loadgen handshake --micro --record-max-ns 1000\n\nThe server must offer plaintext too, there or at --plain-target: that is what all kinds are compared with. A login is a\nconnection that comes, is welcomed, says READY and leaves again."
    )]
    Handshake(Box<scenario::handshake::HandshakeOptions>),
    /// Attackers of every kind beside honest pairs
    #[command(after_help = "Examples:\n  culver-loadgen hostile --rounds 3 --calm 10s --attack 18s\n  \
                          culver-loadgen hostile --silent 0 --crowd 50000 --crowd-cpu 33 --attack 30s --p99-ratio-max 2")]
    Hostile(Box<scenario::hostile::HostileOptions>),
    /// Thousands of clients that log in and never read, beside honest pairs; then they read again
    #[command(after_help = "Examples:\n  culver-loadgen slow --clients 10000 --messages 1000 --json slow.json\n  \
                          culver-loadgen slow --clients 1000 --messages 100 --receive-buffer 4096 --rate 20000\n  \
                          culver-loadgen slow --one --rounds 5 --one-cost-max 0.02\n\n\
                          A client that does not read is a socket that is not read: nothing of it is acknowledged. With --one \
                          there is a single\none beside pairs at full speed, and in every other run that one reads.")]
    Slow(Box<scenario::slow::SlowOptions>),
    /// All of a crowd lose their connections at once and come back, beside pairs that talk
    #[command(
        after_help = "Examples:\n  culver-loadgen storm --connections 5000 --rounds 1\n  culver-loadgen storm --connections 500000 --tickets tickets --rounds 1 --back-within 10m --hold 60s --leave 60s \\\n    --logins-per-s-min 5000 --rss-ratio-max 1.2 --json storm.json\n  culver-loadgen storm --drop silent --reconnect-within 1s\n\nA client that is told when to come again comes then, or up to a tenth of that later; one that is told nothing waits as\nthe protocol says. `attempted late` is how late the crowd itself was, `sent late` how late the pairs were: where they\nare large, this generator was the bottleneck."
    )]
    Storm(Box<scenario::storm::StormOptions>),
    /// A server is asked to end and started again at once, with a crowd on it
    #[command(
        after_help = "Examples:\n  culver-loadgen restart --culver target/release/culver --users 10000 --connections 1000\n  culver-loadgen restart --culver ./culver --users 1000000 --connections 100000 --json restart.json -- --config restart.toml\n  culver-loadgen restart --culver ./culver --listeners own\n\nThis program opens the listening sockets, one for each reactor, and hands them to each server (LISTEN_FDS): so nobody\nfinds the door closed. In restart.toml, how long clients are given to leave: [shutdown] spread_s = 10."
    )]
    Restart(Box<scenario::restart::RestartOptions>),
    /// What it costs a server to refuse a connection, beside accept, write and close
    #[command(
        after_help = "Examples:\n  culver-loadgen shed --attempts 50000 --rounds 7 --ratio-max 1.3\n\nThe server must refuse everybody, and none is to wait in its queue: `per_s = 0`, `source_per_s = 1` and\n`source_burst = 1` below `[logins]` in its settings."
    )]
    Shed(Box<scenario::shed::ShedOptions>),
    /// More and more messages a second, beyond what the server takes, and back
    #[command(
        after_help = "Examples:\n  culver-loadgen overload --rates 5000..200000 --step 4s --overload 20s --json overload.json\n  culver-loadgen overload --pairs 16 --window 1024 --ack-p99-max 2s --goodput-min 0.9\n\nThe server must not limit how fast devices send: device_per_s = 0 and user_per_s = 0 below [sends] in its culver.toml."
    )]
    Overload(Box<scenario::overload::OverloadOptions>),
    /// Several results as one readable table
    #[command(after_help = "Examples:\n  culver-loadgen report density.json chat.json crash.json")]
    Report(scenario::report::ReportOptions),
    /// The relay itself, as `floor` and `chat --with-floor` start it
    #[command(hide = true)]
    Relay {
        #[arg(long, requires = "data_dir")]
        sync: bool,
        #[arg(long)]
        data_dir: Option<PathBuf>,
        #[arg(long)]
        receipts: bool,
    },
    /// The bare floor itself, as `density --with-floor` starts it
    #[command(hide = true)]
    Bare(target::bare::BareOptions),
    /// The bare loop that `shed` compares a server with
    #[command(hide = true)]
    Refuser,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.scenario) {
        Ok(passed) => ExitCode::from(if passed { 0 } else { 3 }),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(match () {
                () if error.is::<NoFuse>() => 4,
                () if error.is::<BadUsage>() => 2,
                () => 1,
            })
        }
    }
}

fn run(scenario: Scenario) -> anyhow::Result<bool> {
    match scenario {
        Scenario::Chat(options) => publish(&options.json_to(), scenario::chat::run(*options)),
        Scenario::Floor(options) => publish(&options.json_to(), scenario::floor::run(*options)),
        Scenario::Cost(options) => publish(&options.json_to(), scenario::cost::run(*options)),
        Scenario::Crash(options) => publish(&options.json_to(), scenario::crash::run(*options)),
        Scenario::Powercut(options) => publish(&options.json_to(), scenario::powercut::run(*options)),
        Scenario::Drain(options) => publish(&options.json_to(), scenario::drain::run(*options)),
        Scenario::Density(options) => publish(&options.json_to(), scenario::density::run(*options)),
        Scenario::IdleBurst(options) => publish(&options.json_to(), scenario::idle_burst::run(*options)),
        Scenario::Handshake(options) => publish(&options.json_to(), scenario::handshake::run(*options)),
        Scenario::Hostile(options) => publish(&options.json_to(), scenario::hostile::run(*options)),
        Scenario::Slow(options) => publish(&options.json_to(), scenario::slow::run(*options)),
        Scenario::Storm(options) => publish(&options.json_to(), scenario::storm::run(*options)),
        Scenario::Restart(options) => publish(&options.json_to(), scenario::restart::run(*options)),
        Scenario::Shed(options) => publish(&options.json_to(), scenario::shed::run(*options)),
        Scenario::Overload(options) => publish(&options.json_to(), scenario::overload::run(*options)),
        Scenario::Report(options) => {
            print!("{}", scenario::report::run(&options)?);
            Ok(true)
        }
        Scenario::Relay { sync, data_dir, receipts } => {
            target::relay::run(data_dir.filter(|_| sync).as_deref(), receipts)?;
            Ok(true)
        }
        Scenario::Bare(options) => {
            target::bare::run(&options)?;
            Ok(true)
        }
        Scenario::Refuser => {
            target::refuser::run()?;
            Ok(true)
        }
    }
}

fn publish(to: &JsonTo, document: anyhow::Result<Document>) -> anyhow::Result<bool> {
    let document = document?;
    document.publish(to)?;
    Ok(document.passed)
}
