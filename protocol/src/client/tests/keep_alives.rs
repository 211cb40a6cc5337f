//! Keep-alives that adapt, as they stand on the wire.

use super::{Client, ClientConfig, Credential, Event, UserId, events, proto, record, take};
use crate::client::{KeepAliveMemory, NetworkId, NetworkMemory};
use crate::record::RecordType;

const SECOND_US: u64 = 1_000_000;

fn config() -> ClientConfig {
    ClientConfig {
        user: UserId(1),
        credential: Credential::Token("token".into()),
        keep_alives: Some(KeepAliveMemory::default()),
        ..ClientConfig::default()
    }
}

fn welcome(keep_alive_s: u32, (keep_alive_min_s, keep_alive_max_s): (u32, u32)) -> Vec<u8> {
    let welcome = proto::Welcome { keep_alive_s, keep_alive_min_s, keep_alive_max_s, version: 1, ..Default::default() };
    record(RecordType::Welcome, &welcome)
}

fn log_in(client: &mut Client, welcome: &[u8], now_us: u64) {
    client.handle_connected(now_us);
    take(client);
    client.handle_bytes(welcome, now_us);
    assert!(client.is_logged_in(), "{:?}", events(client));
    events(client);
}

fn ping(nonce: u64, keep_alive_s: u32) -> Vec<u8> {
    record(RecordType::Ping, &proto::Ping { nonce, keep_alive_s })
}

/// Takes the PING that is due, and answers it as a server does.
fn next_ping(client: &mut Client, nonce: u64) -> (u64, u32) {
    let due_us = client.poll_timeout().expect("a keep-alive");
    client.handle_timeout(due_us);
    let bytes = take(client);
    let promised_s = (0..=1800).find(|promised_s| bytes == ping(nonce, *promised_s)).expect("a PING, and nothing else");
    let pong = proto::Pong { nonce, keep_alive_s: promised_s };
    client.handle_bytes(&record(RecordType::Pong, &pong), due_us + 1000);
    (due_us, promised_s)
}

#[test]
fn a_silence_kept_three_times_is_followed_by_a_longer_one_that_holds_once_the_server_says_so() {
    let mut client = Client::new(config());
    log_in(&mut client, &welcome(240, (5, 1800)), 0);
    let pings: Vec<_> = (1..=6).map(|nonce| next_ping(&mut client, nonce)).collect();
    let promised: Vec<u32> = pings.iter().map(|(_, promised_s)| *promised_s).collect();
    assert_eq!(promised, [0, 0, 0, 300, 0, 0]);
    let gaps: Vec<u64> = pings.windows(2).map(|pair| (pair[1].0 - pair[0].0) / SECOND_US).collect();
    assert_eq!(gaps, [240, 240, 240, 300, 300]);
}

#[test]
fn a_server_that_tells_no_bounds_and_a_client_that_does_not_adapt_go_on_as_ever() {
    for (keep_alives, bounds) in [(Some(KeepAliveMemory::default()), (0, 0)), (None, (5, 1800))] {
        let mut client = Client::new(ClientConfig { keep_alives, ..config() });
        log_in(&mut client, &welcome(240, bounds), 0);
        client.set_network(NetworkId(0), 1);
        let pings: Vec<_> = (1..=9).map(|nonce| next_ping(&mut client, nonce)).collect();
        assert!(pings.iter().all(|(_, promised_s)| *promised_s == 0), "{pings:?}");
        assert!(pings.windows(2).all(|pair| pair[1].0 - pair[0].0 == 240 * SECOND_US));
    }
}

#[test]
fn a_silence_that_is_not_kept_is_shorter_after_the_next_login() {
    let mut client = Client::new(config());
    log_in(&mut client, &welcome(240, (5, 1800)), 0);
    let due_us = client.poll_timeout().expect("a keep-alive");
    client.handle_timeout(due_us);
    assert_eq!(take(&mut client), ping(1, 0));
    let given_up_us = client.poll_timeout().expect("a deadline for the PONG");
    client.handle_timeout(given_up_us);
    assert_eq!(events(&mut client), [Event::Disconnect]);
    client.handle_disconnected(given_up_us);
    let back_us = client.poll_timeout().unwrap_or(given_up_us);
    client.handle_timeout(back_us);
    assert_eq!(events(&mut client), [Event::Connect]);
    log_in(&mut client, &welcome(240, (5, 1800)), back_us);
    // The login could not know it yet: the promise comes at once, and is kept at once.
    assert_eq!(take(&mut client), ping(1, 120));
    let pong = proto::Pong { nonce: 1, keep_alive_s: 120 };
    client.handle_bytes(&record(RecordType::Pong, &pong), back_us + 1000);
    let (due_us, promised_s) = next_ping(&mut client, 2);
    assert_eq!((due_us - back_us, promised_s), (120 * SECOND_US, 0));
    let memory = client.keep_alive_memory().expect("it adapts");
    assert_eq!((memory.networks[0].interval_s, memory.networks[0].losses), (120, 1));
}

#[test]
fn the_login_wishes_for_what_its_network_holds_and_another_network_is_promised_its_own() {
    let of =
        |network, interval_s| NetworkMemory { network: NetworkId(network), interval_s, ..NetworkMemory::default() };
    let memory = KeepAliveMemory { networks: vec![of(1, 60), of(2, 900)] };
    let mut client = Client::new(ClientConfig { keep_alives: Some(memory), keep_alive_s: 30, ..config() });
    client.set_network(NetworkId(1), 0);
    client.handle_connected(0);
    let wished = |bytes: &[u8], keep_alive_s: u8| bytes.windows(2).any(|field| field == [0x28, keep_alive_s]);
    assert!(wished(&take(&mut client), 60));
    client.handle_bytes(&welcome(60, (5, 1800)), 1);
    assert!(take(&mut client).is_empty(), "it is agreed");
    client.set_network(NetworkId(2), 2);
    assert_eq!(take(&mut client), ping(1, 900), "which also shows whether the connection has come over");
    client.handle_bytes(&record(RecordType::Pong, &proto::Pong { nonce: 1, keep_alive_s: 900 }), 3);
    client.set_network(NetworkId(1), 4);
    assert_eq!(take(&mut client), ping(2, 60));
    client.handle_bytes(&record(RecordType::Pong, &proto::Pong { nonce: 2, keep_alive_s: 60 }), 5);
    assert_eq!(client.poll_timeout(), Some(4 + 60 * SECOND_US));
    // A network of which nothing is known begins with what the application wishes.
    let mut client = Client::new(ClientConfig { keep_alive_s: 30, ..config() });
    client.handle_connected(0);
    assert!(wished(&take(&mut client), 30));
}
