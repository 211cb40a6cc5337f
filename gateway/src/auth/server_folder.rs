//! The server's keys on disk, `DIR/keys/server/`: `ID.key` (64 hex digits) with its certificate `ID.cert` (hex), and
//! `last-id`, so that no number ever comes again with another key: clients remember which number has which.
//!
//! A key without a certificate waits for one: its request is with whoever has the root. Changes are made under a lock of
//! `DIR/keys`, each file whole; the running server reads them when it sees that they have changed.

use std::fs;
use std::path::{Path, PathBuf};

use culver_protocol::crypto::{KEY_LEN, KeyPair, Secret, random};
use culver_protocol::handshake::certificate::{CERTIFICATE_LEN, Certificate, CertificateError};
use zeroize::Zeroizing;

use super::files::{
    FOLDER_ENTRIES_MAX, PUBLIC_MODE, SECRET_MODE, failed, hold, make_folder, read_own, remove, write_whole,
};
use super::root::{Root, read_root_public};
use super::server::{CertifiedKey, ServerKeys};
use super::{KeyError, keys_dir};

/// Most keys of a server: one that is shown to who knows none, and one that clients still know.
pub const SERVER_KEYS_MAX: usize = 2;
/// How long a key is certified for where nobody says.
pub const CERTIFIED_DAYS: u32 = 400;
/// Longest time that a key is certified for: ten years.
pub const CERTIFIED_DAYS_MAX: u32 = 3660;

const DAY_MS: u64 = 24 * 3600 * 1000;
/// A certificate is good from so long before it was made: the clocks of clients may be slow.
const CLOCKS_DIFFER_MS: u64 = DAY_MS;
const LAST_ID: &str = "last-id";

/// The folder of a server's keys.
#[derive(Clone, Debug)]
pub struct ServerFolder {
    keys: PathBuf,
    path: PathBuf,
}

/// One key of the folder.
#[derive(Debug)]
pub struct Entry {
    /// Its number.
    pub id: u16,
    /// What may be done with it.
    pub standing: Standing,
}

/// What may be done with a key.
#[derive(Debug)]
pub enum Standing {
    /// Its certificate is by the root.
    Certified(CertifiedKey),
    /// It has no certificate yet.
    Waiting(KeyPair),
    /// It cannot be used, and why.
    Unusable(String),
}

impl ServerFolder {
    /// That of a data directory.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        let keys = keys_dir(data_dir);
        Self { path: keys.join("server"), keys }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the private root is in development.
    #[must_use]
    pub fn root_path(&self) -> PathBuf {
        self.keys.join("root-private.pem")
    }

    /// Where the public root is.
    #[must_use]
    pub fn root_public_path(&self) -> PathBuf {
        self.keys.join("root-public.pem")
    }

    /// The public half of the root.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn root_public(&self) -> Result<[u8; KEY_LEN], KeyError> {
        read_root_public(&self.root_public_path())
    }

    /// The keys there are, by their numbers.
    ///
    /// # Errors
    /// One of the files, or the public root, cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>, KeyError> {
        let root = self.root_public()?;
        self.ids()?.into_iter().map(|id| Ok(Entry { id, standing: self.standing(id, &root)? })).collect()
    }

    /// The keys that a server can use. What is wrong with others is logged.
    ///
    /// # Errors
    /// There is none, or there are too many, or a file cannot be read.
    pub fn read(&self, now_ms: u64) -> Result<ServerKeys, KeyError> {
        let (mut usable, mut faults) = (Vec::new(), Vec::new());
        for Entry { id, standing } in self.entries()? {
            match standing {
                Standing::Certified(key) => usable.push(key),
                Standing::Waiting(_) => {}
                Standing::Unusable(fault) => faults.push(format!("key {id}: {fault}")),
            }
        }
        if usable.is_empty() {
            let faults = faults.iter().map(|fault| format!("; {fault}")).collect();
            return Err(KeyError::NoServerKey { path: self.path.clone(), faults });
        }
        if usable.len() > SERVER_KEYS_MAX {
            return Err(self.full(usable.iter().map(|key| key.identity.id)));
        }
        faults.iter().for_each(|fault| tracing::warn!("a server key is not used, {fault}"));
        Ok(ServerKeys::new(usable, now_ms))
    }

    /// Makes another key, certified by `root` for so many days from now, and says its number.
    ///
    /// # Errors
    /// There are two already, `root` is another than clients know, or a file cannot be written.
    pub fn rotate(&self, root: &Root, days: u32, now_ms: u64) -> Result<u16, KeyError> {
        let _held = hold(&self.keys)?;
        if self.root_public()? != root.public() {
            return Err(KeyError::OtherRoot(self.root_public_path()));
        }
        let certificate = self.make_key(days, now_ms)?;
        self.write_certificate(certificate.key_id, &root.certify(&certificate))?;
        Ok(certificate.key_id)
    }

    /// Makes another key, and says what a root must sign for it: [`Root::certify_request`].
    ///
    /// # Errors
    /// There are two already, or a file cannot be written.
    pub fn request(&self, days: u32, now_ms: u64) -> Result<(u16, Vec<u8>), KeyError> {
        let _held = hold(&self.keys)?;
        let certificate = self.make_key(days, now_ms)?;
        Ok((certificate.key_id, certificate.signed_bytes()))
    }

    /// Puts a certificate to the key that waits for it, and says which. `path` is where it comes from.
    ///
    /// # Errors
    /// It is none, or its time is over, or it is by another root or about another key.
    pub fn add(&self, bytes: &[u8], path: &Path, now_ms: u64) -> Result<u16, KeyError> {
        let _held = hold(&self.keys)?;
        let not = |fault: String| KeyError::NotACertificate { path: path.to_owned(), dir: self.path.clone(), fault };
        let root = self.root_public()?;
        let certificate = match Certificate::verify(bytes, &root.into(), now_ms) {
            // The other machine's clock may be fast.
            Err(CertificateError::Early) => Certificate::decode(bytes, &root),
            verified => verified,
        };
        let other_root = format!(
            ". The root must be the one whose public key is {}: where it is another now, put its public key there",
            self.root_public_path().display()
        );
        let certificate = certificate.map_err(|error| {
            not(format!("{error}{}", if error == CertificateError::Signature { other_root.as_str() } else { "" }))
        })?;
        let id = certificate.key_id;
        if !self.ids()?.contains(&id) {
            return Err(not(format!("there is no key {id} here. Certify a request of this data directory")));
        }
        if *self.read_pair(id)?.map_err(not)?.public() != certificate.public {
            return Err(not(format!("key {id} here is another. Certify the last request of this data directory")));
        }
        self.write_certificate(id, bytes)?;
        Ok(id)
    }

    /// Takes a key away (`None`: the oldest), and says which. Clients that know it are told, and ask for the other.
    ///
    /// # Errors
    /// There is no such key, or none would be left to use.
    pub fn retire(&self, id: Option<u16>) -> Result<u16, KeyError> {
        let _held = hold(&self.keys)?;
        let entries = self.entries()?;
        let usable = |entry: &Entry| match &entry.standing {
            Standing::Certified(key) => Some((key.not_before_ms, entry.id)),
            _ => None,
        };
        let oldest = entries.iter().filter_map(usable).min().map(|(_, id)| id);
        let none = || KeyError::NoServerKey { path: self.path.clone(), faults: String::new() };
        let id = id.or(oldest).ok_or_else(none)?;
        let entry = entries.iter().find(|entry| entry.id == id).ok_or(KeyError::NoSuchServerKey(id))?;
        if usable(entry).is_some() && entries.iter().filter_map(usable).count() == 1 {
            return Err(KeyError::LastServerKey(id));
        }
        // A key without a certificate is not used, so the certificate goes first.
        for path in [self.certificate_path(id), self.key_path(id)] {
            if path.exists() {
                remove(&path)?;
            }
        }
        Ok(id)
    }

    /// Whether there is any key, of whatever standing.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn is_empty(&self) -> Result<bool, KeyError> {
        Ok(self.ids()?.is_empty())
    }

    fn make_key(&self, days: u32, now_ms: u64) -> Result<Certificate, KeyError> {
        make_folder(&self.path)?;
        let ids = self.ids()?;
        if ids.len() >= SERVER_KEYS_MAX {
            return Err(self.full(ids.into_iter()));
        }
        let id = next_id(self.last_id()?, &ids);
        // First: a number that was given once is never given again, whatever happens now.
        write_whole(&self.path.join(LAST_ID), &format!("{id}\n"), PUBLIC_MODE)?;
        let secret = random();
        let digits = Zeroizing::new(hex::encode(secret.as_slice()));
        write_whole(&self.key_path(id), &digits, SECRET_MODE)?;
        Ok(Certificate {
            key_id: id,
            public: *KeyPair::new(&secret).public(),
            not_before_ms: now_ms.saturating_sub(CLOCKS_DIFFER_MS),
            not_after_ms: now_ms.saturating_add(u64::from(days) * DAY_MS),
        })
    }

    fn last_id(&self) -> Result<u16, KeyError> {
        let path = self.path.join(LAST_ID);
        let newest = self.ids()?.last().copied().unwrap_or(0);
        if !path.exists() {
            return Ok(newest);
        }
        Ok(read_own(&path)?.trim().parse().unwrap_or(newest))
    }

    /// The numbers of all keys, ascending.
    fn ids(&self) -> Result<Vec<u16>, KeyError> {
        if !self.path.exists() {
            return Ok(Vec::new());
        }
        let unreadable = || failed("read", &self.path, "The server's user must be able to read it.");
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(unreadable())?.take(FOLDER_ENTRIES_MAX) {
            let name = entry.map_err(unreadable())?.file_name();
            ids.extend(name.to_str().and_then(|name| name.strip_suffix(".key")).and_then(parse_id));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    fn standing(&self, id: u16, root: &[u8; KEY_LEN]) -> Result<Standing, KeyError> {
        let pair = match self.read_pair(id)? {
            Ok(pair) => pair,
            Err(fault) => return Ok(Standing::Unusable(fault)),
        };
        let path = self.certificate_path(id);
        if !path.exists() {
            return Ok(Standing::Waiting(pair));
        }
        let mut bytes = [0; CERTIFICATE_LEN];
        let certificate = match hex::decode_to_slice(read_own(&path)?.trim(), &mut bytes) {
            Ok(()) => Certificate::decode(&bytes, root),
            Err(_) => Err(CertificateError::Unreadable),
        };
        let certificate = match certificate {
            Ok(certificate) if certificate.key_id != id || certificate.public != *pair.public() => {
                Err(CertificateError::OtherKey)
            }
            read => read,
        };
        Ok(match certificate {
            Ok(certificate) => Standing::Certified(CertifiedKey::new(certificate, bytes.to_vec(), pair)),
            Err(error) => Standing::Unusable(format!("its certificate is not good: {error}")),
        })
    }

    fn read_pair(&self, id: u16) -> Result<Result<KeyPair, String>, KeyError> {
        let text = read_own(&self.key_path(id))?;
        let mut secret = Secret::default();
        Ok(match hex::decode_to_slice(text.trim(), secret.as_mut_slice()) {
            Ok(()) => Ok(KeyPair::new(&secret)),
            Err(_) => Err("its file does not hold 64 hex digits".to_owned()),
        })
    }

    fn write_certificate(&self, id: u16, bytes: &[u8]) -> Result<(), KeyError> {
        write_whole(&self.certificate_path(id), &format!("{}\n", hex::encode(bytes)), PUBLIC_MODE)
    }

    fn key_path(&self, id: u16) -> PathBuf {
        self.path.join(format!("{id}.key"))
    }

    fn certificate_path(&self, id: u16) -> PathBuf {
        self.path.join(format!("{id}.cert"))
    }

    fn full(&self, ids: impl Iterator<Item = u16>) -> KeyError {
        let ids: Vec<String> = ids.map(|id| id.to_string()).collect();
        KeyError::ServerKeysFull { path: self.path.clone(), ids: ids.join(", ") }
    }
}

/// The number after `last` that no key has: 1 to 65535, and from the beginning again.
fn next_id(last: u16, taken: &[u16]) -> u16 {
    let mut id = last;
    loop {
        id = id.checked_add(1).unwrap_or(1);
        if !taken.contains(&id) {
            return id;
        }
    }
}

fn parse_id(name: &str) -> Option<u16> {
    let id: u16 = name.parse().ok()?;
    // One name for each number.
    (id != 0 && id.to_string() == name).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_in_turn_and_never_twice_at_once() {
        for (last, taken, next) in [
            (0, &[][..], 1),
            (1, &[1][..], 2),
            (65_535, &[65_535][..], 1),
            (65_535, &[1, 65_535][..], 2),
            (7, &[1, 8][..], 9),
        ] {
            assert_eq!(next_id(last, taken), next, "after {last}");
        }
    }

    #[test]
    fn a_number_has_one_name() {
        assert_eq!(["1", "65535"].map(parse_id), [Some(1), Some(65_535)]);
        for name in ["", "0", "01", "+1", "-1", "65536", "one", "1.key"] {
            assert_eq!(parse_id(name), None, "{name}");
        }
    }
}
