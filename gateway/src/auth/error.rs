//! Why a key is not there or cannot be used. Each message says how to mend it, and none shows what a file holds.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::jwks::JwksError;

/// Why a key is not there.
#[derive(Debug, Error)]
pub enum KeyError {
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {source}. {remedy}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The file of ticket keys is none.
    #[error(
        "{0} does not hold ticket keys, one or two lines of `ID MADE_MS` and 64 hex digits. Delete it, and the next start \
         makes another: clients then log in without their tickets."
    )]
    NotTicketKeys(PathBuf),
    /// Two ticket keys are there, and tickets of both are still good.
    #[error(
        "two ticket keys are the most, and tickets sealed with key {older} are good for some time yet. Wait, or refuse \
         them now: culver keys retire --tickets --id {older}"
    )]
    TicketKeysFull {
        /// The older one's number.
        older: u8,
    },
    /// The only ticket key cannot be retired.
    #[error("key {0} is the only ticket key. Make another first: culver keys rotate --tickets")]
    LastTicketKey(u8),
    /// There is no such ticket key.
    #[error("there is no ticket key {0}: culver keys list shows those there are")]
    NoTicketKey(u16),
    /// The PEM is not an Ed25519 public key.
    #[error(
        "the public key for tokens is no Ed25519 public key in PEM (`openssl pkey -in private.pem -pubout` prints one); \
         token.public_key_file names the file"
    )]
    NotAPublicKey,
    /// The file of public keys for tokens cannot be used.
    #[error("{path} cannot be used: {fault}. token.jwks_file names the file.")]
    Jwks {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: JwksError,
    },
    /// The development credentials cannot be used.
    #[error("{0} holds no usable development credentials. Make another data directory with `culver init`.")]
    NotCredentials(PathBuf),
    /// The file is no private root.
    #[error("{0} is no Ed25519 private key in PEM (`openssl genpkey -algorithm ed25519` makes one)")]
    NotARoot(PathBuf),
    /// The file is no public root.
    #[error("{0} is no Ed25519 public key in PEM (`openssl pkey -in root-private.pem -pubout` prints the root's)")]
    NotARootPublic(PathBuf),
    /// The private root is not the public one's.
    #[error(
        "the root is not the one whose public key is {0}. Name that one's private key with --root; or, where clients are \
         built with another root now, put its public key there."
    )]
    OtherRoot(PathBuf),
    /// No key of the server can be used.
    #[error(
        "{path} holds no server key that its root has certified{faults}. For development `culver init --data-dir DIR` \
         makes one, otherwise `culver keys rotate --data-dir DIR` (see its --help)."
    )]
    NoServerKey {
        /// The folder.
        path: PathBuf,
        /// What is wrong with those that are there.
        faults: String,
    },
    /// There are too many server keys.
    #[error(
        "two server keys are the most, and {path} holds {ids}. Retire one first: culver keys retire --data-dir DIR --id N"
    )]
    ServerKeysFull {
        /// The folder.
        path: PathBuf,
        /// Their numbers.
        ids: String,
    },
    /// The last server key that can be used is not retired.
    #[error("key {0} is the last server key that can be used. Make another first: culver keys rotate")]
    LastServerKey(u16),
    /// There is no such server key.
    #[error("there is no server key {0}: culver keys list shows those there are")]
    NoSuchServerKey(u16),
    /// A request to certify a key is none.
    #[error("{0} is no request of `culver keys rotate --request FILE`")]
    NotARequest(PathBuf),
    /// A certificate is none, or not by the root of this data directory.
    #[error("{path} is no certificate for a key of {dir}: {fault}")]
    NotACertificate {
        /// The certificate's file.
        path: PathBuf,
        /// The folder of the keys.
        dir: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// The cryptographic library refused.
    #[error("the cryptographic library failed to make a key")]
    Generate,
}
