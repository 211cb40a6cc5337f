//! One device against a server that says what the test wants.

use bytes::Bytes;
use culver_protocol::id::{ClientMessageId, ConversationId, DeviceId, UserId};
use culver_protocol::proto;
use culver_protocol::record::{Cipher, RecordType};
use prost::Message;

use super::{Device, DeviceKey, Nature, Store, Want};
use crate::oracle::{Oracle, Terms, Witness};
use crate::source::Source;

/// An application's acts where it has nothing to send: it persists, or, from here on, is killed.
const DIES: u32 = 400;
/// Of a thousand choices, one that says no.
const NO: u32 = 0;
/// And one that says yes to what is likely enough.
const YES: u32 = 999;

fn key(user: u64) -> DeviceKey {
    DeviceKey { user: UserId(user), device: DeviceId(1) }
}

fn talk() -> ConversationId {
    ConversationId::direct(UserId(1), UserId(2))
}

fn record(kind: RecordType, message: &impl Message) -> Vec<u8> {
    let mut out = Vec::new();
    Cipher::default().seal_message(&mut out, kind, message);
    out
}

/// What Ann writes to Bob, whose processes are looked at.
struct Scene {
    oracle: Oracle,
    ann: Witness,
    sent: Vec<(ClientMessageId, Bytes)>,
}

impl Scene {
    fn new(nature: Nature) -> (Self, Device) {
        let mut oracle = Oracle::new(Terms::default());
        let ann = oracle.launched(key(1), false, None);
        let bob = Device::new(key(2), nature, 7, Store::with_token(None, "token".to_owned()), &mut oracle);
        let mut scene = Self { oracle, ann, sent: Vec::new() };
        for _ in 0..4 {
            let (_, id, payload) = scene.oracle.new_message(&scene.ann, talk(), 8, false, 0);
            scene.sent.push((id, payload));
        }
        (scene, bob)
    }

    fn wants(&mut self, device: &mut Device) -> Vec<Want> {
        std::iter::from_fn(|| device.next_want(&mut self.oracle, 0)).collect()
    }

    fn take(device: &mut Device) -> Vec<u8> {
        let bytes = device.client.transmit().to_vec();
        device.client.transmitted(bytes.len());
        bytes
    }

    /// A process that wants a connection gets one, and is logged in.
    fn log_in(&mut self, device: &mut Device) {
        assert_eq!(self.wants(device), [Want::Connect]);
        device.connected(&mut self.oracle, 0, 1, true);
        let welcome = proto::Welcome {
            keep_alive_s: 60,
            version: 1,
            credit_entries: 50,
            credit_bytes: 1 << 20,
            ..Default::default()
        };
        self.hear(device, RecordType::Welcome, &welcome);
        Self::take(device);
    }

    fn hear(&mut self, device: &mut Device, kind: RecordType, message: &impl Message) {
        device.client.handle_bytes(&record(kind, message), 0);
        assert_eq!(self.wants(device), []);
    }

    /// Ann's messages come, each at the place in the inbox that it has in the conversation.
    fn deliver(&mut self, device: &mut Device, places: std::ops::RangeInclusive<u64>) {
        let previous = places.start() - 1;
        let entries = places.zip(self.sent.iter().skip(usize::try_from(previous).expect("small"))).map(
            |(place, (_, payload))| proto::Entry {
                inbox_seq: place,
                conversation: Bytes::copy_from_slice(&talk().0),
                conversation_seq: place,
                message_id: 100 + place,
                server_time_ms: 5,
                sender: 1,
                sender_device: 1,
                payload: payload.clone(),
            },
        );
        let deliver = proto::Deliver { previous, entries: entries.collect() };
        self.hear(device, RecordType::Deliver, &deliver);
    }

    fn act(&mut self, device: &mut Device, choices: &[u32]) -> Option<Want> {
        device.act(&mut Source::replay(choices.to_vec()), &mut self.oracle, 0, &[UserId(1)])
    }
}

fn ack(inbox_seq: u64) -> Vec<u8> {
    record(RecordType::Ack, &proto::Ack { inbox_seq, ..Default::default() })
}

#[test]
fn who_is_killed_comes_back_with_what_is_in_its_store() {
    for forgets_sends in [false, true] {
        let (mut scene, mut bob) = Scene::new(Nature { late: 1000, killed: 100, forgets_sends, ..Nature::default() });
        scene.log_in(&mut bob);
        scene.deliver(&mut bob, 1..=3);
        bob.say_last(&mut scene.oracle, 0, &[UserId(1)]);
        assert_eq!(scene.act(&mut bob, &[0, 2, NO]), None, "it persists two, and says so");
        assert_eq!((bob.client.cursor().0, bob.client.in_flight()), (2, 1));
        assert_eq!(scene.act(&mut bob, &[DIES]), Some(Want::Abandon));
        let is_sent_again = usize::from(!forgets_sends);
        assert_eq!((bob.client.cursor().0, bob.client.in_flight()), (2, is_sent_again));
        scene.log_in(&mut bob);
        scene.deliver(&mut bob, 3..=4);
        bob.act_calmly(&mut scene.oracle, 0);
        assert_eq!(bob.client.cursor().0, 4);
    }
}

#[test]
fn what_is_persisted_late_is_acknowledged_late() {
    let (mut scene, mut bob) = Scene::new(Nature { late: 1000, killed: 100, ..Nature::default() });
    scene.log_in(&mut bob);
    scene.deliver(&mut bob, 1..=3);
    assert_eq!(scene.act(&mut bob, &[0, 0, NO]), None);
    assert_eq!(Scene::take(&mut bob), b"", "nothing is in its store");
    assert_eq!(scene.act(&mut bob, &[0, 1, YES]), None);
    assert_eq!(Scene::take(&mut bob), b"", "one is, but its client is not told");
    assert_eq!(scene.act(&mut bob, &[0, 1, NO]), None);
    assert_eq!(Scene::take(&mut bob), ack(2));
    assert_eq!(scene.act(&mut bob, &[0, 1, YES]), None);
    scene.act(&mut bob, &[DIES]);
    assert_eq!(bob.client.cursor().0, 3, "what is in the store is there, whoever was told");
}

#[test]
fn a_fetching_process_stores_for_the_app_beside_it() {
    let (mut scene, mut bob) = Scene::new(Nature { killed: 100, ..Nature::default() });
    scene.log_in(&mut bob);
    scene.deliver(&mut bob, 1..=1);
    bob.say_last(&mut scene.oracle, 0, &[UserId(1)]);
    let mut fetching = bob.fetching(8, &mut scene.oracle);
    scene.log_in(&mut fetching);
    assert_eq!((fetching.client.cursor().0, fetching.client.in_flight()), (0, 0), "what the app sends is the app's");
    scene.deliver(&mut fetching, 1..=4);
    assert_eq!(scene.act(&mut fetching, &[0]), None);
    assert_eq!((Scene::take(&mut fetching), Scene::take(&mut bob).is_empty()), (ack(4), false));
    assert_eq!(fetching.act_calmly(&mut scene.oracle, 0), Some(Want::Abandon));
    assert_eq!((fetching.is_over(), bob.is_over(), bob.client.cursor().0), (true, false, 0));
    scene.act(&mut bob, &[DIES]);
    assert_eq!((bob.client.cursor().0, bob.client.in_flight()), (4, 1), "the app finds what the other has stored");
}
