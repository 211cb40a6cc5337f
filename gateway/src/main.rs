//! The binary `culver`: reads its command line and runs one command. Owns exit codes: 0 done, 1 failed, 2 bad usage.

mod command;

use std::process::ExitCode;

use clap::Parser;
use culver::config::ConfigError;
use culver::inherited::InheritedError;
use rustix::fs::Mode;
use rustix::process::umask;

/// Bad usage: the command line or the settings, not the machine.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    culver::logging::abort_on_panic();
    // Messages and keys are for their owner: what this process makes is for no other user of the machine.
    umask(Mode::RWXG | Mode::RWXO);
    match culver::crash_point::set_up().and_then(|()| command::Culver::parse().run()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("culver: {}", explain(&error));
            let is_usage = error.is::<ConfigError>() || error.is::<InheritedError>();
            if is_usage { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// The error and its causes in one line, without what a message has already said about its cause.
fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let separator = if text.is_empty() { "" } else { ": " };
            text.extend([separator, &cause]);
        }
    }
    text
}
