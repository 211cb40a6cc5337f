//! A disk with less room than its reserve: a reserve that is greater than any disk stands for it.

use culver_protocol::error::ErrorCode;
use rustix::process::Signal;

use crate::home::{Layout, on_every_layout, serve_on};
use crate::peer::Peer;

/// A pebibyte.
const MORE_THAN_ANY_DISK: &str = "[disk]\nreserve_mib = 1073741824\n";

on_every_layout! {
    without_room_on_the_disk_nothing_new_is_accepted_and_all_else_goes_on,
}

fn without_room_on_the_disk_nothing_new_is_accepted_and_all_else_goes_on(layout: Layout) {
    let (home, server) = serve_on(layout);
    let first = Peer::online(&home, &server, 1).send_and_wait(2, 1, b"while there was room");
    assert_eq!(server.metric("culver_sends_refused"), 0);
    server.stop();
    home.configure(MORE_THAN_ANY_DISK);
    let server = home.start();
    assert_eq!(server.metric("culver_sends_refused"), 1);
    let path = home.data_dir.display();
    assert!(server.metric(&format!("culver_disk_free_bytes{{path=\"{path}\"}}")) > 0);
    let mut one = Peer::online(&home, &server, 1);
    for (number, to) in [(2, 2), (3, 3)] {
        one.send(to, number, b"while there was none");
        let error = one.outcome(number).error.expect("refused");
        assert_eq!((error.code, error.retry_after_ms), (ErrorCode::Busy.number(), 2000));
    }
    // What was accepted is answered again (on a connection on which nothing of the conversation was refused), ...
    let mut one = Peer::online(&home, &server, 1);
    let again = one.send_and_wait(2, 1, b"while there was room");
    assert!(again.duplicate && again.message_id == first.message_id, "{again:?}");
    // ... and delivered, acknowledged, and told of.
    let mut two = Peer::online(&home, &server, 2);
    assert_eq!(&two.entries(1)[0].payload[..], b"while there was room");
    two.ack(1);
    one.wait_for_mark(2, |mark| mark.delivered == 1);
    server.signal(Signal::TERM);
    let (code, logged) = server.wait();
    assert_eq!(code, Some(0), "{logged}");
    assert_eq!(logged.matches("less room than the reserve").count(), 1, "{logged}");
    home.configure("");
    let server = home.start();
    Peer::online(&home, &server, 1).send_and_wait(2, 2, b"while there was none");
    server.stop();
    home.verify();
}
