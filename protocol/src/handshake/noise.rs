//! Noise (revision 34) by `snow`, on the primitives of [`crate::crypto`]: XX, IK and NNpsk0 with X25519 and SHA-256.
//!
//! A pattern needs at most one ephemeral key a side, so one secret given from outside is all the randomness there is.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::digest::{Context, SHA256};
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, Error, HandshakeState};
use zeroize::Zeroizing;

use super::{Established, HandshakeError};
use crate::crypto::{self, KEY_LEN, KeyPair, PublicKey, Secret, Suite};
use crate::keys::{Key, Keys};
use crate::limits::HANDSHAKE_LEN_MAX;

/// A pattern of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Both sides learn each other's key: three messages.
    Xx,
    /// The client knows the server's key: two messages.
    Ik,
    /// Both know a secret: two messages, and neither has a key.
    NnPsk0,
}

/// Who one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Who speaks first: the client.
    Initiator,
    /// The server.
    Responder,
}

/// What a side brings along.
#[derive(Clone, Debug, Default)]
pub(super) struct Credentials<'a> {
    /// Its own key pair.
    pub own: Option<Arc<KeyPair>>,
    /// The other's key, where the pattern knows it beforehand.
    pub other: Option<&'a PublicKey>,
    /// The secret that both know.
    pub shared: Option<&'a [u8; KEY_LEN]>,
}

/// A handshake under way.
pub(super) struct Noise {
    state: Box<HandshakeState>,
    side: Side,
}

impl Noise {
    /// Begins one. `entropy` becomes the ephemeral key: never twice the same.
    ///
    /// # Panics
    /// If `credentials` lack what the pattern needs.
    #[must_use]
    pub(super) fn begin(
        (pattern, suite, side): (Pattern, Suite, Side),
        prologue: &[u8],
        credentials: &Credentials<'_>,
        entropy: Secret,
    ) -> Self {
        Self::begin_named(params(pattern, suite).clone(), side, prologue, credentials, entropy)
    }

    /// Begins one by its name in the specification.
    pub(super) fn begin_named(
        params: NoiseParams,
        side: Side,
        prologue: &[u8],
        credentials: &Credentials<'_>,
        entropy: Secret,
    ) -> Self {
        // `snow` wants to see a secret key; the resolver has it, and passes on none.
        const ELSEWHERE: [u8; KEY_LEN] = [0; KEY_LEN];
        let psk_places: Vec<u8> = psk_places(&params);
        let resolver = Resolver { own: credentials.own.clone(), entropy };
        let mut builder = Builder::with_resolver(params, Box::new(resolver)).prologue(prologue).expect("given once");
        if credentials.own.is_some() {
            builder = builder.local_private_key(&ELSEWHERE).expect("given once");
        }
        if let Some(other) = credentials.other {
            builder = builder.remote_public_key(other).expect("given once");
        }
        if let Some(shared) = credentials.shared {
            for place in psk_places {
                builder = builder.psk(place, shared).expect("given once");
            }
        }
        let state = match side {
            Side::Initiator => builder.build_initiator(),
            Side::Responder => builder.build_responder(),
        };
        Self { state: Box::new(state.expect("callers bring what the pattern needs")), side }
    }

    /// The next message, which carries `payload`.
    ///
    /// # Errors
    /// [`HandshakeError::Failed`]: the other's key is none that secrets can be agreed with.
    ///
    /// # Panics
    /// If it is not this side's turn, or the payload is too long: callers keep to the limits.
    pub(super) fn write(&mut self, payload: &[u8]) -> Result<Vec<u8>, HandshakeError> {
        /// Two keys and two tags, at most.
        const OVERHEAD: usize = 2 * KEY_LEN + 2 * crate::limits::TAG_LEN;
        let mut message = vec![0; payload.len() + OVERHEAD];
        let len = match self.state.write_message(payload, &mut message) {
            Ok(len) => len,
            Err(Error::Dh) => return Err(HandshakeError::Failed),
            Err(error) => unreachable!("{error}"),
        };
        message.truncate(len);
        Ok(message)
    }

    /// Reads the other's message: its payload.
    ///
    /// # Errors
    /// It is too long, or was not made by who it should come from.
    pub(super) fn read(&mut self, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, HandshakeError> {
        if message.len() > HANDSHAKE_LEN_MAX {
            return Err(HandshakeError::Unreadable);
        }
        let mut payload = Zeroizing::new(vec![0; message.len()]);
        let len = self.state.read_message(message, &mut payload).map_err(|error| match error {
            Error::Input => HandshakeError::Unreadable,
            _ => HandshakeError::Failed,
        })?;
        payload.truncate(len);
        Ok(payload)
    }

    /// Whether every message has been exchanged.
    #[must_use]
    pub(super) fn is_finished(&self) -> bool {
        self.state.is_handshake_finished()
    }

    /// The hash of everything exchanged.
    pub(super) fn hash(&self) -> [u8; KEY_LEN] {
        self.state.get_handshake_hash().try_into().expect("SHA-256 has 32 bytes")
    }

    /// Ends it: what both sides share now.
    ///
    /// # Panics
    /// If messages are still missing.
    #[must_use]
    pub(super) fn finish(mut self) -> Established {
        assert!(self.is_finished(), "every message has been exchanged");
        let hash = self.hash();
        let other = self.state.get_remote_static().map(|key| key.try_into().expect("keys have 32 bytes"));
        let (first, second) = self.state.dangerously_get_raw_split();
        let (first, second) = (Secret::new(first), Secret::new(second));
        let resumption = {
            let both = Zeroizing::new([*first, *second].concat());
            crypto::hkdf(&hash, &both, b"culver resumption")
        };
        Established { keys: keys(self.side, &first, &second), resumption, other }
    }
}

/// The first key is the initiator's to send with.
pub(super) fn keys(side: Side, first: &Secret, second: &Secret) -> Keys {
    let (sending, receiving) = match side {
        Side::Initiator => (first, second),
        Side::Responder => (second, first),
    };
    Keys { sending: Key::new(sending), receiving: Key::new(receiving) }
}

fn params(pattern: Pattern, suite: Suite) -> &'static NoiseParams {
    static PARAMS: LazyLock<[[NoiseParams; 2]; 3]> = LazyLock::new(|| {
        ["XX", "IK", "NNpsk0"].map(|pattern| {
            ["ChaChaPoly", "AESGCM"].map(|cipher| {
                let name = format!("Noise_{pattern}_25519_{cipher}_SHA256");
                name.parse().expect("a name of the specification")
            })
        })
    });
    let [xx, ik, nn] = &*PARAMS;
    let [chacha, aes] = match pattern {
        Pattern::Xx => xx,
        Pattern::Ik => ik,
        Pattern::NnPsk0 => nn,
    };
    match suite {
        Suite::ChaCha20Poly1305 => chacha,
        Suite::Aes256Gcm => aes,
    }
}

fn psk_places(params: &NoiseParams) -> Vec<u8> {
    use snow::params::HandshakeModifier::Psk;
    let modifiers = params.handshake.modifiers.list.iter();
    modifiers.filter_map(|modifier| if let Psk(place) = modifier { Some(*place) } else { None }).collect()
}

/// Gives `snow` its primitives, the own key pair and the one ephemeral secret.
struct Resolver {
    own: Option<Arc<KeyPair>>,
    entropy: Secret,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Once(Some(self.entropy.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        let own = self.own.clone();
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(Agreement { own, key: None }) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::new(Sha256(Context::new(&SHA256))) as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        let suite = match choice {
            CipherChoice::ChaChaPoly => Suite::ChaCha20Poly1305,
            CipherChoice::AESGCM => Suite::Aes256Gcm,
        };
        Some(Box::new(Aead { suite, key: Secret::default() }))
    }
}

/// Gives its secret once.
struct Once(Option<Secret>);

impl Random for Once {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Error> {
        let secret = self.0.take().ok_or(Error::Rng)?;
        if out.len() != KEY_LEN {
            return Err(Error::Rng);
        }
        out.copy_from_slice(secret.as_slice());
        Ok(())
    }
}

struct Agreement {
    own: Option<Arc<KeyPair>>,
    key: Option<Arc<KeyPair>>,
}

impl Dh for Agreement {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY_LEN
    }

    fn priv_len(&self) -> usize {
        KEY_LEN
    }

    fn set(&mut self, _elsewhere: &[u8]) {
        self.key = self.own.clone();
    }

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), Error> {
        let mut secret = Secret::default();
        random.try_fill_bytes(secret.as_mut_slice())?;
        self.key = Some(Arc::new(KeyPair::new(&secret)));
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        self.key.as_ref().map_or(&[], |key| key.public().as_slice())
    }

    fn privkey(&self) -> &[u8] {
        // Nothing asks for it but `snow`'s own maker of keys, which is not used.
        &[]
    }

    fn dh(&self, other: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let other = other.first_chunk().ok_or(Error::Dh)?;
        let shared = self.key.as_ref().and_then(|key| key.agree(other)).ok_or(Error::Dh)?;
        out.first_chunk_mut::<KEY_LEN>().ok_or(Error::Dh)?.copy_from_slice(shared.as_slice());
        Ok(())
    }
}

struct Sha256(Context);

impl Hash for Sha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        KEY_LEN
    }

    fn reset(&mut self) {
        self.0 = Context::new(&SHA256);
    }

    fn input(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn result(&mut self, out: &mut [u8]) {
        let hash = std::mem::replace(&mut self.0, Context::new(&SHA256)).finish();
        out.first_chunk_mut::<KEY_LEN>().expect("`snow` makes room for a hash").copy_from_slice(hash.as_ref());
    }
}

struct Aead {
    suite: Suite,
    key: Secret,
}

impl Cipher for Aead {
    fn name(&self) -> &'static str {
        match self.suite {
            Suite::ChaCha20Poly1305 => "ChaChaPoly",
            Suite::Aes256Gcm => "AESGCM",
        }
    }

    fn set(&mut self, key: &[u8; KEY_LEN]) {
        *self.key = *key;
    }

    fn encrypt(&self, nonce: u64, aad: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        let (body, rest) = out.split_at_mut(plain.len());
        body.copy_from_slice(plain);
        let tag = self.suite.seal(&self.key, nonce, aad, body);
        rest.first_chunk_mut().map(|place| *place = tag).expect("`snow` makes room for a tag");
        plain.len() + tag.len()
    }

    fn decrypt(&self, nonce: u64, aad: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let mut opened = Zeroizing::new(sealed.to_vec());
        let opened = self.suite.open(&self.key, nonce, aad, &mut opened).ok_or(Error::Decrypt)?;
        out.get_mut(..opened.len()).ok_or(Error::Decrypt)?.copy_from_slice(opened);
        Ok(opened.len())
    }
}
