//! Devices, and what they ask and are told, in words. Nothing here differs between two runs of the same choices.

use std::fmt;

use culver_protocol::client::Event;
use culver_protocol::id::ConversationId;
use culver_protocol::proto;
use culver_protocol::proto::rpc::Request;
use culver_protocol::proto::rpc_result::Result as Found;

use super::DeviceKey;

/// One process of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name {
    pub(super) key: DeviceKey,
    pub(super) fetch: bool,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.fetch { " (fetching)" } else { "" };
        write!(f, "user {} device {}{what}", self.key.user, self.key.device)
    }
}

/// Which conversation: its two users where it is direct.
pub(super) fn talk(conversation: &[u8]) -> String {
    match ConversationId::try_from(conversation).ok().and_then(ConversationId::direct_users) {
        Some((lesser, greater)) => format!("{lesser}&{greater}"),
        None => format!("{conversation:x?}"),
    }
}

pub(super) fn request(request: &Request) -> String {
    match request {
        Request::ListDevices(_) => "asks for its user's devices".to_owned(),
        Request::ListConversations(list) => {
            let which = if list.page.is_empty() { "the first" } else { "a further page of" };
            format!("asks for {which} {} conversations", list.limit)
        }
        Request::MarkRead(mark) => format!("marks {} as read up to {}", talk(&mark.conversation), mark.seq),
        Request::RemoveDevice(which) => format!("wants device {} of its user removed", which.device),
        Request::NameDevice(named) => format!("names device {} of its user {:?}", named.device, named.name),
        Request::SetReadReceipts(wish) => format!("wants its read receipts {}", if wish.on { "on" } else { "off" }),
    }
}

pub(super) fn event(event: &Event) -> String {
    match event {
        Event::Connect => "wants a connection".to_owned(),
        Event::Disconnect => "gives its connection up".to_owned(),
        Event::LoggedIn(welcome) => format!("is logged in, with room for {} entries", welcome.credit_entries),
        Event::Sent(accepted) => {
            let again = if accepted.duplicate { ", for a second time" } else { "" };
            let (id, seq) =
                (index_of(&accepted.client_message_id.0[12..], u32::from_be_bytes), accepted.conversation_seq);
            format!("is told that message {id} is number {seq} of its conversation{again}")
        }
        Event::Rejected { id, code, retry } => {
            let how = if *retry { "for now" } else { "for good" };
            format!("is refused message {} {how}: {code:?}", index_of(&id.0[12..], u32::from_be_bytes))
        }
        Event::Delivered(entry) => format!(
            "gets message {}, number {} of {}, as {} of its inbox",
            entry.payload.get(..4).map_or_else(String::new, |index| index_of(index, u32::from_le_bytes)),
            entry.conversation_seq,
            talk(&entry.conversation),
            entry.inbox_seq,
        ),
        Event::Gap(gap) => format!("is told of a gap: {gap:?}"),
        Event::Receipt(receipt) => {
            let marks: Vec<String> = receipt.marks.iter().map(mark).collect();
            format!("gets receipts of version {}: {}", receipt.version, marks.join("; "))
        }
        Event::SyncStart(start) => format!("is told that {} entries wait, up to {}", start.entries, start.through),
        Event::SyncDone(done) => format!("has everything that waited, up to {}", done.inbox_seq),
        Event::Answer { id, result } => format!("is answered {id}: {}", answer(result)),
        Event::Cancelled { id } => format!("gets no answer to {id}"),
        Event::Stopped { .. } => "is stopped: another took its place".to_owned(),
        Event::CredentialNeeded { .. } => "needs another ticket".to_owned(),
        other => format!("{other:?}"),
    }
}

/// The number of a message, which is in its id and in its payload.
fn index_of(bytes: &[u8], from: fn([u8; 4]) -> u32) -> String {
    bytes.try_into().map_or_else(|_| format!("{bytes:x?}"), |bytes| from(bytes).to_string())
}

fn mark(mark: &proto::Mark) -> String {
    let expired = match mark.expired_through {
        0 => String::new(),
        through => format!(", expired {}..{through}", mark.expired_after + 1),
    };
    let proto::Mark { delivered, read, own_read, .. } = mark;
    format!("{} delivered {delivered}, read {read}, own read {own_read}{expired}", talk(&mark.conversation))
}

fn answer(result: &Result<Found, u32>) -> String {
    match result {
        Ok(Found::Devices(list)) => {
            let device = |device: &proto::Device| {
                let is = if device.online { "online" } else { "away" };
                format!("{} {is}, {} waiting", device.device, device.waiting)
            };
            format!("devices {}", list.devices.iter().map(device).collect::<Vec<_>>().join("; "))
        }
        Ok(Found::Conversations(page)) => {
            let item = |item: &proto::ConversationItem| {
                format!("{} has {}, {} unread", talk(&item.conversation), item.last_seq, item.unread)
            };
            let more = if page.next.is_empty() { "" } else { "; and more" };
            format!("conversations {}{more}", page.items.iter().map(item).collect::<Vec<_>>().join("; "))
        }
        other => format!("{other:?}"),
    }
}
