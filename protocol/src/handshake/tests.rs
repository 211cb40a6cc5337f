use std::sync::Arc;

use super::certificate::{Certificate, CertificateError, ROOTS_MAX, Roots, SIGNATURE_LEN};
use super::client::{Done, How, ServerKey, begin};
use super::server::{Accepted, Resumed, accept_ik, accept_ticket, begin_xx, split_ticket};
use super::{Established, HandshakeError, Kind};
use crate::crypto::{KEY_LEN, KeyPair, PublicKey, Secret, Suite};
use crate::limits::PREAMBLE_LEN;

mod vectors;

const NOW_MS: u64 = 1_800_000_000_000;
const LOGIN: &[u8] = b"who I am, and where delivery goes on";

/// A server's key that is good for ever.
fn server_key(public: PublicKey) -> ServerKey {
    ServerKey { id: 7, public, not_after_ms: u64::MAX }
}

fn secret(byte: u8) -> Secret {
    Secret::new([byte; KEY_LEN])
}

fn pair(byte: u8) -> Arc<KeyPair> {
    Arc::new(KeyPair::new(&secret(byte)))
}

/// The root that clients trust, and a certificate of it for a server's key.
struct Root(aws_lc_rs::signature::Ed25519KeyPair);

impl Root {
    fn new(byte: u8) -> Self {
        Self(aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&[byte; 32]).expect("any seed is a key"))
    }

    fn public(&self) -> [u8; KEY_LEN] {
        use aws_lc_rs::signature::KeyPair;
        self.0.public_key().as_ref().try_into().expect("32 bytes")
    }

    fn certify(&self, server: &KeyPair) -> Vec<u8> {
        self.sign(Certificate {
            key_id: 7,
            public: *server.public(),
            not_before_ms: NOW_MS - 1000,
            not_after_ms: NOW_MS + 1000,
        })
    }

    fn sign(&self, certificate: Certificate) -> Vec<u8> {
        let signature = self.0.sign(&certificate.signed_bytes());
        let signature: &[u8; SIGNATURE_LEN] = signature.as_ref().try_into().expect("64 bytes");
        certificate.encode(signature).to_vec()
    }
}

/// Both sides of one handshake, and whoever sits between them.
struct Between<'a> {
    kind: Kind,
    suite: Suite,
    /// Changes the preamble, and messages by their number.
    changes_preamble: &'a dyn Fn(&mut [u8; PREAMBLE_LEN]),
    changes: &'a dyn Fn(usize, &mut Vec<u8>),
}

impl Between<'_> {
    fn run(&self) -> Result<(Done, Accepted), HandshakeError> {
        let (device, server, root) = (pair(1), pair(2), Root::new(3));
        let (ticket, shared) = (vec![9; 70], secret(4));
        let how = match self.kind {
            Kind::Ik => How::Ik { own: device, server: server_key(*server.public()) },
            Kind::Xx => How::Xx { own: device, roots: root.public().into() },
            Kind::Resume | Kind::ResumeForwardSecret => {
                How::Ticket { ticket, secret: shared.clone(), forward_secret: self.kind == Kind::ResumeForwardSecret }
            }
        };
        let (preamble, mut message, waiting) = begin(&how, self.suite, LOGIN, secret(5))?;
        let mut preamble = preamble.encode();
        (self.changes_preamble)(&mut preamble);
        (self.changes)(0, &mut message);
        if self.kind == Kind::Xx {
            let certificate = root.certify(&server);
            let (awaiting, mut answer) = begin_xx(self.suite, preamble, (&server, &certificate), &message, secret(6))?;
            (self.changes)(1, &mut answer);
            let mut done = waiting.finish(&answer, NOW_MS)?;
            let mut last = done.last.take().expect("three messages");
            (self.changes)(2, &mut last);
            return Ok((done, awaiting.finish(&last)?));
        }
        let mut accepted = if self.kind == Kind::Ik {
            accept_ik(self.suite, preamble, &server, &message, secret(6))?
        } else {
            let (ticket, rest) = split_ticket(&message)?;
            let resumed = Resumed { ticket, secret: &shared };
            accept_ticket((self.kind, self.suite), preamble, resumed, rest, secret(6))?
        };
        let mut answer = accepted.answer.take().expect("two messages");
        (self.changes)(1, &mut answer);
        let done = waiting.finish(&answer, NOW_MS)?;
        Ok((done, accepted))
    }
}

fn run(kind: Kind, suite: Suite, changes: &dyn Fn(usize, &mut Vec<u8>)) -> Result<(Done, Accepted), HandshakeError> {
    Between { kind, suite, changes_preamble: &|_| {}, changes }.run()
}

/// Whether what one seals the other opens, both ways.
fn understand_each_other(suite: Suite, client: &mut Established, server: &mut Established) -> bool {
    let crossed = |from: &mut crate::keys::Key, to: &mut crate::keys::Key| {
        let mut bytes = b"a record".to_vec();
        let tag = from.seal(suite, &mut bytes);
        bytes.extend_from_slice(&tag);
        to.open(suite, &mut bytes).is_some_and(|opened| opened == b"a record")
    };
    crossed(&mut client.keys.sending, &mut server.keys.receiving)
        && crossed(&mut server.keys.sending, &mut client.keys.receiving)
}

fn all() -> impl Iterator<Item = (Kind, Suite)> {
    Kind::ALL.into_iter().flat_map(|kind| Suite::ALL.map(|suite| (kind, suite)))
}

#[test]
fn every_handshake_carries_the_login_and_leaves_the_same_keys() {
    for (kind, suite) in all() {
        let (mut done, mut accepted) = run(kind, suite, &|_, _| {}).expect("nobody interferes");
        assert_eq!(accepted.login.as_slice(), LOGIN, "{kind:?}");
        assert!(understand_each_other(suite, &mut done.established, &mut accepted.established), "{kind:?}");
        assert_eq!(done.established.resumption, accepted.established.resumption, "{kind:?}");
        let shows_key = matches!(kind, Kind::Ik | Kind::Xx);
        assert_eq!(accepted.established.other, shows_key.then_some(*pair(1).public()), "{kind:?}");
        assert_eq!(done.server.map(|server| server.key_id), (kind == Kind::Xx).then_some(7));
    }
}

#[test]
fn no_two_handshakes_leave_the_same_keys() {
    let mut seen: Vec<Secret> = Vec::new();
    for (kind, suite) in all() {
        let (done, _) = run(kind, suite, &|_, _| {}).expect("nobody interferes");
        assert!(!seen.contains(&done.established.resumption), "{kind:?} {suite:?}");
        seen.push(done.established.resumption.clone());
    }
}

/// With the symmetric ticket the server's answer is all randomness: a changed one shows in the first record.
fn fails_or_differs(outcome: Result<(Done, Accepted), HandshakeError>, suite: Suite) -> bool {
    match outcome {
        Err(_) => true,
        Ok((mut done, mut accepted)) => !understand_each_other(suite, &mut done.established, &mut accepted.established),
    }
}

#[test]
fn no_bit_of_any_message_can_be_changed() {
    for (kind, suite) in all() {
        let lens = std::cell::RefCell::new(Vec::new());
        run(kind, suite, &|_, message| lens.borrow_mut().push(message.len())).expect("nobody interferes");
        for (number, len) in lens.into_inner().into_iter().enumerate() {
            for place in 0..len {
                let flip = |at: usize, message: &mut Vec<u8>| {
                    if at == number
                        && let Some(byte) = message.get_mut(place)
                    {
                        *byte ^= 0x40;
                    }
                };
                // The highest bit of a public key alone means nothing (RFC 7748); this is not it.
                assert!(fails_or_differs(run(kind, suite, &flip), suite), "{kind:?}: byte {place} of message {number}");
            }
        }
    }
}

#[test]
fn no_message_can_be_cut_short_or_made_longer() {
    for (kind, suite) in all() {
        let messages = if kind == Kind::Xx { 3 } else { 2 };
        for number in 0..messages {
            let shorter =
                |at: usize, message: &mut Vec<u8>| message.truncate(message.len() - usize::from(at == number));
            let longer = |at: usize, message: &mut Vec<u8>| message.extend((at == number).then_some(0));
            let empty = |at: usize, message: &mut Vec<u8>| message.truncate(if at == number { 0 } else { usize::MAX });
            let too_long = |at: usize, message: &mut Vec<u8>| {
                message.resize(if at == number { 70_000 } else { message.len() }, 0);
            };
            for change in [&shorter as &dyn Fn(usize, &mut Vec<u8>), &longer, &empty, &too_long] {
                assert!(run(kind, suite, change).is_err(), "{kind:?}, message {number}");
            }
        }
    }
}

#[test]
fn no_bit_of_the_preamble_can_be_changed() {
    for (kind, suite) in all() {
        for bit in 0..PREAMBLE_LEN * 8 {
            let changes_preamble = |bytes: &mut [u8; PREAMBLE_LEN]| {
                if let Some(byte) = bytes.get_mut(bit / 8) {
                    *byte ^= 1 << (bit % 8);
                }
            };
            let between = Between { kind, suite, changes_preamble: &changes_preamble, changes: &|_, _| {} };
            assert!(between.run().is_err(), "{kind:?}: bit {bit}");
        }
    }
}

#[test]
fn a_ticket_is_of_no_use_without_its_secret() {
    for kind in [Kind::Resume, Kind::ResumeForwardSecret] {
        let forward_secret = kind == Kind::ResumeForwardSecret;
        let how = How::Ticket { ticket: vec![9; 70], secret: secret(8), forward_secret };
        let suite = Suite::ChaCha20Poly1305;
        let (preamble, message, _) = begin(&how, suite, LOGIN, secret(5)).expect("begins");
        let (ticket, rest) = split_ticket(&message).expect("a ticket");
        let resumed = Resumed { ticket, secret: &secret(4) };
        let outcome = accept_ticket((kind, suite), preamble.encode(), resumed, rest, secret(6));
        assert_eq!(outcome.err(), Some(HandshakeError::Failed));
    }
}

#[test]
fn ik_for_another_servers_key_fails() {
    let how = How::Ik { own: pair(1), server: server_key(*pair(8).public()) };
    let (preamble, message, _) = begin(&how, Suite::Aes256Gcm, LOGIN, secret(5)).expect("begins");
    let outcome = accept_ik(Suite::Aes256Gcm, preamble.encode(), &pair(2), &message, secret(6));
    assert_eq!(outcome.err(), Some(HandshakeError::Failed));
}

#[test]
fn keys_of_small_order_are_refused() {
    let how = How::Ik { own: pair(1), server: server_key([0; KEY_LEN]) };
    assert_eq!(begin(&how, Suite::Aes256Gcm, LOGIN, secret(5)).err(), Some(HandshakeError::Failed));
    let (server, certificate) = (pair(2), vec![1; 10]);
    let outcome = begin_xx(Suite::Aes256Gcm, [0; PREAMBLE_LEN], (&server, &certificate), &[0; KEY_LEN], secret(6));
    assert_eq!(outcome.err(), Some(HandshakeError::Failed));
}

/// What a client makes of a server that shows this certificate for this key.
fn meets(server: &Arc<KeyPair>, certificate: &[u8], roots: impl Into<Roots>) -> Result<Done, HandshakeError> {
    let suite = Suite::ChaCha20Poly1305;
    let (preamble, message, waiting) = begin(&How::Xx { own: pair(1), roots: roots.into() }, suite, LOGIN, secret(5))?;
    let (_, answer) = begin_xx(suite, preamble.encode(), (server, certificate), &message, secret(6))?;
    waiting.finish(&answer, NOW_MS)
}

#[test]
fn any_of_several_roots_may_have_signed() {
    let server = pair(2);
    let roots: Vec<[u8; KEY_LEN]> = (3..).take(ROOTS_MAX).map(|byte| Root::new(byte).public()).collect();
    let several = Roots::new(&roots).expect("not too many");
    for byte in (3..).take(ROOTS_MAX) {
        let certificate = Root::new(byte).certify(&server);
        let done = meets(&server, &certificate, several).expect("one of them");
        assert_eq!(done.server.map(|certificate| certificate.public), Some(*server.public()));
    }
    let unsigned = HandshakeError::Certificate(CertificateError::Signature);
    assert_eq!(meets(&server, &Root::new(2).certify(&server), several).err(), Some(unsigned));
    // What is wrong beside the signature is told whichever root has signed.
    let good = Certificate { key_id: 7, public: *server.public(), not_before_ms: NOW_MS, not_after_ms: NOW_MS };
    let late = HandshakeError::Certificate(CertificateError::Late);
    assert_eq!(meets(&server, &Root::new(4).sign(good), several).err(), Some(late));
    // A root is one only while it is trusted: the places that are free trust nobody.
    let one = Roots::new(roots.get(1..2).expect("several")).expect("one");
    assert!(meets(&server, &Root::new(4).certify(&server), one).is_ok());
    assert_eq!(meets(&server, &Root::new(3).certify(&server), one).err(), Some(unsigned));
}

#[test]
fn a_client_trusts_neither_no_root_nor_too_many() {
    let error = |count: usize| Roots::new(&vec![[1; KEY_LEN]; count]).map_err(|error| error.to_string()).err();
    assert_eq!(error(0).as_deref(), Some("a client trusts from 1 to 4 roots, not 0"));
    assert_eq!(error(ROOTS_MAX), None);
    assert_eq!(error(ROOTS_MAX + 1).as_deref(), Some("a client trusts from 1 to 4 roots, not 5"));
}

#[test]
fn a_client_believes_a_good_certificate_alone() {
    let (server, root) = (pair(2), Root::new(3));
    let good = Certificate { key_id: 7, public: *server.public(), not_before_ms: NOW_MS, not_after_ms: NOW_MS + 1 };
    assert!(meets(&server, &root.sign(good), root.public()).is_ok());
    let refused = |certificate: &[u8]| match meets(&server, certificate, root.public()) {
        Err(HandshakeError::Certificate(error)) => Some(error),
        _ => None,
    };
    assert_eq!(refused(&Root::new(4).sign(good)), Some(CertificateError::Signature));
    let early = Certificate { not_before_ms: NOW_MS + 1, ..good };
    assert_eq!(refused(&root.sign(early)), Some(CertificateError::Early));
    let late = Certificate { not_after_ms: NOW_MS, ..good };
    assert_eq!(refused(&root.sign(late)), Some(CertificateError::Late));
    let of_another = Certificate { public: *pair(5).public(), ..good };
    assert_eq!(refused(&root.sign(of_another)), Some(CertificateError::OtherKey));
    let bytes = root.sign(good);
    for len in 0..bytes.len() {
        assert_eq!(refused(bytes.get(..len).expect("shorter")), Some(CertificateError::Unreadable));
    }
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        *changed.get_mut(bit / 8).expect("within") ^= 1 << (bit % 8);
        assert!(refused(&changed).is_some(), "bit {bit}");
    }
}
