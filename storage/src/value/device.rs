//! The value of a `device` row: what is known of a device and is not written anew with its cursor.

use culver_protocol::limits::DEVICE_NAME_LEN_MAX;

use super::{DecodeError, VERSION, versioned};

/// The value of a `device` row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameRow {
    /// As the user named the device, at most `DEVICE_NAME_LEN_MAX` bytes; empty: it has no name any more.
    pub name: String,
}

impl NameRow {
    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (version, name) = encode_name(&self.name);
        [version.as_slice(), name].concat()
    }

    /// Reads the stored bytes.
    ///
    /// # Errors
    /// They are no `device` row of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let name = versioned(bytes)?;
        if name.len() > DEVICE_NAME_LEN_MAX {
            return Err(DecodeError::NameLength);
        }
        let name = std::str::from_utf8(name).map_err(|_| DecodeError::NameText)?;
        Ok(Self { name: name.to_owned() })
    }
}

/// The stored bytes of a name, in two parts.
pub(crate) fn encode_name(name: &str) -> ([u8; 1], &[u8]) {
    ([VERSION], name.as_bytes())
}
