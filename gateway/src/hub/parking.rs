//! Commands that wait for a read, and those held back behind them.
//!
//! A waiting command holds back every later command of the same device, conversation or cold user, so that
//! nothing overtakes within any of them. What may be refused is refused beyond a bound; what may not (ACK, Resume,
//! Login, Close) is bounded by the sessions themselves.

use std::collections::{HashSet, VecDeque};

use culver_protocol::id::{ConversationId, UserId};
use culver_storage::command::Load;

use super::command::{Command, Device};

/// SENDs that may wait before further ones are refused with `busy`.
pub const PARKED_SENDS_MAX: usize = 4096;

/// What a command has in common with others that must not overtake it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Device(Device),
    Conversation(ConversationId),
    User(UserId),
}

/// The parked commands, in the order they came.
#[derive(Default)]
pub struct Parking {
    /// With the number of its arrival.
    commands: VecDeque<Parked>,
    /// Keys of all parked commands; rebuilt when they are retried.
    keys: HashSet<Key>,
    sends: usize,
}

/// A command that waits.
#[derive(Debug)]
pub struct Parked {
    /// The number of its arrival.
    pub arrival: u64,
    /// The command.
    pub command: Command,
    /// The read it waits for; `None`: it is held back behind another.
    pub load: Option<Load>,
}

impl Parking {
    /// Commands parked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.commands.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Whether a parked command holds this one back.
    #[must_use]
    pub fn holds_back(&self, command: &Command) -> bool {
        !self.keys.is_empty() && keys(command).into_iter().flatten().any(|key| self.keys.contains(&key))
    }

    /// Whether there is room for this command.
    #[must_use]
    pub fn has_room_for(&self, command: &Command) -> bool {
        !matches!(command, Command::Send { .. }) || self.sends < PARKED_SENDS_MAX
    }

    /// Parks a command behind those that are there.
    pub fn park(&mut self, parked: Parked) {
        self.keys.extend(keys(&parked.command).into_iter().flatten());
        self.sends += usize::from(matches!(parked.command, Command::Send { .. }));
        self.commands.push_back(parked);
    }

    /// Takes all commands out, to be retried in order; those that must go on waiting are parked again.
    pub fn take(&mut self) -> VecDeque<Parked> {
        self.keys.clear();
        self.sends = 0;
        std::mem::take(&mut self.commands)
    }
}

fn keys(command: &Command) -> [Option<Key>; 3] {
    let device = command.device();
    match command {
        Command::Send { send, .. } => {
            // The sender's own inbox is not touched by a send, its order is: that is the device's key.
            let recipient = send.conversation.direct_peer(send.sender);
            [Some(Key::Device(device)), Some(Key::Conversation(send.conversation)), recipient.map(Key::User)]
        }
        _ => [Some(Key::Device(device)), Some(Key::User(device.user)), None],
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use culver_protocol::id::{ClientMessageId, DeviceId, InboxSeq};
    use culver_storage::command::Send;

    use super::super::command::Address;
    use super::*;

    const SESSION: Address = Address { reactor: 0, slot: 0, generation: 0, epoch: 0 };

    fn send(from: u64, to: u64) -> Command {
        let (sender, recipient) = (UserId(from), UserId(to));
        let send = Send {
            sender,
            device: DeviceId(1),
            client_message_id: ClientMessageId([0; 16]),
            conversation: ConversationId::direct(sender, recipient),
            payload: Bytes::new(),
        };
        Command::Send { session: SESSION, send }
    }

    fn close(user: u64) -> Command {
        Command::Close { session: SESSION, device: Device { user: UserId(user), device: DeviceId(1) } }
    }

    #[test]
    fn holds_back_same_device_conversation_and_recipient_only() {
        let mut parking = Parking::default();
        assert!(!parking.holds_back(&send(1, 2)));
        parking.park(Parked { arrival: 1, command: send(1, 2), load: None });
        for held in [send(1, 2), send(1, 3), send(2, 1), send(9, 2), close(1), close(2)] {
            assert!(parking.holds_back(&held), "{held:?}");
        }
        for free in [send(3, 4), send(2, 3), close(3)] {
            assert!(!parking.holds_back(&free), "{free:?}");
        }
        assert_eq!(parking.take().len(), 1);
        assert!(!parking.holds_back(&send(1, 2)));
    }

    #[test]
    fn sends_are_bounded_and_the_rest_is_not_refused() {
        let mut parking = Parking::default();
        for _ in 0..PARKED_SENDS_MAX {
            assert!(parking.has_room_for(&send(1, 2)));
            parking.park(Parked { arrival: 1, command: send(1, 2), load: None });
        }
        assert!(!parking.has_room_for(&send(1, 2)));
        assert!(parking.has_room_for(&close(1)));
        let ack = Command::Ack {
            session: SESSION,
            device: Device { user: UserId(1), device: DeviceId(1) },
            through: InboxSeq(1),
            credit: super::super::command::Credit { entries: 1, bytes: 1 },
        };
        assert!(parking.has_room_for(&ack));
    }
}
