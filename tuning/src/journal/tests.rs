use super::*;
use crate::testing::{BOOT, Fake};

fn intent(sequence: u64) -> Intent {
    Intent {
        sequence,
        boot_id: BOOT.to_owned(),
        pid: 7,
        time_unix_ms: 5,
        setting: "net.ipv4.tcp_mem".to_owned(),
        place: Place::Host,
        namespace: NamespaceId { inode: 1, cookie: Some(9) },
        old: "1 2 3".to_owned(),
        new: "4 5 6".to_owned(),
    }
}

fn filled() -> (Fake, PathBuf) {
    let fake = Fake::new();
    let path = fake.journal();
    let mut journal = Journal::take(&path).expect("free");
    for sequence in 1..=3 {
        assert_eq!(journal.next_sequence(), sequence);
        journal.add(Record::Write(intent(sequence))).expect("written");
    }
    journal.add(Record::Done { sequence: 2, value: "4 5 7".to_owned() }).expect("written");
    journal.add(Record::Settled { sequence: 1, how: Settled::Restored }).expect("written");
    (fake, path)
}

#[test]
fn what_was_written_down_is_read_again() {
    let (_fake, path) = filled();
    let journal = Journal::take(&path).expect("free");
    let expected =
        [Open { intent: intent(2), read_back: Some("4 5 7".to_owned()) }, Open { intent: intent(3), read_back: None }];
    assert_eq!(journal.open(), expected);
    assert_eq!(journal.next_sequence(), 4);
    assert_eq!(Journal::look(&path).expect("readable"), expected);
}

/// However little of the last line was written, it counts for nothing, and the next line is whole.
#[test]
fn a_torn_last_line_is_cut_off_at_every_byte() {
    let (_fake, path) = filled();
    let whole = fs::read(&path).expect("readable");
    let last = whole.iter().take(whole.len() - 1).rposition(|byte| *byte == b'\n').expect("there are more lines") + 1;
    for len in last..whole.len() {
        fs::write(&path, &whole[..len]).expect("written");
        assert_eq!(Journal::look(&path).expect("readable").len(), 3, "{len} bytes");
        let mut journal = Journal::take(&path).expect("free");
        assert_eq!(journal.open().len(), 3, "{len} bytes");
        journal.add(Record::Settled { sequence: 1, how: Settled::Restored }).expect("written");
        drop(journal);
        assert_eq!(fs::read(&path).expect("readable"), whole, "{len} bytes");
    }
}

#[test]
fn a_damaged_line_is_an_error_that_names_it() {
    let (_fake, path) = filled();
    let whole = fs::read_to_string(&path).expect("readable");
    for (from, to) in
        [("4 5 6", "4 5 9"), ("\"crc32c\":\"", "\"crc32x\":\""), ("\"place\":\"host\"", "\"place\":\"moon\"")]
    {
        fs::write(&path, whole.replacen(from, to, 1)).expect("written");
        let error = Journal::take(&path).expect_err("damaged");
        assert!(format!("{error:#}").contains("line 1 of the journal"), "{error:#}");
    }
    fs::write(&path, b"\xff\xfe\n").expect("written");
    assert!(Journal::take(&path).is_err());
}

#[test]
fn two_never_have_it_at_once() {
    let (_fake, path) = filled();
    let first = Journal::take(&path).expect("free");
    let error = Journal::take(&path).expect_err("the first has it");
    assert!(format!("{error:#}").contains(&format!("process {}", std::process::id())), "{error:#}");
    drop(first);
    Journal::take(&path).expect("free again");
}

#[test]
fn a_link_in_the_place_of_the_lock_is_not_followed() {
    let (fake, path) = filled();
    let victim = fake.folder.path().join("victim");
    fs::write(&victim, "precious").expect("written");
    let lock = path.with_file_name("journal.jsonl.lock");
    fs::remove_file(&lock).expect("it was there");
    std::os::unix::fs::symlink(&victim, &lock).expect("a link");
    let error = Journal::take(&path).expect_err("a link");
    assert!(format!("{error:#}").contains("must not be a symbolic link"), "{error:#}");
    assert_eq!(fs::read_to_string(&victim).expect("readable"), "precious");
}

#[test]
fn put_aside_it_is_kept_and_a_new_one_begins() {
    let (_fake, path) = filled();
    let journal = Journal::take(&path).expect("free");
    let before = fs::read(&path).expect("readable");
    let (aside, mut journal) = journal.put_aside("../boot/1", 77).expect("renamed");
    assert_eq!(aside.file_name().expect("a file"), "journal-boot1-77.jsonl");
    assert_eq!(fs::read(&aside).expect("kept"), before);
    assert!(journal.open().is_empty());
    journal.add(Record::Write(intent(1))).expect("written");
    assert!(Journal::take(&path).is_err(), "it is held all the time");
    drop(journal);
    assert_eq!(Journal::take(&path).expect("free").open().len(), 1);
}

#[test]
fn what_cannot_be_a_journal_is_refused() {
    let fake = Fake::new();
    let path = fake.folder.path().join("journal.jsonl");
    File::create(&path).and_then(|file| file.set_len(JOURNAL_LEN_MAX + 1)).expect("a sparse file");
    let error = Journal::take(&path).expect_err("too long");
    assert!(format!("{error:#}").contains("no journal"), "{error:#}");
    assert_eq!(Journal::look(&fake.folder.path().join("none")).expect("none is an empty one"), []);
}
