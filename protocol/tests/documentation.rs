//! `docs/protocol.md` says what the code does: its tables of errors, limits and types, and its example.

use culver_protocol::crypto::FINGERPRINT_LEN;
use culver_protocol::error::ErrorCode;
use culver_protocol::handshake::certificate::CERTIFICATE_LEN;
use culver_protocol::limits;
use culver_protocol::record::RecordType;
use serde_json::Value;

const PAGE: &str = include_str!("../../docs/protocol.md");
const LIMITS: &str = include_str!("../src/limits.rs");

/// The cells of each table row whose first cell `is_ours`.
fn rows(is_ours: impl Fn(&str) -> bool) -> Vec<Vec<&'static str>> {
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    let lines = PAGE.lines().filter(|line| line.starts_with('|'));
    lines.map(cells).filter(|row| row.first().is_some_and(|first| is_ours(first))).collect()
}

fn code_span(text: &str) -> &str {
    text.strip_prefix('`').and_then(|text| text.strip_suffix('`')).unwrap_or_default()
}

#[test]
fn every_error_code_is_in_the_table_as_it_is() {
    let told: Vec<Vec<String>> = rows(|first| first.len() == 4 && first.parse::<u32>().is_ok())
        .iter()
        .map(|row| row.iter().take(4).map(ToString::to_string).collect())
        .collect();
    let real: Vec<Vec<String>> = ErrorCode::ALL
        .iter()
        .map(|code| {
            let closes = if code.closes() { "yes" } else { "no" };
            vec![code.number().to_string(), format!("`{code:?}`"), closes.into(), code.text().into()]
        })
        .collect();
    assert_eq!(told, real);
    let is_said = |row: &Vec<&str>| row.get(4).is_some_and(|doing| !doing.is_empty());
    assert!(rows(|first| first.len() == 4 && first.parse::<u32>().is_ok()).iter().all(is_said));
}

macro_rules! values {
    ($($name:ident)*) => {
        vec![$((stringify!($name).to_string(), u64::try_from(limits::$name).expect("a limit fits a u64"))),*]
    };
}

#[test]
fn every_limit_is_in_the_table_with_its_value() {
    let real: Vec<(String, u64)> = values! {
        PREAMBLE_LEN LENGTH_LEN HEADER_LEN TAG_LEN BODY_LEN_MAX CLIENT_BODY_LEN_MAX HANDSHAKE_LEN_MAX
        RECORDS_MAX REKEY_RECORDS REKEY_MS PAYLOAD_LEN_MAX DELIVER_ENTRIES_MAX DELIVER_BYTES_MAX ENTRY_OVERHEAD CREDIT_ENTRIES_DEFAULT
        CREDIT_BYTES_DEFAULT CREDIT_ENTRIES_MAX CREDIT_BYTES_MAX CREDIT_BYTES_MIN KEEP_ALIVE_S_DEFAULT
        KEEP_ALIVE_S_MIN KEEP_ALIVE_S_MAX LOGIN_RETRY_MS_MIN LOGIN_RETRY_MS_MAX TICKET_LEN_MAX TOKEN_LEN_MAX
        CLIENT_SEEN_MAX CLIENT_IN_FLIGHT_MAX
        DEVICES_MAX DEVICE_NAME_LEN_MAX FETCH_SESSIONS_MAX SYNC_CONVERSATIONS_MAX PREVIEW_LEN_MAX CONVERSATIONS_PAGE_MAX
        RECEIPT_MARKS_MAX RPCS_IN_FLIGHT_MAX ALTERNATES_MAX ALTERNATE_LEN_MAX VERSION_MIN VERSION_MAX
    };
    let names: Vec<&str> = LIMITS
        .lines()
        .filter_map(|line| line.strip_prefix("pub const "))
        .filter_map(|line| line.split(':').next())
        .collect();
    let listed: Vec<&str> = real.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(listed, names, "this test names every limit of limits.rs");
    let is_limit = |first: &str| first.contains('_') && code_span(first).chars().all(|c| c.is_uppercase() || c == '_');
    let told: Vec<(String, u64)> = rows(is_limit)
        .iter()
        .map(|row| {
            let value = row.get(1).and_then(|value| value.parse().ok()).expect("a limit has a value");
            (code_span(row.first().expect("the name")).to_string(), value)
        })
        .collect();
    assert_eq!(told, real);
}

#[test]
fn the_text_quotes_the_limits() {
    let text = PAGE.split_whitespace().collect::<Vec<_>>().join(" ");
    for (number, sentence) in [
        (limits::HANDSHAKE_LEN_MAX, "at most {} bytes and at least one"),
        (limits::CLIENT_BODY_LEN_MAX, "at most {} from a client"),
        (limits::BODY_LEN_MAX, "at most {} from a server"),
        (limits::PAYLOAD_LEN_MAX, "the payload has at most {}."),
        (limits::DELIVER_ENTRIES_MAX, "At most {} entries"),
        (limits::DELIVER_BYTES_MAX, "and {} bytes of them"),
        (limits::ENTRY_OVERHEAD, "payload + {} each"),
        (limits::TICKET_LEN_MAX, "The ticket is at most {} bytes"),
        (limits::TOKEN_LEN_MAX, "At most {} bytes."),
        (limits::CLIENT_SEEN_MAX, "the last {} entries"),
        (limits::DEVICES_MAX, "A user has up to {} devices."),
        (limits::DEVICES_MAX, "the user has {} devices already"),
        (limits::FETCH_SESSIONS_MAX, "may have {} fetch sessions at once"),
        (limits::SYNC_CONVERSATIONS_MAX, "the {} most recent conversations"),
        (limits::SYNC_CONVERSATIONS_MAX, "At most {} conversations;"),
        (limits::PREVIEW_LEN_MAX, "its payload cut after {} bytes"),
        (limits::CONVERSATIONS_PAGE_MAX, "the wanted number of conversations, {} at most"),
        (limits::RECEIPT_MARKS_MAX, "At most {} marks;"),
        (limits::RPCS_IN_FLIGHT_MAX, "may have {} RPCs unanswered"),
    ] {
        let sentence = sentence.replace("{}", &number.to_string());
        assert!(text.contains(&sentence), "the page does not say: {sentence}");
    }
}

#[test]
fn the_text_quotes_the_limits_of_encryption() {
    let text = PAGE.split_whitespace().collect::<Vec<_>>().join(" ");
    for (number, sentence) in [
        (limits::TAG_LEN.to_string(), "and the tag of {} bytes follows it"),
        (limits::REKEY_MS.to_string(), "the first record that it sends {} ms after the last change"),
        (limits::REKEY_RECORDS.to_string(), "the first record after each {} of its direction"),
        (limits::RECORDS_MAX.to_string(), "of which one direction has carried {} records ends"),
        (limits::DEVICE_NAME_LEN_MAX.to_string(), "It has at most {} bytes (`NameTooLong` otherwise)"),
        (CERTIFICATE_LEN.to_string(), "The server shows one in Noise XX: {} bytes."),
        (FINGERPRINT_LEN.to_string(), "is the first {} bytes of SHA-256 of its public key"),
    ] {
        let sentence = sentence.replace("{}", &number);
        assert!(text.contains(&sentence), "the page does not say: {sentence}");
    }
}

#[test]
fn every_record_type_is_in_the_table() {
    let told: Vec<(u8, String)> = rows(|first| code_span(first).len() == 2)
        .iter()
        .map(|row| {
            let number = u8::from_str_radix(code_span(row.first().expect("the type")), 16).expect("hex");
            (number, row.get(1).expect("the name").replace('_', "").to_lowercase())
        })
        .collect();
    let real: Vec<(u8, String)> =
        RecordType::ALL.iter().map(|kind| (*kind as u8, format!("{kind:?}").to_lowercase())).collect();
    assert_eq!(told, real);
}

#[test]
fn the_example_is_the_recorded_session() {
    let session: Vec<Value> = serde_json::from_str(include_str!("vectors/session.json")).expect("JSON");
    let mut rest = PAGE.split_once("## A session in hex").expect("the page has an example").1;
    for step in &session {
        let text = |name: &str| step.get(name).and_then(Value::as_str).expect("a text");
        let line = if text("from") == "both" {
            text("what").to_string()
        } else {
            format!("{}: {}\n  {}\n", text("from"), text("what"), text("hex"))
        };
        rest = rest.split_once(&line).unwrap_or_else(|| panic!("the example lacks, or has too early: {line}")).1;
    }
}
