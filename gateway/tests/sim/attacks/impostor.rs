//! Somebody who logs in as a device, with a real client but another key, or one that is void: whatever of the device's
//! they have, they are given nothing, and nothing is taken from them.

use std::sync::Arc;

use bytes::Bytes;
use culver_protocol::client::{Client, ClientConfig, Credential, Encryption, Event, ServerKey};
use culver_protocol::crypto::hkdf;
use culver_protocol::id::{ClientMessageId, ConversationId, UserId};
use culver_protocol::proto;
use culver_protocol::proto::rpc::Request;

use crate::device::{DeviceKey, Secrecy};
use crate::world::BEGIN_MS;

/// Messages that they send.
const WORDS: u8 = 3;

/// See the module.
#[derive(Debug)]
pub(super) struct Impostor {
    client: Client,
    may_write: bool,
    is_done: bool,
}

impl Impostor {
    /// On a connection that is there now, the `number`th of its world. They write to `peer`.
    pub(super) fn new(
        (key, fetch, peer): (DeviceKey, bool, UserId),
        credential: Credential,
        (secrecy, server): (&Secrecy, Option<ServerKey>),
        number: u64,
        now_us: u64,
    ) -> Self {
        let mut client = Client::new(ClientConfig {
            user: key.user,
            device: key.device,
            credential,
            fetch,
            encryption: Some(Encryption {
                suite: secrecy.suite,
                own: Arc::clone(&secrecy.own),
                roots: secrecy.root.into(),
                server,
                forward_secret: secrecy.forward_secret,
                entropy: hkdf(&number.to_be_bytes(), &[9; 32], b"culver sim impostor"),
                unix_ms: BEGIN_MS,
            }),
            ..ClientConfig::default()
        });
        let conversation = ConversationId::direct(key.user, peer);
        for word in 0..WORDS {
            let id = ClientMessageId([word; 16]);
            client.send(id, conversation, Bytes::from_static(&[0xff; 16]), now_us).expect("short, and few");
        }
        client.handle_connected(now_us);
        let mut impostor = Self { client, may_write: true, is_done: false };
        impostor.look();
        impostor
    }

    pub(super) fn may_write(&self) -> bool {
        self.may_write
    }

    /// Their connection is of no use any more.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    pub(super) fn write(&mut self, write: impl FnOnce(&[u8]) -> usize) {
        let bytes = self.client.transmit();
        self.may_write = !bytes.is_empty();
        let taken = write(bytes);
        self.client.transmitted(taken);
    }

    pub(super) fn read(&mut self, bytes: &[u8], now_us: u64) {
        self.client.handle_bytes(bytes, now_us);
        self.may_write = true;
        self.look();
    }

    fn look(&mut self) {
        while let Some(event) = self.client.poll_event() {
            match event {
                Event::Disconnect => self.is_done = true,
                // A greeting says nothing; what is asked then is not answered.
                Event::LoggedIn(_) if self.client.is_logged_in() => {
                    let list = proto::ListConversations::default();
                    self.client.call(Request::ListConversations(list)).expect("the first request");
                }
                Event::Sent(_)
                | Event::Delivered(_)
                | Event::Gap(_)
                | Event::Receipt(_)
                | Event::SyncStart(_)
                | Event::SyncDone(_)
                | Event::Answer { result: Ok(_), .. } => {
                    let (user, device) = (self.client.user(), self.client.device());
                    panic!("nobody gets what is not theirs: as device {device} of user {user} somebody got {event:?}")
                }
                _ => {}
            }
        }
    }
}
