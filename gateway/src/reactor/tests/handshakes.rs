//! Handshakes with Diffie-Hellman: one a turn, each in its order.

use culver_protocol::crypto::{KeyPair, Suite, random};
use culver_protocol::handshake::client::{How, begin};
use culver_protocol::record::RecordType;

use super::world::{Peer, World};
use crate::reactor::Wait;

/// The first message of Noise XX. Any root does: the client looks at it later.
fn first_message() -> Vec<u8> {
    let how = How::Xx { own: KeyPair::new(&random()).into(), roots: [7; 32].into() };
    let (preamble, message, _) = begin(&how, Suite::Aes256Gcm, &[], random()).expect("nothing is in it yet");
    let len = u16::try_from(message.len()).expect("short").to_be_bytes();
    [preamble.encode().as_slice(), &len, &message].concat()
}

#[test]
fn those_that_wait_are_answered_one_a_turn_and_before_newcomers() {
    let mut world = World::new();
    let peers: Vec<Peer> = (0..4).map(|user| world.connect(user, usize::MAX).expect("there is room")).collect();
    let (early, newcomer) = peers.split_at(3);
    for peer in early {
        peer.pipe.borrow_mut().to_server.extend(first_message());
    }
    world.turn(|reactor| early.iter().for_each(|peer| reactor.handle_readable(peer.slot, false)));
    let answered = || peers.iter().map(|peer| peer.take() == [RecordType::Handshake]).collect::<Vec<_>>();
    assert_eq!(answered(), [true, false, false, false]);
    assert_eq!(world.reactor.plan_wait(), Wait::Not, "the others wait for nothing but a turn");
    world.give(&newcomer[0], &first_message());
    assert_eq!(answered(), [false, true, false, false]);
    world.turn(|_| ());
    assert_eq!(answered(), [false, false, true, false]);
    world.turn(|_| ());
    assert_eq!(answered(), [false, false, false, true]);
    assert!(matches!(world.reactor.plan_wait(), Wait::For(_)), "nobody waits any more");
}
