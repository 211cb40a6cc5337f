//! What has waited: SYNC_START, the drain, SYNC_DONE; and a cursor that is no longer good.

use culver_protocol::proto;

use crate::home::{Home, Layout, Server, on_every_layout, serve_on};
use crate::peer::{Got, Peer, conversation, with};

on_every_layout! {
    who_comes_back_sees_what_waits_before_it_comes,
    a_backlog_ends_when_all_of_it_has_been_sent,
    who_missed_nothing_is_told_of_nothing,
    a_cursor_of_other_data_gets_everything_anew,
    what_is_acknowledged_meanwhile_is_not_counted_again,
}

/// Users 11, 12, … have sent so many messages each to user 1, the later ones later.
fn waiting(home: &Home, server: &Server, counts: &[u64]) {
    for (user, count) in (11..).zip(counts) {
        let mut peer = Peer::online(home, server, user);
        for number in 1..=*count {
            peer.send_and_wait(1, number, format!("{number} from {user}").as_bytes());
        }
        // In this order into the inbox, whichever hubs they take.
        server.wait_for_hubs();
    }
}

fn sync_start(peer: &mut Peer) -> proto::SyncStart {
    let Got::SyncStart(start) = peer.wait_for(|got| matches!(got, Got::SyncStart(_))) else { unreachable!("as asked") };
    assert_eq!(peer.kept(), [], "nothing of the backlog comes before it");
    start
}

fn who_comes_back_sees_what_waits_before_it_comes(layout: Layout) {
    let (home, server) = serve_on(layout);
    waiting(&home, &server, &[3, 1, 2]);
    let mut one = Peer::online(&home, &server, 1);
    let start = sync_start(&mut one);
    assert_eq!((start.entries, start.through), (6, 6));
    let found: Vec<_> = start
        .conversations
        .iter()
        .map(|item| (item.conversation.to_vec(), item.last_seq, item.unread, item.waiting, item.read))
        .collect();
    let expected: Vec<_> =
        [(13, 2), (12, 1), (11, 3)].map(|(user, count)| (conversation(1, user), count, count, count, 0)).into();
    assert_eq!(found, expected, "most recent first");
    let last = start.conversations[0].last.clone().expect("it is there");
    assert_eq!((last.inbox_seq, last.sender, &last.payload[..]), (6, 13, &b"2 from 13"[..]));
    one.entries(6);
    assert_eq!(one.wait_for(|got| matches!(got, Got::SyncDone(_))), Got::SyncDone(proto::SyncDone { inbox_seq: 6 }));
    // Live from now on, without either.
    one.ack(6);
    waiting(&home, &server, &[0, 0, 0, 1]);
    assert!(matches!(one.next(), Some(Got::Deliver(_))));
}

fn a_backlog_ends_when_all_of_it_has_been_sent(layout: Layout) {
    const COUNT: u64 = 120;
    let (home, server) = serve_on(layout);
    waiting(&home, &server, &[COUNT]);
    let login = proto::Login { credit_entries: 20, ..with(home.token(1)) };
    let mut one = Peer::resume(&server, 1, &login).0;
    assert_eq!(sync_start(&mut one).entries, COUNT);
    let mut done = None;
    while one.position < COUNT || done.is_none() {
        match one.next() {
            Some(Got::Deliver(deliver)) => {
                assert!(done.is_none(), "nothing of it comes behind SYNC_DONE");
                assert_eq!(deliver.previous, one.position);
                one.position = deliver.entries.last().expect("not empty").inbox_seq;
                one.ack(one.position);
            }
            Some(Got::SyncDone(found)) => done = Some((one.position, found.inbox_seq)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(done, Some((COUNT, COUNT)));
}

fn who_missed_nothing_is_told_of_nothing(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut one = Peer::online(&home, &server, 1);
    one.settle();
    waiting(&home, &server, &[2]);
    one.entries(2);
    one.ack(2);
    one.settle();
    drop(one);
    let mut one = Peer::online(&home, &server, 1);
    one.settle();
    assert_eq!(one.all_kept(), []);
}

fn a_cursor_of_other_data_gets_everything_anew(layout: Layout) {
    let (home, server) = serve_on(layout);
    waiting(&home, &server, &[4]);
    let (mut one, welcome) = Peer::resume(&server, 1, &with(home.token(1)));
    one.entries(4);
    one.ack(1);
    one.settle();
    for login in [
        proto::Login { cursor: 3, incarnation: welcome.incarnation ^ 1, receipts: 7, ..with(home.token(1)) },
        proto::Login { cursor: 5, incarnation: welcome.incarnation, receipts: 7, ..with(home.token(1)) },
    ] {
        let mut one = Peer::resume(&server, 1, &login).0;
        let expected = proto::Gap { start: 2, reset: true, incarnation: welcome.incarnation };
        assert_eq!(one.next(), Some(Got::Gap(expected)));
        one.position = 1;
        let start = sync_start(&mut one);
        assert_eq!((start.entries, start.through, start.conversations.len()), (3, 4, 1));
        one.entries(3);
    }
}

fn what_is_acknowledged_meanwhile_is_not_counted_again(layout: Layout) {
    let (home, server) = serve_on(layout);
    waiting(&home, &server, &[6, 1]);
    let mut one = Peer::online(&home, &server, 1);
    one.entries(7);
    one.ack(4);
    one.settle();
    assert_eq!(one.mark_read(11, 4), Ok(4));
    drop(one);
    let mut one = Peer::online(&home, &server, 1);
    let start = sync_start(&mut one);
    assert_eq!((start.entries, start.through), (3, 7));
    let of = |user: u64| {
        let item = start.conversations.iter().find(|item| item.conversation[..] == conversation(1, user)[..]);
        let item = item.expect("it is among them");
        (item.waiting, item.unread, item.read)
    };
    assert_eq!((of(11), of(12)), ((2, 2, 4), (1, 1, 0)));
}
