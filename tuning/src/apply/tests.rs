use super::*;
use crate::catalogue::{Goal, Role};
use crate::machine::Place;
use crate::plan::changes;
use crate::testing::{Fake, goal, killed_after, origin};

fn a_million() -> Goal {
    Goal { descriptor_tables: 60, ..goal(1_000_000, Role::Server) }
}

fn apply_all(fake: &Fake, goal: &Goal) -> Result<Vec<Applied>> {
    let mut journal = Journal::take(&fake.journal())?;
    apply(&fake.machine, &changes(&fake.machine, goal)?, &mut journal, &origin(), &mut |_| Ok(()))
}

#[test]
fn what_is_missing_is_written_down_written_and_read_back() {
    let fake = Fake::new();
    let applied = apply_all(&fake, &a_million()).expect("writable");
    let names: Vec<_> = applied.iter().map(|applied| applied.change.setting).collect();
    assert_eq!(names, ["net.core.somaxconn", "net.ipv4.tcp_migrate_req", "net.ipv4.tcp_mem"]);
    assert_eq!(fake.get("net.core.somaxconn"), "16666");
    assert_eq!(fake.get("net.ipv4.tcp_mem"), "500000 750000 1000000");
    let open = Journal::look(&fake.journal()).expect("readable");
    assert_eq!(open.len(), 3);
    let memory = open.last().expect("there are three");
    assert_eq!((memory.intent.old.as_str(), memory.written()), ("90000 120000 180000", "500000 750000 1000000"));
    assert!(apply_all(&fake, &a_million()).expect("writable").is_empty(), "a second time there is nothing to do");
    assert!(apply_all(&fake, &goal(10, Role::Server)).expect("writable").is_empty(), "nothing is ever lowered");
}

#[test]
fn the_line_is_there_before_the_setting_is_written() {
    let fake = Fake::new();
    let mut journal = Journal::take(&fake.journal()).expect("free");
    let changes = changes(&fake.machine, &a_million()).expect("readable");
    let mut before = |step| {
        if step == Step::Write {
            let open = Journal::look(&fake.journal()).expect("readable");
            let last = &open.last().expect("the line comes first").intent;
            assert_eq!(fake.get(&last.setting), last.old);
        }
        Ok(())
    };
    apply(&fake.machine, &changes, &mut journal, &origin(), &mut before).expect("writable");
}

#[test]
fn only_settings_of_the_catalogue_are_written() {
    let fake = Fake::new();
    fake.set("kernel.core_pattern", "1");
    let change = |setting| Change { setting, place: Place::Host, old: "1".to_owned(), new: "2".to_owned() };
    for setting in ["kernel.core_pattern", "../meminfo", "net.ipv4.tcp_ehash_entries"] {
        let mut journal = Journal::take(&fake.journal()).expect("free");
        let error = apply(&fake.machine, &[change(setting)], &mut journal, &origin(), &mut |_| Ok(()))
            .expect_err("not in the catalogue");
        assert!(format!("{error:#}").contains("is not a setting that this program writes"), "{error:#}");
        assert!(journal.open().is_empty());
    }
    assert_eq!(fake.get("kernel.core_pattern"), "1");
}

#[test]
fn what_somebody_else_changes_meanwhile_is_not_overwritten() {
    let fake = Fake::new();
    let mut journal = Journal::take(&fake.journal()).expect("free");
    let changes = changes(&fake.machine, &a_million()).expect("readable");
    fake.set("net.ipv4.tcp_migrate_req", "2");
    let error = apply(&fake.machine, &changes, &mut journal, &origin(), &mut |_| Ok(())).expect_err("it has changed");
    let text = format!("{error:#}");
    assert!(text.contains("somebody else has changed net.ipv4.tcp_migrate_req"), "{text}");
    assert!(text.contains("undoes what was changed: net.core.somaxconn"), "{text}");
    assert_eq!(fake.get("net.ipv4.tcp_migrate_req"), "2");
    assert_eq!(journal.open().len(), 1);
}

/// Somebody else comes in while the journal's line is synced.
#[test]
fn what_somebody_else_changes_while_the_line_is_synced_is_not_overwritten() {
    let fake = Fake::new();
    let mut journal = Journal::take(&fake.journal()).expect("free");
    let changes = changes(&fake.machine, &a_million()).expect("readable");
    let mut writes = 0;
    let mut before = |step| {
        writes += usize::from(step == Step::Write);
        if step == Step::Write && writes == 2 {
            fake.set("net.ipv4.tcp_migrate_req", "2");
        }
        Ok(())
    };
    let error = apply(&fake.machine, &changes, &mut journal, &origin(), &mut before).expect_err("it has changed");
    let text = format!("{error:#}");
    assert!(text.contains("somebody else has changed net.ipv4.tcp_migrate_req just now, to 2"), "{text}");
    assert_eq!(fake.get("net.ipv4.tcp_migrate_req"), "2");
    let open: Vec<_> = journal.open().iter().map(|open| open.intent.setting.as_str()).collect();
    assert_eq!(open, ["net.core.somaxconn"], "of the second there is nothing to undo");
    assert_eq!(journal.next_sequence(), 3, "but it was written down");
}

/// The setting is taken away between the journal's line and the write.
#[test]
fn a_setting_that_vanishes_stops_everything_and_is_told() {
    let fake = Fake::new();
    let mut journal = Journal::take(&fake.journal()).expect("free");
    let changes = changes(&fake.machine, &a_million()).expect("readable");
    let path = fake.folder.path().join("proc").join(crate::testing::sysctl_path("net.core.somaxconn"));
    let mut before = |step| {
        if step == Step::Write {
            std::fs::remove_file(&path)?;
        }
        Ok(())
    };
    let error = apply(&fake.machine, &changes, &mut journal, &origin(), &mut before).expect_err("it is not there");
    assert_eq!(format!("{error:#}"), "nothing was changed: net.core.somaxconn is gone");
    assert!(journal.open().is_empty(), "there is nothing to undo");
    assert_eq!(fake.get("net.ipv4.tcp_migrate_req"), "0", "nothing after it was done");
}

#[test]
fn what_is_refused_and_stays_as_it_was_is_settled_at_once() {
    let fake = Fake::new();
    let mut journal = Journal::take(&fake.journal()).expect("free");
    let changes = changes(&fake.machine, &a_million()).expect("readable");
    let path = fake.folder.path().join("proc").join(crate::testing::sysctl_path("net.core.somaxconn"));
    // In the place of a setting that cannot be written: a link to one that cannot be, as /proc has them.
    let mut before = |step| {
        if step == Step::Write {
            std::fs::remove_file(&path)?;
            std::os::unix::fs::symlink("/proc/sys/kernel/ngroups_max", &path)?;
        }
        Ok(())
    };
    let old = std::fs::read_to_string("/proc/sys/kernel/ngroups_max").expect("every kernel has it");
    let changes: Vec<_> =
        changes.into_iter().map(|change| Change { old: old.trim().to_owned(), ..change }).take(1).collect();
    fake.set("net.core.somaxconn", &old);
    let error = apply(&fake.machine, &changes, &mut journal, &origin(), &mut before).expect_err("it is read-only");
    assert!(format!("{error:#}").starts_with("nothing was changed"), "{error:#}");
    assert!(journal.open().is_empty(), "there is nothing to undo");
    assert_eq!(journal.next_sequence(), 2, "but it was written down");
}

#[test]
fn refusals_of_the_kernel_say_what_to_do() {
    for (kind, words) in [
        (ErrorKind::ReadOnlyFilesystem, "/proc/sys is read-only here"),
        (ErrorKind::PermissionDenied, "being root does not suffice here"),
        (ErrorKind::InvalidInput, "does not take so large a value"),
    ] {
        let refused = Error::new(io::Error::from(kind)).context("writing \"1\" to a file");
        assert!(format!("{:#}", explained(refused)).contains(words));
    }
}

#[test]
fn without_room_for_the_journal_nothing_is_written() {
    let fake = Fake::new();
    let before = fake.settings();
    std::fs::write(fake.folder.path().join("state"), "a file, not a folder").expect("written");
    assert!(apply_all(&fake, &a_million()).is_err());
    assert_eq!(fake.settings(), before);
}

#[test]
fn each_change_is_three_steps() {
    let fake = Fake::new();
    let mut journal = Journal::take(&fake.journal()).expect("free");
    let changes = changes(&fake.machine, &a_million()).expect("readable");
    let mut exactly = killed_after(3 * changes.len());
    apply(&fake.machine, &changes, &mut journal, &origin(), &mut exactly).expect("so many steps and no more");
}
