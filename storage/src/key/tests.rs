//! Keys come back as they were made, sort as they should, and no bytes panic.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn keys_come_back(shard: u16, id: u64, seq: u64, device: u16, conversation: [u8; 16], client: [u8; 16]) {
        let (shard, who) = (ShardId(shard), UserId(id));
        let talk = ConversationId(conversation);
        prop_assert_eq!(decode_meta(&meta(shard, MetaKind::Time, id)), Some((shard, 2, id)));
        prop_assert_eq!(decode_conversation(&super::conversation(shard, talk)), Some((shard, talk)));
        prop_assert_eq!(decode_inbox(&inbox(shard, who, InboxSeq(seq))), Some((shard, who, InboxSeq(seq))));
        prop_assert_eq!(decode_user(&user(shard, who)), Some((shard, who)));
        let (of_device, (least, beyond)) = (super::device(shard, who, DeviceId(device)), devices_range(shard, who));
        prop_assert_eq!(decode_device(&of_device), Some((shard, who, DeviceId(device))));
        prop_assert!(least <= of_device && of_device.as_slice() < beyond.as_slice());
        let next = super::device(shard, UserId(id.saturating_add(1)), DeviceId(0));
        prop_assert!(id == u64::MAX || beyond.as_slice() < next.as_slice());
        let of = DedupKey { conversation: talk, sender: who, device: DeviceId(device), client_message_id: ClientMessageId(client) };
        prop_assert_eq!(decode_dedup(&dedup(shard, &of)), Some((shard, of)));
        for kind in TalkKind::ALL {
            let key = super::talk(shard, who, talk, kind);
            prop_assert_eq!(decode_talk(&key), Some((shard, who, talk, kind)));
            let (least, greatest) = talks_range(shard, who);
            prop_assert!(least < key && key < greatest);
        }
        for lane in Lane::ALL {
            let stream = Stream { from: shard, to: ShardId(device), lane };
            prop_assert_eq!(decode_outbox(&outbox(stream, seq)), Some((stream, seq)));
            for key in [watermark(stream), head(stream)] {
                let back = decode_meta(&key).and_then(|(shard, kind, id)| stream_of(shard, kind, id));
                prop_assert_eq!(back, Some(stream));
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let fits = |len: usize| bytes.len() == len;
        prop_assert_eq!(decode_meta(&bytes).is_some(), fits(META_KEY_LEN));
        prop_assert_eq!(decode_conversation(&bytes).is_some(), fits(CONVERSATION_KEY_LEN));
        prop_assert_eq!(decode_inbox(&bytes).is_some(), fits(INBOX_KEY_LEN));
        prop_assert_eq!(decode_user(&bytes).is_some(), fits(USER_KEY_LEN));
        prop_assert_eq!(decode_dedup(&bytes).is_some(), fits(DEDUP_KEY_LEN));
        prop_assert_eq!(decode_device(&bytes).is_some(), fits(DEVICE_KEY_LEN));
        prop_assert!(decode_talk(&bytes).is_none() || fits(TALK_KEY_LEN));
        prop_assert!(decode_outbox(&bytes).is_none() || fits(OUTBOX_KEY_LEN));
    }

    #[test]
    fn inbox_keys_sort_by_seq(user: u64, a: u64, b: u64) {
        let key = |seq| inbox(ShardId(3), UserId(user), InboxSeq(seq));
        prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
    }
}

/// The placement of ids is a stored format: these numbers may never change.
#[test]
fn shards_are_pinned() {
    let users: Vec<u16> = [0, 1, 7, u64::MAX].map(|id| ShardId::of_user(UserId(id), 64).0).to_vec();
    let direct = ShardId::of_conversation(ConversationId::direct(UserId(1), UserId(2)), 64).0;
    assert_eq!((users, direct), (vec![25, 51, 60, 19], 45));
}
