//! `culver token`: a token for development, signed with the data directory's own credentials.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use clap::Args;
use culver::auth::keys::{CREDENTIALS_FILE, DevCredentials};

use super::DataDirArg;

/// Longest life of a development token.
const LIFE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Print a development token for one user's device
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                        culver token --data-dir ./data --user 7 --device 1\n  \
                        culver token --data-dir ./data --user 7 --device 1 --life 10m")]
pub(crate) struct Token {
    #[command(flatten)]
    data_dir: DataDirArg,
    /// The user's number
    #[arg(long)]
    user: u64,
    /// The device's number
    #[arg(long, default_value_t = 1)]
    device: u16,
    /// How long it is valid: a number with s, m, h or d
    #[arg(long, value_name = "DURATION", default_value = "1d", value_parser = parse_life)]
    life: Duration,
}

impl Token {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let credentials = DevCredentials::read(&self.data_dir.path.join(CREDENTIALS_FILE))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        let token = credentials.mint(self.user, self.device, now.as_secs(), self.life.as_secs())?;
        super::print(&token)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn parse_life(text: &str) -> anyhow::Result<Duration> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit_s = match text.strip_prefix(digits) {
        Some("s") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        Some("d") => 24 * 3600,
        _ => anyhow::bail!("write a number with its unit: 90s, 10m, 12h or 1d"),
    };
    let count: u64 = digits.parse().context("write a number with its unit, as in 10m")?;
    let life = Duration::from_secs(count.saturating_mul(unit_s));
    ensure!(!life.is_zero() && life <= LIFE_MAX, "choose 1s to {}d", LIFE_MAX.as_secs() / (24 * 3600));
    Ok(life)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_carry_units() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("12h", 43_200), ("1d", 86_400)] {
            assert_eq!(parse_life(text).expect(text), Duration::from_secs(seconds));
        }
        for text in ["", "10", "m", "0s", "367d", "-1s", "1w", "1.5h", "99999999999999999999d", "18446744073709551615d"]
        {
            parse_life(text).expect_err(text);
        }
    }
}
