//! What a client shows that has been here before: a server's key that may be out of date, and its own.

use super::*;

fn refusal(peer: &mut Peer, code: ErrorCode) -> Vec<u8> {
    peer.seal(RecordType::Error, &proto::Error { code: code.number(), ..Default::default() })
}

fn shown(token: &str) -> Option<proto::login::Credential> {
    Some(proto::login::Credential::Token(token.into()))
}

#[test]
fn a_saved_server_key_is_good_until_its_end() {
    for (left_ms, kind) in [(1, Kind::Ik), (0, Kind::Xx)] {
        let saved = ServerKey { not_after_ms: UNIX_MS + left_ms, ..server_key() };
        let mut client = with(token(), Encryption { server: Some(saved), ..encryption() });
        assert_eq!(Opening::take(&mut client).kind, kind, "{left_ms} ms are left");
        // Time passes on the caller's clock.
        reconnect(&mut client, 1000);
        assert_eq!((Opening::take(&mut client).kind, client.server_key()), (Kind::Xx, None));
    }
    // What is kept for the next start has its end with it.
    let mut client = with(token(), encryption());
    Peer::welcome(&mut client, &Secret::default(), 1);
    let learned = ServerKey { not_after_ms: UNIX_MS + CERTIFIED_MS, ..server_key() };
    assert_eq!(events(&mut client).first(), Some(&Event::ServerKey(learned)));
}

#[test]
fn a_number_that_means_another_key_now_is_asked_about_at_the_next_attempt() {
    // What the application saved; the server has that number still, with another key.
    let saved = ServerKey { public: *pair(9).public(), ..server_key() };
    for credential in [token(), Credential::DeviceKey] {
        let mut learned = None;
        for start in 1..=2 {
            let mut client =
                with(credential.clone(), Encryption { server: Some(saved), entropy: secret(start), ..encryption() });
            let Opening { kind, suite, bytes, message, .. } = Opening::take(&mut client);
            assert_eq!(kind, Kind::Ik);
            let outcome = server::accept_ik(suite, bytes, &pair(2), &message, secret(6));
            assert_eq!(outcome.err(), Some(crate::handshake::HandshakeError::Failed));
            client.handle_bytes(&error(ErrorCode::HandshakeFailed, 0), 1);
            events(&mut client);
            comes_back_after_a_while(&mut client, 2);
            if start == 1 {
                // The application ends before it learns the new key: at its next start it has the same one saved.
                assert_eq!(Opening::take(&mut client).kind, Kind::Xx);
                continue;
            }
            let peer = Peer::welcome(&mut client, &Secret::default(), 3);
            assert_eq!(peer.opening.kind, Kind::Xx);
            learned = events(&mut client).into_iter().find_map(|event| match event {
                Event::ServerKey(learned) => Some(learned),
                _ => None,
            });
        }
        assert_eq!(learned, Some(server_key()));
        let mut client = with(credential, Encryption { server: learned, entropy: secret(8), ..encryption() });
        assert_eq!(Peer::welcome(&mut client, &Secret::default(), 1).opening.kind, Kind::Ik);
    }
}

#[test]
fn a_registered_device_shows_its_key_and_not_the_token_it_has_kept() {
    let mut client = with(token(), knowing_the_server());
    let peer = Peer::welcome(&mut client, &Secret::default(), 1);
    assert_eq!(peer.login.credential, shown("token"));
    // Its ticket is over: the key will do, whether the token still would or not.
    reconnect(&mut client, 2);
    take(&mut client);
    client.handle_bytes(&error(ErrorCode::TicketExpired, 0), 3);
    comes_back_at_once(&mut client, 4);
    let mut peer = Peer::welcome(&mut client, &Secret::default(), 5);
    assert_eq!((peer.opening.kind, peer.login.credential.take(), peer.login.user), (Kind::Ik, None, 1));
    assert!(!events(&mut client).iter().any(|event| matches!(event, Event::CredentialNeeded { .. })));
    // Not registered any more: then the token, and only when that is refused another.
    client.handle_bytes(&refusal(&mut peer, ErrorCode::DeviceUnknown), 6);
    comes_back_at_once(&mut client, 7);
    let mut peer = Peer::accept(&mut client, &Secret::default(), 8);
    assert_eq!(peer.login.credential, shown("token"));
    client.handle_bytes(&refusal(&mut peer, ErrorCode::TokenExpired), 9);
    assert!(events(&mut client).contains(&Event::CredentialNeeded { code: 3001 }), "the key was tried");
}

#[test]
fn with_an_expired_token_the_key_is_tried_before_another_is_asked_for() {
    for is_registered in [true, false] {
        let mut client = with(token(), knowing_the_server());
        let mut peer = Peer::accept(&mut client, &Secret::default(), 1);
        client.handle_bytes(&refusal(&mut peer, ErrorCode::TokenExpired), 2);
        comes_back_at_once(&mut client, 3);
        let mut peer = Peer::welcome(&mut client, &Secret::default(), 4);
        assert_eq!((peer.opening.kind, peer.login.credential.take(), peer.login.user), (Kind::Ik, None, 1));
        if is_registered {
            assert!(matches!(events(&mut client).as_slice(), [Event::LoggedIn(_)]));
            continue;
        }
        client.handle_bytes(&refusal(&mut peer, ErrorCode::DeviceUnknown), 5);
        assert!(events(&mut client).contains(&Event::CredentialNeeded { code: 3010 }));
        client.handle_disconnected(6);
        client.set_credential(Credential::Token("another".into()));
        assert_eq!(events(&mut client), [Event::Connect]);
        client.handle_connected(7);
        // That one too, after its WELCOME: the server has looked, and is not asked again.
        let mut peer = Peer::welcome(&mut client, &Secret::default(), 8);
        assert_eq!(peer.login.credential, shown("another"));
        client.handle_bytes(&refusal(&mut peer, ErrorCode::TokenExpired), 9);
        assert!(events(&mut client).contains(&Event::CredentialNeeded { code: 3001 }));
    }
}

#[test]
fn no_refusal_of_a_key_is_followed_by_the_same_key() {
    // Whatever a server says of it.
    for code in [ErrorCode::DeviceUnknown, ErrorCode::TokenMalformed, ErrorCode::TicketStale] {
        let mut client = with(Credential::DeviceKey, knowing_the_server());
        client.set_credential(token());
        let mut peer = Peer::accept(&mut client, &Secret::default(), 1);
        assert_eq!(peer.login.credential, None);
        client.handle_bytes(&refusal(&mut peer, code), 2);
        comes_back_at_once(&mut client, 3);
        let mut peer = Peer::accept(&mut client, &Secret::default(), 4);
        assert_eq!(peer.login.credential, shown("token"));
        client.handle_bytes(&refusal(&mut peer, code), 5);
        assert!(events(&mut client).contains(&Event::CredentialNeeded { code: code.number() }));
    }
}
