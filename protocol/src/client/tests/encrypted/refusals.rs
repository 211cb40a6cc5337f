//! What refusals lead to: those in clear, which anybody may have written, and the server's own.

use super::*;
use crate::limits::LOGIN_RETRY_MS_MAX;

#[test]
fn a_refused_ticket_is_followed_by_the_key_at_once() {
    for code in [ErrorCode::TicketExpired, ErrorCode::TicketStale, ErrorCode::TicketInvalid] {
        for (credential, server) in [(None, None), (Some(token()), None), (None, Some(server_key()))] {
            let mut client = with(ticket(), Encryption { server, ..encryption() });
            if let Some(credential) = credential.clone() {
                client.set_credential(credential);
            }
            assert_eq!(Opening::take(&mut client).kind, Kind::Resume);
            client.handle_bytes(&error(code, 0), 1);
            assert_eq!(client.ticket(), None);
            comes_back_at_once(&mut client, 2);
            let peer = Peer::welcome(&mut client, &Secret::default(), 3);
            assert_eq!(peer.opening.kind, if server.is_some() { Kind::Ik } else { Kind::Xx });
            // It was registered when it got the ticket, so the token is for later.
            assert_eq!((peer.login.credential, peer.login.user), (None, 1));
        }
    }
}

#[test]
fn an_unknown_server_key_is_asked_for_at_once() {
    let old = ServerKey { id: 6, public: *pair(9).public(), ..server_key() };
    let mut client = with(token(), Encryption { server: Some(old), ..encryption() });
    assert_eq!(Opening::take(&mut client).preamble.server_key, 6);
    client.handle_bytes(&error(ErrorCode::ServerKeyUnknown, 0), 1);
    assert_eq!(client.server_key(), None);
    comes_back_at_once(&mut client, 2);
    let peer = Peer::welcome(&mut client, &Secret::default(), 3);
    assert_eq!(peer.opening.kind, Kind::Xx);
    assert_eq!(
        (events(&mut client).first(), client.server_key()),
        (Some(&Event::ServerKey(server_key())), Some(server_key()))
    );
}

#[test]
fn a_refusal_of_what_was_not_shown_is_only_a_reason_to_wait() {
    let about_tickets = [ErrorCode::TicketExpired, ErrorCode::TicketStale, ErrorCode::TicketInvalid];
    let mut client = with(token(), knowing_the_server());
    for code in about_tickets {
        take(&mut client);
        client.handle_bytes(&error(code, 0), 1);
        assert_eq!(events(&mut client).len(), 2);
        comes_back_after_a_while(&mut client, 2);
        assert_eq!(Opening::take(&mut client).kind, Kind::Ik);
    }
    let mut client = with(ticket(), knowing_the_server());
    client.handle_bytes(&error(ErrorCode::ServerKeyUnknown, 0), 1);
    assert_eq!(events(&mut client).len(), 2);
    comes_back_after_a_while(&mut client, 2);
    assert_eq!(client.server_key(), Some(server_key()), "it was not what was shown");
    assert!(client.ticket().is_some());
}

/// Whatever is said in clear, by whomever, the client comes back, encrypted, with its token.
#[test]
fn no_error_in_clear_stops_a_client() {
    let unknown = [1999, 2999, 3999, 4999, 5999, 9999, 0, u32::MAX];
    let codes = ErrorCode::ALL.iter().map(|code| code.number()).chain(unknown);
    for (code, kind) in codes.flat_map(|code| Kind::ALL.map(|kind| (code, kind))) {
        let (_, mut client) = each_kind(Suite::ChaCha20Poly1305).find(|(of, _)| *of == kind).expect("each");
        let refusal = proto::Error { code, retry_after_ms: u32::MAX, ..Default::default() };
        let mut now_us = 1;
        for _ in 0..4 {
            assert!(Opening::take(&mut client).preamble.suite > 0);
            client.handle_bytes(&record(RecordType::Error, &refusal), now_us);
            let told = events(&mut client);
            assert_eq!(told, [Event::ServerError(refusal.clone()), Event::Disconnect], "{code}");
            client.handle_disconnected(now_us);
            let due_us = client.poll_timeout().unwrap_or(now_us);
            let is_about_room =
                [ErrorCode::LoginsBusy, ErrorCode::ConnectionsFull].map(ErrorCode::number).contains(&code);
            let most_us = if is_about_room { u64::from(LOGIN_RETRY_MS_MAX) * 1100 } else { 31_000_000 };
            assert!(due_us <= now_us + most_us, "nobody keeps a client away for long: {due_us}");
            now_us = due_us + 1;
            client.handle_timeout(now_us);
            assert_eq!(events(&mut client), [Event::Connect], "{code}");
            client.handle_connected(now_us);
        }
        // The server is itself again.
        let peer = Peer::welcome(&mut client, &secret(4), now_us);
        let shows_key = matches!(peer.opening.kind, Kind::Ik | Kind::Xx);
        // Who had a ticket is registered, and keeps its token for when the server itself says otherwise.
        let is_new = matches!(kind, Kind::Ik | Kind::Xx);
        assert_eq!(peer.login.credential.is_some(), shows_key && is_new, "{code}");
        assert_eq!(peer.login.user == 1, shows_key && !is_new, "{code}");
    }
}

#[test]
fn a_handshake_that_fails_is_not_tried_for_ever() {
    for code in [ErrorCode::HandshakeFailed, ErrorCode::HandshakeUnsupported, ErrorCode::BadHandshake] {
        let mut client = with(ticket(), knowing_the_server());
        let mut kinds = Vec::new();
        for _ in 0..4 {
            kinds.push(Opening::take(&mut client).kind);
            client.handle_bytes(&error(code, 1), 1);
            assert_eq!(events(&mut client).len(), 2);
            comes_back_after_a_while(&mut client, 1);
        }
        assert_eq!(kinds, [Kind::Resume, Kind::Ik, Kind::Xx, Kind::Xx]);
    }
}

#[test]
fn nothing_else_is_taken_in_clear() {
    let gap = record(RecordType::Gap, &proto::Gap { start: 1, reset: true, incarnation: 9 });
    let goaway = record(RecordType::Goaway, &proto::Goaway::default());
    for clear in [
        super::super::welcome(),
        deliver(3, [4]),
        gap,
        goaway,
        record(RecordType::Ping, &proto::Ping { nonce: 1, ..Default::default() }),
    ] {
        for (kind, mut client) in each_kind(Suite::ChaCha20Poly1305) {
            take(&mut client);
            client.handle_bytes(&clear, 1);
            let out_of_state = Event::Violation(Violation::OutOfState { kind: clear[2] });
            assert_eq!(events(&mut client), [out_of_state, Event::Disconnect]);
            assert_eq!((client.cursor(), client.is_logged_in()), (InboxSeq(3), false));
            assert!(client.transmit().is_empty());
            reconnect(&mut client, 2);
            assert_eq!(Opening::take(&mut client).kind, kind);
        }
        // Nor where there are keys.
        for (_, mut client) in each_kind(Suite::ChaCha20Poly1305) {
            Peer::accept(&mut client, &secret(4), 1);
            events(&mut client);
            client.handle_bytes(&clear, 2);
            assert!(matches!(
                events(&mut client).as_slice(),
                [Event::Violation(Violation::Frame(_)), Event::Disconnect]
            ));
        }
    }
}

#[test]
fn the_second_message_may_be_refused_in_clear_until_the_server_has_the_keys() {
    let refusal = error(ErrorCode::Replaced, 0);
    let mut client = with(token(), encryption());
    let peer = Peer::accept(&mut client, &Secret::default(), 1);
    assert_eq!(peer.opening.kind, Kind::Xx);
    events(&mut client);
    client.handle_bytes(&refusal, 2);
    assert!(matches!(events(&mut client).as_slice(), [Event::ServerError(_), Event::Disconnect]));
    comes_back_after_a_while(&mut client, 3);

    let mut client = with(token(), encryption());
    Peer::welcome(&mut client, &Secret::default(), 1);
    events(&mut client);
    client.handle_bytes(&error(ErrorCode::Replaced, u32::MAX), 2);
    assert!(matches!(events(&mut client).as_slice(), [Event::Violation(_), Event::Disconnect]), "it has them now");
}

fn sealed_error(peer: &mut Peer, code: ErrorCode) -> Vec<u8> {
    peer.seal(RecordType::Error, &proto::Error { code: code.number(), ..Default::default() })
}

#[test]
fn an_unknown_device_shows_its_token_or_asks_for_one() {
    // After WELCOME, as it comes: the hub looks at READY.
    let mut client = with(ticket(), knowing_the_server());
    client.set_credential(token());
    let mut peer = Peer::welcome(&mut client, &secret(4), 1);
    client.handle_bytes(&sealed_error(&mut peer, ErrorCode::DeviceUnknown), 2);
    assert_eq!(client.ticket(), None, "that of this WELCOME too");
    comes_back_at_once(&mut client, 3);
    let mut peer = Peer::welcome(&mut client, &Secret::default(), 4);
    assert_eq!(peer.opening.kind, Kind::Ik);
    assert!(peer.login.credential.is_some());
    // A server that does not take the token either is not asked again and again.
    client.handle_bytes(&sealed_error(&mut peer, ErrorCode::DeviceUnknown), 5);
    assert!(events(&mut client).contains(&Event::CredentialNeeded { code: 3010 }));
    client.handle_disconnected(6);
    assert_eq!((client.poll_event(), client.poll_timeout()), (None, None));
    client.set_credential(Credential::Token("another".into()));
    assert_eq!(events(&mut client), [Event::Connect]);
    client.handle_connected(7);
    let peer = Peer::welcome(&mut client, &Secret::default(), 8);
    assert_eq!(peer.login.credential, Some(proto::login::Credential::Token("another".into())));

    for (credential, shared) in [(Credential::DeviceKey, Secret::default()), (ticket(), secret(4))] {
        let mut client = with(credential, knowing_the_server());
        let mut peer = Peer::welcome(&mut client, &shared, 1);
        client.handle_bytes(&sealed_error(&mut peer, ErrorCode::DeviceUnknown), 2);
        assert!(events(&mut client).contains(&Event::CredentialNeeded { code: 3010 }));
        assert_eq!(client.ticket(), None);
    }
}

#[test]
fn a_refused_token_is_asked_for_and_a_newer_one_is_not_refused_with_it() {
    let mut client = with(token(), knowing_the_server());
    let mut peer = Peer::accept(&mut client, &Secret::default(), 1);
    client.handle_bytes(&sealed_error(&mut peer, ErrorCode::TokenKey), 2);
    assert!(events(&mut client).contains(&Event::CredentialNeeded { code: 3011 }));

    let mut client = with(token(), knowing_the_server());
    let mut peer = Peer::accept(&mut client, &Secret::default(), 1);
    client.set_credential(Credential::Token("newer".into()));
    client.handle_bytes(&sealed_error(&mut peer, ErrorCode::TokenExpired), 2);
    comes_back_at_once(&mut client, 3);
    let peer = Peer::accept(&mut client, &Secret::default(), 4);
    assert_eq!(peer.login.credential, Some(proto::login::Credential::Token("newer".into())));
}

#[test]
fn a_ticket_refused_under_seal_is_followed_by_the_key() {
    let mut client = with(ticket(), knowing_the_server());
    let mut peer = Peer::accept(&mut client, &secret(4), 1);
    client.handle_bytes(&sealed_error(&mut peer, ErrorCode::TicketStale), 2);
    comes_back_at_once(&mut client, 3);
    let peer = Peer::accept(&mut client, &Secret::default(), 4);
    assert_eq!((peer.opening.kind, peer.login.user), (Kind::Ik, 1));
}

#[test]
fn the_servers_own_word_stops_and_what_a_network_can_cause_does_not() {
    for code in [ErrorCode::Replaced, ErrorCode::DeviceRemoved, ErrorCode::BadProtobuf] {
        let (mut client, mut peer) = welcomed();
        client.handle_bytes(&sealed_error(&mut peer, code), 2);
        assert!(events(&mut client).contains(&Event::Stopped { code: code.number() }));
        assert_eq!(client.ticket().is_none(), code == ErrorCode::DeviceRemoved);
    }
    let of_network =
        [ErrorCode::RecordForged, ErrorCode::RecordTooLong, ErrorCode::RecordEmpty, ErrorCode::HandshakeFailed];
    for code in of_network.into_iter().chain([ErrorCode::RecordsSpent, ErrorCode::LoginsBusy]) {
        let (mut client, mut peer) = welcomed();
        client.handle_bytes(&sealed_error(&mut peer, code), 2);
        assert!(matches!(events(&mut client).as_slice(), [Event::ServerError(_), Event::Disconnect]), "{code:?}");
        assert!(client.ticket().is_some());
        comes_back_after_a_while(&mut client, 3);
    }
    // In plaintext nobody but the client is to blame.
    let mut client = logged_in();
    client.handle_bytes(&error(ErrorCode::RecordTooLong, 0), 2);
    assert!(events(&mut client).contains(&Event::Stopped { code: 4002 }));
}
