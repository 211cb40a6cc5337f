//! The keys that seal tickets, and their file, `DIR/keys/ticket.key`: a line for each key, the one that seals last.
//!
//! ```text
//! ID MADE_MS 64-HEX-DIGITS        ID 1 to 255, which is in each ticket; made: milliseconds since 1970
//! ```
//!
//! A file of 64 hex digits alone is one key, number 1. Never seals or opens anything.

use std::path::Path;

use culver_protocol::crypto::{KEY_LEN, Secret};
use zeroize::Zeroizing;

use super::files::{SECRET_MODE, hold, read_own, write_whole};
use super::keys::ticket_key_path;
use super::{KeyError, keys_dir};

/// Most ticket keys: one that seals, and one whose tickets are still opened.
pub const TICKET_KEYS_MAX: usize = 2;

/// A key that seals tickets.
#[derive(Clone)]
pub struct TicketKey(Secret);

impl TicketKey {
    /// A key of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; KEY_LEN]) -> Self {
        Self(Secret::new(bytes))
    }

    /// A fresh random key.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = Secret::default();
        aws_lc_rs::rand::fill(bytes.as_mut_slice()).map_err(|_| KeyError::Generate)?;
        Ok(Self(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

/// A ticket key with its number.
#[derive(Clone, Debug)]
pub struct NumberedKey {
    /// Its number, in every ticket; never 0.
    pub id: u8,
    /// When it was made, in milliseconds since 1970. 0: unknown.
    pub made_ms: u64,
    /// The key.
    pub key: TicketKey,
}

/// The ticket keys of a server: the last one seals, all of them open.
#[derive(Clone, Debug)]
pub struct TicketKeys {
    /// One or two, of different numbers.
    keys: Vec<NumberedKey>,
}

impl TicketKeys {
    /// This key alone, as number 1.
    #[must_use]
    pub fn of(key: TicketKey, made_ms: u64) -> Self {
        Self { keys: vec![NumberedKey { id: 1, made_ms, key }] }
    }

    /// The keys, the one that seals last.
    #[must_use]
    pub fn all(&self) -> &[NumberedKey] {
        &self.keys
    }

    /// The key that seals.
    ///
    /// # Panics
    /// Never: there is one.
    #[must_use]
    pub fn sealing(&self) -> &NumberedKey {
        self.keys.last().expect("there is a ticket key")
    }

    /// Makes another key, which seals from now on, and says its number. The one before still opens.
    ///
    /// # Errors
    /// [`KeyError::TicketKeysFull`]: there is one before that one already, and tickets of it may still be good.
    pub fn rotate(&mut self, now_ms: u64, life_ms: u64) -> Result<u8, KeyError> {
        let newest = self.sealing();
        let next = newest.id.checked_add(1).unwrap_or(1);
        // Nothing was sealed with the older one since the newer is there.
        let is_over = newest.made_ms.saturating_add(life_ms) <= now_ms;
        if self.keys.len() == TICKET_KEYS_MAX {
            if !is_over {
                let older = self.keys.first().expect("there are two").id;
                return Err(KeyError::TicketKeysFull { older });
            }
            self.keys.remove(0);
        }
        let is_taken = |id: u8| self.keys.iter().any(|key| key.id == id);
        let id = if is_taken(next) { next.checked_add(1).unwrap_or(1) } else { next };
        self.keys.push(NumberedKey { id, made_ms: now_ms, key: TicketKey::generate()? });
        Ok(id)
    }

    /// Takes a key away (`None`: the older one), and says which. Its tickets are refused.
    ///
    /// # Errors
    /// There is no such key, or no other.
    pub fn retire(&mut self, id: Option<u16>) -> Result<u8, KeyError> {
        let index = match id {
            None => 0,
            Some(id) => {
                let index = self.keys.iter().position(|key| u16::from(key.id) == id);
                index.ok_or(KeyError::NoTicketKey(id))?
            }
        };
        if self.keys.len() == 1 {
            return Err(KeyError::LastTicketKey(self.sealing().id));
        }
        Ok(self.keys.remove(index).id)
    }

    /// Changes the keys of a data directory, while nobody else does, and says which key it was about.
    ///
    /// # Errors
    /// The file cannot be read or written, or the change is not possible.
    pub fn change(data_dir: &Path, change: impl FnOnce(&mut Self) -> Result<u8, KeyError>) -> Result<u8, KeyError> {
        let path = ticket_key_path(data_dir);
        let _held = hold(&keys_dir(data_dir))?;
        let mut keys = Self::read(&path)?;
        let id = change(&mut keys)?;
        keys.write(&path)?;
        Ok(id)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or holds something else.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        Self::parse(&read_own(path)?).ok_or_else(|| KeyError::NotTicketKeys(path.to_path_buf()))
    }

    /// Writes the file, for its owner alone.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        let mut text = Zeroizing::new(String::with_capacity(self.keys.len() * LINE_LEN_MAX));
        for NumberedKey { id, made_ms, key } in &self.keys {
            let digits = Zeroizing::new(hex::encode(key.bytes()));
            text.push_str(&format!("{id} {made_ms} "));
            text.push_str(&digits);
            text.push('\n');
        }
        write_whole(path, &text, SECRET_MODE)
    }

    fn parse(text: &str) -> Option<Self> {
        if let Some(key) = parse_key(text.trim()) {
            return Some(Self::of(key, 0));
        }
        let keys: Vec<NumberedKey> = text.lines().map(parse_line).collect::<Option<_>>()?;
        let is_possible = match keys.as_slice() {
            [_] => true,
            [one, other] => one.id != other.id,
            _ => false,
        };
        is_possible.then_some(Self { keys })
    }
}

/// An id, a time, 64 digits, and what is between them: the text is never moved, so that no copy of it stays behind.
const LINE_LEN_MAX: usize = 3 + 1 + 20 + 1 + 2 * KEY_LEN + 1;

fn parse_line(line: &str) -> Option<NumberedKey> {
    let mut words = line.split_ascii_whitespace();
    let (id, made_ms, key) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?, parse_key(words.next()?)?);
    (id != 0 && words.next().is_none()).then_some(NumberedKey { id, made_ms, key })
}

fn parse_key(digits: &str) -> Option<TicketKey> {
    let mut key = Secret::default();
    hex::decode_to_slice(digits, key.as_mut_slice()).ok()?;
    Some(TicketKey(key))
}

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketKey(…)")
    }
}
