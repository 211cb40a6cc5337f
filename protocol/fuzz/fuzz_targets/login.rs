//! A login reads as a reader of ours, made from the schema alone, reads it; and comes back the same after encoding.
//! The bytes are one as they are, and where they begin with a fitting length, one behind that too.
#![no_main]

use culver_protocol::limits::HANDSHAKE_LEN_MAX;
use culver_protocol::proto;
use culver_protocol::proto::login::Credential;
use culver_protocol::record::split;
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// A field's value as it lies on the wire.
enum Value<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
    /// Four bytes, of which a login has none.
    Four,
}

/// Why a reading came to nothing.
#[derive(Debug)]
enum Unread {
    /// These bytes are no login.
    Bad,
    /// Groups, which the schema has none of: whatever the decoder makes of them.
    Group,
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Unread> {
    let mut value = 0_u64;
    for place in 0..10 {
        let (byte, rest) = bytes.split_first().ok_or(Unread::Bad)?;
        *bytes = rest;
        if place == 9 && *byte > 1 {
            return Err(Unread::Bad);
        }
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Unread::Bad)
}

fn take<'a>(bytes: &mut &'a [u8], len: u64) -> Result<&'a [u8], Unread> {
    let len = usize::try_from(len).map_err(|_| Unread::Bad)?;
    let (taken, rest) = bytes.split_at_checked(len).ok_or(Unread::Bad)?;
    *bytes = rest;
    Ok(taken)
}

fn field<'a>(bytes: &mut &'a [u8]) -> Result<(u64, Value<'a>), Unread> {
    let key = varint(bytes)?;
    if key > u64::from(u32::MAX) {
        return Err(Unread::Bad);
    }
    let value = match key & 7 {
        0 => Value::Varint(varint(bytes)?),
        1 => Value::Fixed(u64::from_le_bytes(take(bytes, 8)?.try_into().expect("eight bytes"))),
        2 => {
            let len = varint(bytes)?;
            Value::Bytes(take(bytes, len)?)
        }
        3 | 4 => return Err(Unread::Group),
        5 => take(bytes, 4).map(|_| Value::Four)?,
        _ => return Err(Unread::Bad),
    };
    if key >> 3 == 0 { Err(Unread::Bad) } else { Ok((key >> 3, value)) }
}

fn text(bytes: &[u8]) -> Result<String, Unread> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Unread::Bad)
}

/// The low half: so protobuf reads a number that is too large for its field.
fn low(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).expect("the low half")
}

fn read(mut bytes: &[u8]) -> Result<proto::Login, Unread> {
    let mut login = proto::Login::default();
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, Value::Bytes(token)) => login.credential = Some(Credential::Token(text(token)?)),
            (2, Value::Bytes(ticket)) => login.credential = Some(Credential::Ticket(ticket.to_vec().into())),
            (3, Value::Varint(cursor)) => login.cursor = cursor,
            (4, Value::Fixed(incarnation)) => login.incarnation = incarnation,
            (5, Value::Varint(number)) => login.keep_alive_s = low(number),
            (6, Value::Varint(number)) => login.credit_entries = low(number),
            (7, Value::Varint(number)) => login.credit_bytes = low(number),
            (8, Value::Bytes(client)) => login.client = text(client)?,
            (9, Value::Varint(flag)) => login.fetch = flag != 0,
            (10, Value::Varint(version)) => login.receipts = version,
            (11, Value::Fixed(user)) => login.user = user,
            (12, Value::Varint(number)) => login.device = low(number),
            (1..=12, _) => return Err(Unread::Bad),
            _ => {}
        }
    }
    Ok(login)
}

fn check(bytes: &[u8]) {
    let decoded = proto::Login::decode(bytes);
    match (read(bytes), &decoded) {
        (Ok(ours), Ok(login)) => assert_eq!(ours, *login),
        (Err(Unread::Group), _) | (Err(Unread::Bad), Err(_)) => {}
        (ours, theirs) => panic!("{ours:?}, {theirs:?}"),
    }
    if let Ok(login) = decoded {
        let encoded = login.encode_to_vec();
        assert_eq!(encoded.len(), login.encoded_len());
        assert_eq!(proto::Login::decode(encoded.as_slice()), Ok(login));
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    if let Ok(Some(range)) = split(bytes, 1, HANDSHAKE_LEN_MAX) {
        check(&bytes[range]);
    }
});
