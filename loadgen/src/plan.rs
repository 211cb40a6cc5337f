//! The load plan: which users talk to whom, what a message is called and what it carries. Pure, all from the seed.

use std::collections::{HashMap, HashSet};

use anyhow::{Result, bail};
use bytes::{Bytes, BytesMut};
use culver_protocol::id::{ClientMessageId, ConversationId, DeviceId, UserId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// The only device of a generated user, and the one that sends where there are several.
pub(crate) const DEVICE: DeviceId = DeviceId(1);
/// Shortest payload: it carries the run and the message's number.
pub(crate) const PAYLOAD_LEN_MIN: usize = 16;
/// Users are drawn above this number, so that a generated user is never one that a person made by hand.
const USER_MIN: u64 = 1 << 40;
/// Users from here to the end of the range: far more than any run needs.
const USER_SPAN: u64 = 1 << 40;

/// What makes this run's messages differ from those of every other run against the same data: ids begin with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunId(pub(crate) u64);

/// The place of a message among those of its pair: dense, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MessageIndex(pub(crate) u64);

/// Two users: the first sends, the second receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PairPlan {
    pub(crate) sender: UserId,
    pub(crate) recipient: UserId,
    pub(crate) conversation: ConversationId,
    /// Devices of the sender; the first of them sends.
    pub(crate) sender_devices: u8,
    /// Devices of the recipient.
    pub(crate) recipient_devices: u8,
}

impl PairPlan {
    /// Two users with one device each.
    pub(crate) fn new(sender: UserId, recipient: UserId) -> Self {
        let conversation = ConversationId::direct(sender, recipient);
        Self { sender, recipient, conversation, sender_devices: 1, recipient_devices: 1 }
    }
}

/// A generator for one purpose of one seed: purposes do not disturb each other.
pub(crate) fn rng(seed: u64, purpose: &str) -> SmallRng {
    // FNV-1a spreads the purpose's name over the seed; the generator itself does the mixing.
    let hash = purpose
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    SmallRng::seed_from_u64(seed ^ hash)
}

/// The first user of a run that names none: high, even, and far from that of another seed.
pub(crate) fn first_user(seed: u64) -> u64 {
    (USER_MIN + rng(seed, "first user").random_range(0..USER_SPAN)) & !1
}

/// `count` pairs: user 2i sends to user 2i + 1, counted from `first_user`.
pub(crate) fn pairs(first_user: u64, count: usize) -> Vec<PairPlan> {
    (0..count as u64)
        .map(|index| {
            let sender = UserId(first_user.wrapping_add(2 * index));
            let recipient = UserId(sender.0.wrapping_add(1));
            PairPlan::new(sender, recipient)
        })
        .collect()
}

/// Least and most devices of each sender, and of each recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Devices {
    pub(crate) senders: (u8, u8),
    pub(crate) recipients: (u8, u8),
}

impl Devices {
    /// So many for each user, both ends included.
    pub(crate) fn of_each(least: u8, most: u8) -> Self {
        Self { senders: (least, most), recipients: (least, most) }
    }
}

/// Makes a ring of pairs that have nothing to do with each other: each sender's messages go to the next sender, so
/// that every user sends and receives.
///
/// # Errors
/// Fewer than three: two users would share one conversation.
pub(crate) fn close_ring(pairs: &mut [PairPlan]) -> Result<()> {
    if (1..3).contains(&pairs.len()) {
        bail!("a ring needs at least 3 pairs in each worker, not {}", pairs.len());
    }
    let senders: Vec<_> = pairs.iter().map(|pair| pair.sender).collect();
    for (pair, recipient) in pairs.iter_mut().zip(senders.iter().cycle().skip(1)) {
        *pair = PairPlan::new(pair.sender, *recipient);
    }
    Ok(())
}

/// Gives each user of `pairs` a number of devices; one who sends has as many where it receives.
pub(crate) fn give_devices(pairs: &mut [PairPlan], devices: Devices, seed: u64) {
    let mut rng = rng(seed, "devices");
    let mut of_sender = HashMap::new();
    for pair in &mut *pairs {
        pair.sender_devices = rng.random_range(devices.senders.0..=devices.senders.1);
        pair.recipient_devices = rng.random_range(devices.recipients.0..=devices.recipients.1);
        of_sender.insert(pair.sender, pair.sender_devices);
    }
    for pair in pairs {
        pair.recipient_devices = of_sender.get(&pair.recipient).copied().unwrap_or(pair.recipient_devices);
    }
}

/// Devices of all users: each has a connection.
pub(crate) fn connections(pairs: &[PairPlan]) -> u64 {
    let senders: HashSet<_> = pairs.iter().map(|pair| pair.sender).collect();
    let of_senders = pairs.iter().map(|pair| u64::from(pair.sender_devices)).sum::<u64>();
    let only_recipients = pairs.iter().filter(|pair| !senders.contains(&pair.recipient));
    of_senders + only_recipients.map(|pair| u64::from(pair.recipient_devices)).sum::<u64>()
}

/// Deals `items` to `workers` in turn; nobody gets none unless there are too few.
pub(crate) fn deal<T>(items: Vec<T>, workers: usize) -> Vec<Vec<T>> {
    assert!(workers > 0, "somebody has to work");
    let mut hands: Vec<Vec<T>> = (0..workers).map(|_| Vec::new()).collect();
    for (turn, item) in items.into_iter().enumerate() {
        hands.get_mut(turn % workers).expect("the remainder is below the number of hands").push(item);
    }
    hands
}

/// The client message id of a run's message.
pub(crate) fn message_id(run: RunId, index: MessageIndex) -> ClientMessageId {
    ClientMessageId(((u128::from(run.0) << 64) | u128::from(index.0)).to_be_bytes())
}

/// Which message of this run an id or the head of a payload names; `None`: of another run.
pub(crate) fn message_index(run: RunId, bytes: &[u8]) -> Option<MessageIndex> {
    let (of_run, rest) = bytes.split_first_chunk::<8>()?;
    let (index, _) = rest.split_first_chunk::<8>()?;
    (u64::from_be_bytes(*of_run) == run.0).then(|| MessageIndex(u64::from_be_bytes(*index)))
}

/// Makes payloads: run and number, then bytes that do not compress.
#[derive(Clone, Debug)]
pub(crate) struct Payloads {
    run: RunId,
    filler: Bytes,
}

impl Payloads {
    /// Payloads of `len` bytes.
    ///
    /// # Panics
    /// If `len` is below [`PAYLOAD_LEN_MIN`].
    pub(crate) fn new(run: RunId, len: usize, seed: u64) -> Self {
        assert!(len >= PAYLOAD_LEN_MIN, "a payload carries its own number");
        let mut filler = vec![0; len - PAYLOAD_LEN_MIN];
        rng(seed, "payload").fill(filler.as_mut_slice());
        Self { run, filler: filler.into() }
    }

    /// The payload of one message.
    pub(crate) fn make(&self, index: MessageIndex) -> Bytes {
        let mut payload = BytesMut::with_capacity(PAYLOAD_LEN_MIN + self.filler.len());
        payload.extend_from_slice(&self.run.0.to_be_bytes());
        payload.extend_from_slice(&index.0.to_be_bytes());
        payload.extend_from_slice(&self.filler);
        payload.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_plan() {
        for seed in [0, 1, 7, u64::MAX] {
            println!("seed {seed}");
            assert_eq!(first_user(seed), first_user(seed));
            assert_eq!(pairs(first_user(seed), 64), pairs(first_user(seed), 64));
            let (one, two) = (Payloads::new(RunId(3), 256, seed), Payloads::new(RunId(3), 256, seed));
            assert_eq!(one.make(MessageIndex(5)), two.make(MessageIndex(5)));
        }
        assert_ne!(first_user(1), first_user(2));
    }

    #[test]
    fn users_of_a_plan_are_distinct_and_high() {
        let plan = pairs(first_user(9), 1000);
        let mut users: Vec<_> = plan.iter().flat_map(|pair| [pair.sender, pair.recipient]).collect();
        assert!(users.iter().all(|user| user.0 >= USER_MIN));
        users.dedup();
        assert_eq!(users.len(), 2000);
        assert!(plan.iter().all(|pair| pair.conversation.direct_peer(pair.sender) == Some(pair.recipient)));
    }

    #[test]
    fn devices_are_within_their_range() {
        let mut plan = pairs(first_user(9), 200);
        give_devices(&mut plan, Devices::of_each(2, 4), 9);
        let seats = |pair: &PairPlan| pair.sender_devices + pair.recipient_devices;
        assert!(plan.iter().all(|pair| (4..=8).contains(&seats(pair))));
        assert!(plan.iter().any(|pair| seats(pair) == 4) && plan.iter().any(|pair| seats(pair) == 8));
        assert_eq!(connections(&plan), plan.iter().map(|pair| u64::from(seats(pair))).sum::<u64>());
    }

    #[test]
    fn in_a_ring_everybody_sends_and_receives() {
        let mut plan = pairs(first_user(9), 5);
        close_ring(&mut plan).expect("enough of them");
        give_devices(&mut plan, Devices::of_each(1, 4), 9);
        for (pair, next) in plan.iter().zip(plan.iter().cycle().skip(1)) {
            assert_eq!((pair.recipient, pair.recipient_devices), (next.sender, next.sender_devices));
            assert_eq!(pair.conversation.direct_peer(pair.sender), Some(pair.recipient));
        }
        assert_eq!(connections(&plan), plan.iter().map(|pair| u64::from(pair.sender_devices)).sum::<u64>());
        assert!(close_ring(&mut pairs(0, 2)).is_err());
    }

    #[test]
    fn a_message_is_known_by_its_id_and_by_its_payload() {
        let (run, index) = (RunId(0xfeed), MessageIndex(77));
        assert_eq!(message_index(run, &message_id(run, index).0), Some(index));
        assert_eq!(message_index(run, &Payloads::new(run, 16, 1).make(index)), Some(index));
        assert_eq!(message_index(RunId(1), &message_id(run, index).0), None);
        assert_eq!(message_index(run, b"short"), None);
    }

    #[test]
    fn dealing_leaves_nobody_out() {
        let hands = deal((0..10).collect(), 3);
        assert_eq!(hands, vec![vec![0, 3, 6, 9], vec![1, 4, 7], vec![2, 5, 8]]);
    }
}
