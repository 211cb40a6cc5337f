//! `culver token`: a token for development, signed with the data directory's own credentials.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use culver::auth::keys::{CREDENTIALS_FILE, DevCredentials};
use culver_protocol::crypto::PublicKey;

use super::DataDirArg;

/// Longest life of a development token.
const LIFE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Print a development token for one user's device
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                        culver token --data-dir ./data --user 7 --device 1\n  \
                        culver token --data-dir ./data --user 7 --device 1 --life 10m\n  \
                        culver token --data-dir ./data --user 7 --device 2 --device-key 64-HEX-DIGITS\n\n\
                        With --device-key the token registers that key: who does not hold it cannot use the token over\n\
                        an encrypted connection, and without it no encrypted connection registers a device.")]
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
    /// The device's public key (X25519), which the token names: 64 hex digits
    #[arg(long, value_name = "HEX", value_parser = parse_key)]
    device_key: Option<PublicKey>,
}

impl Token {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let credentials = DevCredentials::read(&self.data_dir.path.join(CREDENTIALS_FILE))?;
        let now_s = super::now_ms()? / 1000;
        let token = credentials.mint(self.user, self.device, now_s, self.life.as_secs(), self.device_key.as_ref())?;
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

fn parse_key(text: &str) -> anyhow::Result<PublicKey> {
    let mut key = PublicKey::default();
    hex::decode_to_slice(text, &mut key).context("write the public key with 64 hex digits")?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_64_hex_digits() {
        assert_eq!(parse_key(&"0f".repeat(32)).expect("a key"), [15; 32]);
        for text in ["", "0f", &"0f".repeat(33), &"0g".repeat(32), &"é".repeat(32)] {
            parse_key(text).expect_err(text);
        }
    }

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
