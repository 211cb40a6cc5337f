//! What somebody on the way does to bytes that are not theirs.

/// What becomes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A bit is another.
    Flip,
    /// Some are left out.
    Drop,
    /// Some come twice.
    Repeat,
    /// Two stretches change places.
    Swap,
    /// The rest never comes, but an end does.
    Cut,
}

impl Change {
    pub(crate) const ALL: [Self; 5] = [Self::Flip, Self::Drop, Self::Repeat, Self::Swap, Self::Cut];
}

/// A change of one direction of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tamper {
    pub change: Change,
    pub is_to_server: bool,
    /// So many bytes pass before.
    pub after: usize,
    /// Length of a stretch; from 1.
    pub len: usize,
    /// Which bit of the byte; below 8.
    pub bit: u32,
}

impl Tamper {
    /// So many bytes are sent: whether they all pass as they are.
    pub(super) fn passes(&mut self, len: usize) -> bool {
        let passes = self.after >= len;
        if passes {
            self.after -= len;
        }
        passes
    }

    /// Whether nothing follows what is left.
    pub(super) fn ends(&self) -> bool {
        self.change == Change::Cut
    }

    /// Changes bytes of which the first few pass.
    pub(super) fn change(&self, bytes: &mut Vec<u8>) {
        let at = self.after;
        let end = (at + self.len).min(bytes.len());
        match self.change {
            Change::Flip => bytes[at] ^= 1 << self.bit,
            Change::Drop => drop(bytes.drain(at..end)),
            Change::Repeat => {
                let again = bytes[at..end].to_vec();
                bytes.splice(end..end, again);
            }
            Change::Swap => {
                let last = (end + self.len).min(bytes.len());
                bytes[at..last].rotate_left(end - at);
            }
            Change::Cut => bytes.truncate(at),
        }
    }
}

#[test]
fn bytes_are_changed_where_they_are_to_be() {
    let changed = |change, after, len| {
        let mut tamper = Tamper { change, is_to_server: true, after, len, bit: 1 };
        assert!(!tamper.passes(6));
        let mut bytes = vec![0, 1, 2, 3, 4, 5];
        tamper.change(&mut bytes);
        bytes
    };
    assert_eq!(changed(Change::Flip, 4, 9), [0, 1, 2, 3, 6, 5]);
    assert_eq!(changed(Change::Drop, 1, 2), [0, 3, 4, 5]);
    assert_eq!(changed(Change::Repeat, 4, 9), [0, 1, 2, 3, 4, 5, 4, 5]);
    assert_eq!(changed(Change::Swap, 1, 2), [0, 3, 4, 1, 2, 5]);
    assert_eq!(changed(Change::Swap, 5, 2), [0, 1, 2, 3, 4, 5], "there is nothing to change places with");
    assert_eq!(changed(Change::Cut, 2, 1), [0, 1]);
    let mut late = Tamper { change: Change::Cut, is_to_server: true, after: 6, len: 1, bit: 0 };
    assert!(late.passes(6) && !late.passes(1));
}
