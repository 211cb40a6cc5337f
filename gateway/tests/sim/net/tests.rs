//! A wire, from both ends.

use std::io::{self, Read, Write};

use super::{Buffers, Wire};

#[test]
fn bytes_arrive_in_order_and_the_end_behind_them() {
    let (wire, mut socket) = Wire::new(Buffers { to_server: (8, 4), to_client: (4, 4) });
    assert_eq!(wire.client_write(b"abcdefghij"), 8);
    wire.client_close(false);
    wire.watch();
    let mut seen = Vec::new();
    while wire.can_carry() {
        wire.carry_to_server(3);
        let edge = wire.take_edge().expect("what arrives makes an edge");
        assert!(edge.readable && edge.closed == (seen.len() == 6));
        let mut buffer = [0; 16];
        let len = socket.read(&mut buffer).expect("bytes are there");
        seen.extend_from_slice(&buffer[..len]);
    }
    let end = socket.read(&mut [0; 1]).expect("the end is there");
    assert_eq!((seen.as_slice(), end), (&b"abcdefgh"[..], 0));
    assert_eq!(socket.write(b"for nobody").expect("nobody knows yet"), 4);
    wire.carry_to_client(4, false);
    wire.carry_to_server(1);
    let refused = socket.write(b"any more").expect_err("nobody is there");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionReset);
    drop(socket);
    assert!(wire.is_over());
}

#[test]
fn buffers_grow_with_what_they_carry() {
    let (wire, mut socket) = Wire::new(Buffers { to_server: (1, 1), to_client: (1, 4) });
    wire.grow();
    let (mut left, mut pieces) = (1_000_000, 0);
    while left > 0 {
        left -= socket.write(&vec![0; left]).expect("there is room");
        wire.carry_to_client(usize::MAX, false);
        wire.client_read(usize::MAX, |_| ());
        pieces += 1;
    }
    assert!(pieces < 1000, "{pieces}");
    assert_eq!(wire.client_room(), 1, "the other direction carried nothing");
}
