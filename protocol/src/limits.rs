//! Every maximum of the wire, named once and related to the others at compile time.

/// Bytes of the preamble that opens a connection.
pub const PREAMBLE_LEN: usize = 8;
/// Bytes of the length in front of a handshake message or a record.
pub const LENGTH_LEN: usize = 2;
/// Bytes of type and flags in front of a record's protobuf.
pub const HEADER_LEN: usize = 2;
/// Bytes that an AEAD tag adds to a record's body; reserved in plaintext too.
pub const TAG_LEN: usize = 16;
/// Longest body of a record, type and flags included, tag not.
pub const BODY_LEN_MAX: usize = u16::MAX as usize - TAG_LEN;
/// Longest body of a record that a client may send.
pub const CLIENT_BODY_LEN_MAX: usize = 36 * 1024;
/// Longest handshake message, login included.
pub const HANDSHAKE_LEN_MAX: usize = 4 * 1024;
/// Records that one direction of an encrypted connection carries at most: then the client comes anew.
pub const RECORDS_MAX: u32 = 1 << 31;
/// Records after which a side changes the key that it seals with.
pub const REKEY_RECORDS: u32 = 1 << 20;
/// Milliseconds after which a client that sends anything changes its key first, and the server then its own.
pub const REKEY_MS: u64 = 60 * 60 * 1000;
/// Longest payload of a message.
pub const PAYLOAD_LEN_MAX: usize = 32 * 1024;
/// Most entries in one DELIVER.
pub const DELIVER_ENTRIES_MAX: usize = 50;
/// Most bytes of entries in one DELIVER, and so at least one entry with the longest payload.
pub const DELIVER_BYTES_MAX: usize = 60 * 1024;
/// Bytes an entry costs beside its payload, at most: what windows and DELIVERs count it with.
pub const ENTRY_OVERHEAD: usize = 96;
/// Delivery window in entries where the login names none.
pub const CREDIT_ENTRIES_DEFAULT: u32 = 50;
/// Delivery window in bytes where the login names none.
pub const CREDIT_BYTES_DEFAULT: u32 = 64 * 1024;
/// Widest delivery window in entries.
pub const CREDIT_ENTRIES_MAX: u32 = 1000;
/// Widest delivery window in bytes.
pub const CREDIT_BYTES_MAX: u32 = 1024 * 1024;
/// Narrowest delivery window in bytes: the longest entry always fits.
pub const CREDIT_BYTES_MIN: u32 = 33 * 1024;
/// Seconds between keep-alives where the login names none.
pub const KEEP_ALIVE_S_DEFAULT: u32 = 240;
/// Shortest agreed keep-alive.
pub const KEEP_ALIVE_S_MIN: u32 = 5;
/// Longest agreed keep-alive.
pub const KEEP_ALIVE_S_MAX: u32 = 1800;
/// Shortest time that a client is told to wait before it logs in again, in milliseconds.
pub const LOGIN_RETRY_MS_MIN: u32 = 1000;
/// Longest such time that a client keeps to before WELCOME, for it may come in clear, and so from anybody.
pub const LOGIN_RETRY_MS_MAX: u32 = 180_000;
/// Longest resume ticket.
pub const TICKET_LEN_MAX: usize = 128;
/// Longest token.
pub const TOKEN_LEN_MAX: usize = 2048;
/// Ids that a client remembers in order to drop what it has seen.
pub const CLIENT_SEEN_MAX: usize = 10_000;
/// Messages a client keeps under way: sent, not yet answered.
pub const CLIENT_IN_FLIGHT_MAX: usize = 1024;
/// Devices a user may have linked.
pub const DEVICES_MAX: usize = 8;
/// Longest name of a device, in bytes.
pub const DEVICE_NAME_LEN_MAX: usize = 64;
/// Fetch sessions a device may have at once; a further one takes the place of the oldest.
pub const FETCH_SESSIONS_MAX: usize = 2;
/// Most conversations in a SYNC_START.
pub const SYNC_CONVERSATIONS_MAX: usize = 50;
/// Most bytes of a payload in a conversation list.
pub const PREVIEW_LEN_MAX: usize = 256;
/// Most conversations in one answer to ListConversations.
pub const CONVERSATIONS_PAGE_MAX: usize = 50;
/// Most marks in one RECEIPT.
pub const RECEIPT_MARKS_MAX: usize = 500;
/// RPCs that one session may have unanswered.
pub const RPCS_IN_FLIGHT_MAX: usize = 16;
/// Most alternates in one GOAWAY.
pub const ALTERNATES_MAX: usize = 8;
/// Longest alternate, in bytes: a host, a colon and a port.
pub const ALTERNATE_LEN_MAX: usize = 255;
/// Lowest protocol version this code speaks.
pub const VERSION_MIN: u8 = 1;
/// Highest protocol version this code speaks.
pub const VERSION_MAX: u8 = 1;

/// Bytes of a mark in a RECEIPT, at most: the conversation, five numbers, key and length.
const MARK_LEN_MAX: usize = 18 + 5 * 11 + 2;
/// Bytes of a conversation in a list, at most: the conversation, four numbers, the last entry.
const ITEM_LEN_MAX: usize = 18 + 4 * 11 + PREVIEW_LEN_MAX + ENTRY_OVERHEAD + 8;

const _: () = assert!(CLIENT_BODY_LEN_MAX <= BODY_LEN_MAX);
const _: () = assert!(PAYLOAD_LEN_MAX + HEADER_LEN + 128 <= CLIENT_BODY_LEN_MAX);
const _: () = assert!(PAYLOAD_LEN_MAX + ENTRY_OVERHEAD <= DELIVER_BYTES_MAX);
const _: () = assert!(PAYLOAD_LEN_MAX + ENTRY_OVERHEAD <= CREDIT_BYTES_MIN as usize);
const _: () = assert!(DELIVER_BYTES_MAX + DELIVER_ENTRIES_MAX * 8 + 64 <= BODY_LEN_MAX);
const _: () = assert!(RECEIPT_MARKS_MAX * MARK_LEN_MAX + 64 <= BODY_LEN_MAX);
const _: () = assert!(SYNC_CONVERSATIONS_MAX * ITEM_LEN_MAX + 64 <= BODY_LEN_MAX);
const _: () = assert!(CONVERSATIONS_PAGE_MAX * ITEM_LEN_MAX + 1024 <= BODY_LEN_MAX);
const _: () = assert!(TOKEN_LEN_MAX + TICKET_LEN_MAX + 256 <= HANDSHAKE_LEN_MAX);
const _: () = assert!(CREDIT_BYTES_MIN <= CREDIT_BYTES_DEFAULT && CREDIT_BYTES_DEFAULT <= CREDIT_BYTES_MAX);
const _: () = assert!(LOGIN_RETRY_MS_MIN < LOGIN_RETRY_MS_MAX);
const _: () = assert!(KEEP_ALIVE_S_MIN <= KEEP_ALIVE_S_DEFAULT && KEEP_ALIVE_S_DEFAULT <= KEEP_ALIVE_S_MAX);
