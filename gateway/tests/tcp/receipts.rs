//! Receipts: true, never going back, and in the end complete, wherever their readers are.

use culver_protocol::error::ErrorCode;
use culver_protocol::proto;

use crate::home::{Home, Layout, Server, on_every_layout, serve_on};
use crate::peer::{Got, Peer, conversation, with};

on_every_layout! {
    senders_see_what_was_delivered_and_read,
    who_was_offline_is_told_what_became_of_it,
    receipts_survive_a_kill,
    the_first_device_counts,
    all_devices_of_the_sender_are_told,
    what_a_client_had_persisted_before_it_could_say_so_is_a_receipt_too,
    who_tells_nothing_is_told_nothing,
    an_operator_may_turn_them_off_for_everybody,
    the_users_other_devices_learn_what_was_read,
    what_was_never_delivered_cannot_be_read,
    receipts_of_many_conversations_come_at_once,
}

/// User 1 has sent so many messages to user 2, who has them and has acknowledged nothing.
fn exchanged(home: &Home, server: &Server, count: u64) -> (Peer, Peer) {
    let (mut one, mut two) = (Peer::online(home, server, 1), Peer::online(home, server, 2));
    for number in 1..=count {
        one.send_and_wait(2, number, &number.to_be_bytes());
    }
    two.entries(usize::try_from(count).expect("small"));
    (one, two)
}

fn receipts(kept: Vec<Got>) -> usize {
    kept.iter().filter(|got| matches!(got, Got::Receipt(_))).count()
}

/// Everything that is on its way to this peer has come: the receipts it has seen since are counted.
fn nothing_new(server: &Server, peer: &mut Peer) -> bool {
    let before = peer.receipts;
    server.wait_for_hubs();
    for _ in 0..3 {
        peer.settle();
    }
    peer.receipts == before
}

fn senders_see_what_was_delivered_and_read(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut one, mut two) = exchanged(&home, &server, 10);
    assert!(nothing_new(&server, &mut one), "nothing is acknowledged yet");
    two.ack(4);
    one.wait_for_mark(2, |mark| mark.delivered == 4);
    two.ack(3);
    two.ack(10);
    one.wait_for_mark(2, |mark| mark.delivered == 10);
    assert_eq!(two.mark_read(1, 7), Ok(7));
    one.wait_for_mark(2, |mark| mark.read == 7);
    // Less than before changes nothing.
    two.mark_read(1, 5).expect("it was read");
    assert_eq!(two.mark_read(1, 10), Ok(10));
    one.wait_for_mark(2, |mark| mark.read == 10);
    // An answer makes no receipt of its own.
    two.send_and_wait(1, 1, b"answer");
    one.entries(1);
    assert!(nothing_new(&server, &mut one));
    one.ack(1);
    two.wait_for_mark(1, |mark| mark.delivered == 11);
    drop(two);
    server.stop();
    home.verify();
}

fn who_was_offline_is_told_what_became_of_it(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (one, mut two) = exchanged(&home, &server, 5);
    drop(one);
    server.wait_for("culver_sessions", |sessions| sessions == 1);
    two.ack(5);
    two.settle();
    assert_eq!(two.mark_read(1, 3), Ok(3));
    server.wait_for_hubs();
    let mut one = Peer::online(&home, &server, 1);
    one.wait_for_mark(2, |mark| (mark.delivered, mark.read) == (5, 3));
    let version = one.receipts;
    drop(one);
    // Who has persisted it is not told again; who has lost it is.
    let login = proto::Login { receipts: version, ..with(home.token(1)) };
    let mut one = Peer::resume(&server, 1, &login).0;
    assert!(nothing_new(&server, &mut one));
    assert_eq!(one.receipts, 0);
    two.mark_read(1, 5).expect("delivered");
    one.wait_for_mark(2, |mark| (mark.delivered, mark.read) == (0, 5));
    assert!(one.receipts > version);
    drop(one);
    Peer::online(&home, &server, 1).wait_for_mark(2, |mark| (mark.delivered, mark.read) == (5, 5));
}

fn receipts_survive_a_kill(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (one, mut two) = exchanged(&home, &server, 20);
    drop(one);
    two.ack(20);
    // With the answer the acknowledgement is durable, and its receipt with it.
    two.settle();
    assert_eq!(two.mark_read(1, 12), Ok(12));
    drop(two);
    server.kill();
    let server = home.start();
    let mut one = Peer::online(&home, &server, 1);
    one.wait_for_mark(2, |mark| (mark.delivered, mark.read) == (20, 12));
    let version = one.receipts;
    drop(one);
    server.kill();
    home.verify();
    let server = home.start();
    let mut one = Peer::resume(&server, 1, &proto::Login { receipts: version, ..with(home.token(1)) }).0;
    assert!(nothing_new(&server, &mut one), "told once, and versions are kept");
}

fn the_first_device_counts(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut one = Peer::online(&home, &server, 1);
    let (mut first, mut second) = (Peer::device(&home, &server, 2, 1), Peer::device(&home, &server, 2, 2));
    for number in 1..=9 {
        one.send_and_wait(2, number, b"");
    }
    first.entries(9);
    second.entries(9);
    first.ack(3);
    one.wait_for_mark(2, |mark| mark.delivered == 3);
    second.ack(2);
    second.settle();
    assert!(nothing_new(&server, &mut one), "the other had them");
    second.ack(6);
    one.wait_for_mark(2, |mark| mark.delivered == 6);
    first.ack(5);
    first.settle();
    assert!(nothing_new(&server, &mut one));
    first.ack(9);
    one.wait_for_mark(2, |mark| mark.delivered == 9);
}

fn all_devices_of_the_sender_are_told(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut first, mut second) = (Peer::device(&home, &server, 1, 1), Peer::device(&home, &server, 1, 2));
    first.settle();
    let mut two = Peer::online(&home, &server, 2);
    first.send_and_wait(2, 1, b"from the first");
    second.entries(1);
    second.send_and_wait(2, 2, b"from the second");
    two.entries(2);
    two.ack(2);
    two.settle();
    assert_eq!(two.mark_read(1, 2), Ok(2));
    for peer in [&mut first, &mut second] {
        peer.wait_for_mark(2, |mark| (mark.delivered, mark.read) == (2, 2));
    }
    // A copy of one's own is delivered to nobody else.
    second.ack(1);
    second.settle();
    assert!(nothing_new(&server, &mut two) && nothing_new(&server, &mut first));
}

fn what_a_client_had_persisted_before_it_could_say_so_is_a_receipt_too(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut one, two) = exchanged(&home, &server, 8);
    drop(two);
    // Its connection went before its ACK: the login says it.
    let mut two = Peer::resume(&server, 2, &proto::Login { cursor: 6, ..with(home.token(2)) }).0;
    assert_eq!(two.deliver().len(), 2, "what it has it is spared");
    one.wait_for_mark(2, |mark| mark.delivered == 6);
    two.ack(8);
    one.wait_for_mark(2, |mark| mark.delivered == 8);
}

fn who_tells_nothing_is_told_nothing(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut one, mut two) = exchanged(&home, &server, 6);
    two.set_read_receipts(false);
    two.ack(6);
    two.settle();
    assert_eq!(two.mark_read(1, 4), Ok(4));
    one.wait_for_mark(2, |mark| mark.delivered == 6);
    two.send_and_wait(1, 1, b"answer");
    one.entries(1);
    one.ack(1);
    one.settle();
    assert_eq!(one.mark_read(2, 7), Ok(7));
    two.wait_for_mark(1, |mark| mark.delivered == 7);
    nothing_new(&server, &mut one);
    nothing_new(&server, &mut two);
    assert_eq!((one.mark(2).read, two.mark(1).read), (0, 0));
    // On again, what is read from now on is told, and covers what was before.
    two.set_read_receipts(true);
    assert_eq!(two.mark_read(1, 6), Ok(6));
    one.wait_for_mark(2, |mark| mark.read == 6);
}

fn an_operator_may_turn_them_off_for_everybody(layout: Layout) {
    let home = Home::on(layout);
    home.configure("[inbox]\nreceipts = false\n");
    let server = home.start();
    let (mut one, mut two) = exchanged(&home, &server, 3);
    two.ack(3);
    two.settle();
    assert_eq!(two.mark_read(1, 4), Err(ErrorCode::ReadBeyondDelivered.number()));
    assert_eq!(two.mark_read(1, 2), Ok(2));
    nothing_new(&server, &mut one);
    assert_eq!(one.mark(2), proto::Mark::default());
    let item = two.conversations(0, b"").items.remove(0);
    assert_eq!((item.read, item.unread), (2, 1));
    drop((one, two));
    server.stop();
    home.verify();
}

fn the_users_other_devices_learn_what_was_read(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut one = Peer::online(&home, &server, 1);
    let (mut first, mut second) = (Peer::device(&home, &server, 2, 1), Peer::device(&home, &server, 2, 2));
    first.set_read_receipts(false);
    for number in 1..=3 {
        one.send_and_wait(2, number, b"");
    }
    first.entries(3);
    second.entries(3);
    first.ack(3);
    first.settle();
    assert_eq!(first.mark_read(1, 2), Ok(2));
    second.wait_for_mark(1, |mark| mark.own_read == 2);
    // The one that is away as well.
    drop(second);
    assert_eq!(first.mark_read(1, 3), Ok(3));
    let mut second = Peer::resume(&server, 2, &with(home.token_of(2, 2))).0;
    second.wait_for_mark(1, |mark| mark.own_read == 3);
    for peer in [&mut first, &mut second] {
        let item = peer.conversations(0, b"").items.remove(0);
        assert_eq!((item.unread, item.read, item.last_seq), (0, 3, 3));
    }
}

fn what_was_never_delivered_cannot_be_read(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut one, mut two) = exchanged(&home, &server, 5);
    let beyond = Err(ErrorCode::ReadBeyondDelivered.number());
    assert_eq!(two.mark_read(1, 1), beyond, "it has come, and is not acknowledged");
    two.ack(3);
    assert_eq!(two.mark_read(1, 3), Ok(3), "the server takes an ACK before the request behind it");
    for seq in [4, 5, 6, u64::MAX] {
        assert_eq!(two.mark_read(1, seq), beyond);
    }
    // Of a conversation that is empty, or not one's own.
    assert_eq!(two.mark_read(9, 1), beyond);
    one.wait_for_mark(2, |mark| (mark.delivered, mark.read) == (3, 3));
    assert!(nothing_new(&server, &mut one));
    let item = two.conversations(0, b"").items.remove(0);
    assert_eq!((item.conversation, item.read, item.unread), (conversation(1, 2).into(), 3, 2));
}

fn receipts_of_many_conversations_come_at_once(layout: Layout) {
    const USERS: u64 = 40;
    let (home, server) = serve_on(layout);
    let mut one = Peer::online(&home, &server, 1);
    for user in 101..=100 + USERS {
        one.send_and_wait(user, 2 * user, b"first");
        one.send_and_wait(user, 2 * user + 1, b"second");
    }
    drop(one);
    server.wait_for_hubs();
    for user in 101..=100 + USERS {
        let mut peer = Peer::online(&home, &server, user);
        peer.entries(2);
        peer.ack(2);
        peer.settle();
    }
    server.wait_for_hubs();
    let mut one = Peer::online(&home, &server, 1);
    for user in 101..=100 + USERS {
        one.wait_for_mark(user, |mark| mark.delivered == 2);
    }
    assert!(nothing_new(&server, &mut one));
    assert!(receipts(one.all_kept()) <= 2, "not one for each");
}
