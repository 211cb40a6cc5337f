//! `culver keys`: the server's keys, their certificates, and ticket keys. Changes files; a running server follows them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use culver::auth::keys::{ticket_key_path, write_whole};
use culver::auth::server_folder::{CERTIFIED_DAYS, CERTIFIED_DAYS_MAX, Entry, ServerFolder, Standing};
use culver::auth::ticket_keys::TicketKeys;
use culver::auth::{KeyError, Root, ServerKeys};
use culver::config::Config;
use serde::Serialize;

use super::{DataDirArg, JsonArg, now_ms};

const DAY_MS: u64 = 24 * 3600 * 1000;
/// Requests and certificates are no secrets.
const FILE_MODE: u32 = 0o644;
/// Longest request, or certificate, in hex.
const FILE_LEN_MAX: u64 = 4096;

/// List, make, certify and retire the server's keys
#[derive(Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  \
                  culver keys list --data-dir ./data\n  \
                  culver keys rotate --data-dir ./data              another server key, which is shown from then on\n  \
                  culver keys retire --data-dir ./data              the older one goes: some weeks later, say\n  \
                  culver keys rotate --data-dir ./data --tickets    another key for resume tickets\n\n\
                  A server key is certified by a root, whose public key clients are built with. `culver init` makes a\n\
                  root for development in DIR/keys/root-private.pem. In production the private root belongs on a machine\n\
                  of its own, best without a network; only its public key is on the server:\n  \
                  offline:  openssl genpkey -algorithm ed25519 -out root-private.pem\n            \
                  openssl pkey -in root-private.pem -pubout -out root-public.pem\n  \
                  server:   put root-public.pem into DIR/keys/, and delete DIR/keys/root-private.pem\n  \
                  server:   culver keys rotate --data-dir DIR --request new.request\n  \
                  offline:  culver keys certify --root root-private.pem --request new.request --out new.cert\n  \
                  server:   culver keys add --data-dir DIR --cert new.cert\n\n\
                  Neither file is a secret. A running server follows every change within seconds."
)]
pub(crate) struct Keys {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    List(List),
    Rotate(Rotate),
    Certify(Certify),
    Add(Add),
    Retire(Retire),
}

/// Show the keys there are
#[derive(Args)]
#[command(after_help = "Examples:\n  culver keys list --data-dir ./data\n  culver keys list --data-dir ./data --json")]
struct List {
    #[command(flatten)]
    data_dir: DataDirArg,
    #[command(flatten)]
    json: JsonArg,
}

/// Make another key, which is used from then on; the one before stays good until it is retired
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                        culver keys rotate --data-dir ./data\n  \
                        culver keys rotate --data-dir ./data --root /media/root-private.pem --days 90\n  \
                        culver keys rotate --data-dir ./data --request new.request     with the root elsewhere\n  \
                        culver keys rotate --data-dir ./data --tickets\n  \
                        culver keys rotate --data-dir ./data --tickets --config /etc/culver.toml\n\n\
                        Two keys are the most: retire the older one first.")]
struct Rotate {
    #[command(flatten)]
    data_dir: DataDirArg,
    /// The private root that certifies the key [default: DIR/keys/root-private.pem]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["request", "tickets"])]
    root: Option<PathBuf>,
    /// How long the key is certified for
    #[arg(long, value_name = "N", default_value_t = CERTIFIED_DAYS, conflicts_with = "tickets",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(CERTIFIED_DAYS_MAX)))]
    days: u32,
    /// Write what the root must sign to this file: the key waits for its certificate
    #[arg(long, value_name = "FILE", conflicts_with = "tickets")]
    request: Option<PathBuf>,
    /// Another key for resume tickets instead of a server key
    #[arg(long)]
    tickets: bool,
    /// The settings that the server runs with, which say how long tickets are good [default: DIR/culver.toml]
    #[arg(long, value_name = "FILE", requires = "tickets")]
    config: Option<PathBuf>,
}

/// Sign a request, on the machine that has the root
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                        culver keys certify --root root-private.pem --request new.request --out new.cert\n\n\
                        It needs no data directory. Look at the number, the key and the days that it prints: the root\n\
                        answers for them.")]
struct Certify {
    /// The private root
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// What `culver keys rotate --request` wrote
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// Where the certificate goes
    #[arg(long, value_name = "CERT")]
    out: PathBuf,
}

/// Put a certificate to the key that waits for it, which is used from then on
#[derive(Args)]
#[command(after_help = "Examples:\n  culver keys add --data-dir ./data --cert new.cert")]
struct Add {
    #[command(flatten)]
    data_dir: DataDirArg,
    /// What `culver keys certify` wrote
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
}

/// Take a key away
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                        culver keys retire --data-dir ./data\n  \
                        culver keys retire --data-dir ./data --id 7\n  \
                        culver keys retire --data-dir ./data --tickets\n\n\
                        Clients that know a retired server key are told so when they next log in, and ask for the current\n\
                        one with Noise XX: a round trip more, once. Of a retired ticket key the tickets are refused, and\n\
                        clients log in with their keys or tokens. The last key of either kind stays.")]
struct Retire {
    #[command(flatten)]
    data_dir: DataDirArg,
    /// Which one [default: the older]
    #[arg(long, value_name = "N")]
    id: Option<u16>,
    /// A key for resume tickets instead of a server key
    #[arg(long)]
    tickets: bool,
}

impl Keys {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.action {
            Action::List(list) => list.run()?,
            Action::Rotate(rotate) => super::print(&rotate.run()?)?,
            Action::Certify(certify) => super::print(&certify.run()?)?,
            Action::Add(add) => super::print(&add.run()?)?,
            Action::Retire(retire) => super::print(&retire.run()?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl List {
    fn run(self) -> anyhow::Result<()> {
        let (folder, now_ms) = (ServerFolder::of(&self.data_dir.path), now_ms()?);
        let root = hex::encode(folder.root_public()?);
        let entries = folder.entries()?;
        let certified = entries.iter().filter_map(|entry| match &entry.standing {
            Standing::Certified(key) => Some(key.clone()),
            _ => None,
        });
        let certified: Vec<_> = certified.collect();
        let keys = (!certified.is_empty()).then(|| ServerKeys::new(certified, now_ms));
        let current = keys.map(|keys| keys.current().identity.id);
        let server_keys = entries.iter().map(|entry| ServerKey::of(entry, current, now_ms)).collect();
        let tickets = TicketKeys::read(&ticket_key_path(&self.data_dir.path))?;
        let sealing = tickets.sealing().id;
        let ticket_key = |id, made_ms| TicketKey { id, made_ms, seals: id == sealing };
        let ticket_keys = tickets.all().iter().map(|key| ticket_key(key.id, key.made_ms)).collect();
        let listed = Listed { root, server_keys, ticket_keys };
        self.json.write(&listed, || listed.words(now_ms))
    }
}

/// What there is, as others read it.
#[derive(Serialize)]
struct Listed {
    root: String,
    server_keys: Vec<ServerKey>,
    ticket_keys: Vec<TicketKey>,
}

#[derive(Serialize)]
struct ServerKey {
    id: u16,
    /// `current`, `good`, `early`, `over`, `waiting` or `unusable`.
    standing: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    public: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

#[derive(Serialize)]
struct TicketKey {
    id: u8,
    /// 0: unknown.
    made_ms: u64,
    seals: bool,
}

impl ServerKey {
    fn of(Entry { id, standing }: &Entry, current: Option<u16>, now_ms: u64) -> Self {
        let (id, none) = (*id, None);
        match standing {
            Standing::Certified(key) => {
                let standing = match now_ms {
                    now_ms if now_ms >= key.not_after_ms => "over",
                    now_ms if now_ms < key.not_before_ms => "early",
                    _ if current == Some(id) => "current",
                    _ => "good",
                };
                let public = Some(hex::encode(key.identity.pair.public()));
                let (not_before_ms, not_after_ms) = (Some(key.not_before_ms), Some(key.not_after_ms));
                Self { id, standing, public, not_before_ms, not_after_ms, fault: None }
            }
            Standing::Waiting(pair) => {
                let public = Some(hex::encode(pair.public()));
                Self { id, standing: "waiting", public, not_before_ms: none, not_after_ms: none, fault: None }
            }
            Standing::Unusable(fault) => {
                let fault = Some(fault.clone());
                Self { id, standing: "unusable", public: None, not_before_ms: none, not_after_ms: none, fault }
            }
        }
    }

    fn words(&self, now_ms: u64) -> String {
        let Self { id, standing, public, not_after_ms, fault, .. } = self;
        let mut text = format!("server key {id}: {standing}");
        if let Some(not_after_ms) = not_after_ms {
            text.push_str(&format!(", {} days left", not_after_ms.saturating_sub(now_ms) / DAY_MS));
        }
        for what in [fault, public].into_iter().flatten() {
            text.push_str(&format!(", {what}"));
        }
        text
    }
}

impl Listed {
    fn words(&self, now_ms: u64) -> String {
        let mut lines = vec![format!("root: {}", self.root)];
        lines.extend(self.server_keys.iter().map(|key| key.words(now_ms)));
        lines.extend(self.ticket_keys.iter().map(|TicketKey { id, made_ms, seals }| {
            let role = if *seals { "seals" } else { "only opens" };
            match made_ms {
                0 => format!("ticket key {id}: {role}"),
                made_ms => format!("ticket key {id}: {role}, {} days old", now_ms.saturating_sub(*made_ms) / DAY_MS),
            }
        }));
        lines.join("\n")
    }
}

impl Rotate {
    fn run(self) -> anyhow::Result<String> {
        let data_dir = &self.data_dir.path;
        if self.tickets {
            let life_ms = Config::load(data_dir, self.config.as_deref())?.ticket.life_s.saturating_mul(1000);
            let (now_ms, days) = (now_ms()?, life_ms.div_ceil(DAY_MS));
            let id = TicketKeys::change(data_dir, |keys| keys.rotate(now_ms, life_ms))?;
            return Ok(format!(
                "ticket key {id} seals from now on; tickets of the one before are good for {days} days yet"
            ));
        }
        let folder = ServerFolder::of(data_dir);
        if let Some(request) = &self.request {
            let (id, bytes) = folder.request(self.days, now_ms()?)?;
            write_whole(request, &format!("{}\n", hex::encode(bytes)), FILE_MODE)?;
            let request = request.display();
            return Ok(format!(
                "key {id} waits for its certificate. On the machine that has the root:\n  \
                 culver keys certify --root ROOT --request {request} --out {id}.cert\nThen here:\n  \
                 culver keys add --data-dir {} --cert {id}.cert",
                data_dir.display()
            ));
        }
        let root = Root::read(&self.root.unwrap_or_else(|| folder.root_path()))?;
        let id = folder.rotate(&root, self.days, now_ms()?)?;
        Ok(format!(
            "key {id} is the server's current one, certified for {} days; the one before stays good until it is retired",
            self.days
        ))
    }
}

impl Certify {
    fn run(self) -> anyhow::Result<String> {
        let root = Root::read(&self.root)?;
        let request = read_hex(&self.request)?;
        let not_a_request = || KeyError::NotARequest(self.request.clone());
        let (certificate, bytes) = root.certify_request(&request).ok_or_else(not_a_request)?;
        write_whole(&self.out, &format!("{}\n", hex::encode(bytes)), FILE_MODE)?;
        let days = certificate.not_after_ms.saturating_sub(now_ms()?) / DAY_MS;
        Ok(format!(
            "{} certifies key {}, {}, for {days} days from now. Take it to the server:\n  \
             culver keys add --data-dir DIR --cert {}",
            self.out.display(),
            certificate.key_id,
            hex::encode(certificate.public),
            self.out.display()
        ))
    }
}

impl Add {
    fn run(self) -> anyhow::Result<String> {
        let bytes = read_hex(&self.cert)?;
        let id = ServerFolder::of(&self.data_dir.path).add(&bytes, &self.cert, now_ms()?)?;
        Ok(format!("key {id} is certified: the newest of those that are good is the server's current one"))
    }
}

impl Retire {
    fn run(self) -> anyhow::Result<String> {
        if self.tickets {
            let id = TicketKeys::change(&self.data_dir.path, |keys| keys.retire(self.id))?;
            return Ok(format!("ticket key {id} is retired: its tickets are refused, and clients log in without them"));
        }
        let id = ServerFolder::of(&self.data_dir.path).retire(self.id)?;
        Ok(format!(
            "server key {id} is retired: clients that know it are told so when they next log in, and come again with XX"
        ))
    }
}

/// What a request or a certificate holds.
fn read_hex(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_LEN_MAX).read_to_string(&mut text));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    hex::decode(text.trim()).with_context(|| format!("{} is no request and no certificate", path.display()))
}
