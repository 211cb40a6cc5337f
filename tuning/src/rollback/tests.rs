use std::fs;

use super::*;
use crate::apply::apply;
use crate::catalogue::{Goal, Role};
use crate::plan::changes;
use crate::testing::{BOOT, Fake, goal, killed_after, origin};

fn million(millions: u64) -> Goal {
    Goal { descriptor_tables: 60, ..goal(millions * 1_000_000, Role::Server) }
}

/// Applies until the program is killed before step `steps`, counted from 0. Whether it got through.
fn apply_killed(fake: &Fake, goal: &Goal, steps: usize) -> bool {
    let mut journal = Journal::take(&fake.journal()).expect("free");
    let changes = changes(&fake.machine, goal).expect("readable");
    apply(&fake.machine, &changes, &mut journal, &origin(), &mut killed_after(steps)).is_ok()
}

fn rollback_killed(fake: &Fake, boot_id: &str, steps: usize) -> Result<Vec<Rolled>> {
    let mut journal = Journal::take(&fake.journal())?;
    let find = |_: &Intent| Ok(Found::Here(fake.machine.host().clone()));
    rollback(&mut journal, boot_id, &find, &mut killed_after(steps))
}

fn roll_back(fake: &Fake) -> Vec<Outcome> {
    rollback_killed(fake, BOOT, usize::MAX).expect("writable").into_iter().map(|rolled| rolled.outcome).collect()
}

#[test]
fn everything_is_as_it_was() {
    let fake = Fake::new();
    let before = fake.settings();
    assert!(apply_killed(&fake, &million(1), usize::MAX));
    assert_ne!(fake.settings(), before);
    assert_eq!(roll_back(&fake), vec![Outcome::Restored; 3]);
    assert_eq!(fake.settings(), before);
    assert_eq!(roll_back(&fake), [], "a second time there is nothing to do");
}

/// For every step at which `apply` may be killed, and every step at which the `rollback` after it may be: the next
/// `rollback` that gets through restores everything.
#[test]
fn killed_at_any_step_and_killed_again_it_is_still_right() {
    const STEPS_MAX: usize = 100;
    let mut applies = 0;
    for apply_steps in 0..STEPS_MAX {
        let mut got_through = false;
        for rollback_steps in 0..STEPS_MAX {
            let fake = Fake::new();
            let before = fake.settings();
            got_through = apply_killed(&fake, &million(1), apply_steps);
            let undone = rollback_killed(&fake, BOOT, rollback_steps).is_ok();
            let outcomes = roll_back(&fake);
            assert_eq!(fake.settings(), before, "killed after {apply_steps} and {rollback_steps} steps");
            assert!(!outcomes.iter().any(|outcome| matches!(outcome, Outcome::Left { .. })), "{outcomes:?}");
            assert_eq!(Journal::look(&fake.journal()).expect("readable"), []);
            if undone {
                break;
            }
        }
        applies += 1;
        if got_through {
            break;
        }
    }
    assert_eq!(applies, 10, "three changes of three steps, and the end");
}

/// The same with the line torn that was being written when it was killed.
#[test]
fn a_line_torn_by_the_kill_announces_nothing() {
    for apply_steps in 0..9 {
        for len in [1, 20, 200] {
            let fake = Fake::new();
            let before = fake.settings();
            assert!(!apply_killed(&fake, &million(1), apply_steps));
            let mut journal = fs::read(fake.journal()).unwrap_or_default();
            let torn = r#"{"event":"write","sequence":9,"boot_id":"11111111-2222-3333-4444-555555555555","pid":7,"time_unix_ms":1,"setting":"net.core.somaxconn","place":"host","namespace":{"inode":1,"cookie":null},"old":"4096","new":"16666","crc32c":"0"#;
            journal.extend_from_slice(&torn.as_bytes()[..len]);
            fs::write(fake.journal(), journal).expect("written");
            roll_back(&fake);
            assert_eq!(fake.settings(), before, "killed after {apply_steps} steps");
        }
    }
}

#[test]
fn what_was_raised_twice_goes_all_the_way_back_wherever_the_second_was_killed() {
    for steps in 0..10 {
        let fake = Fake::new();
        let before = fake.settings();
        assert!(apply_killed(&fake, &million(1), usize::MAX));
        apply_killed(&fake, &million(2), steps);
        roll_back(&fake);
        assert_eq!(fake.settings(), before, "killed after {steps} steps");
    }
}

#[test]
fn what_somebody_else_has_changed_is_left_alone() {
    let fake = Fake::new();
    assert!(apply_killed(&fake, &million(1), usize::MAX));
    fake.set("net.core.somaxconn", "20000");
    let left = Outcome::Left { present: "20000".to_owned() };
    assert_eq!(roll_back(&fake), [Outcome::Restored, Outcome::Restored, left.clone()]);
    assert_eq!(fake.get("net.core.somaxconn"), "20000");
    assert_eq!(roll_back(&fake), [left], "it is told again until it is mended");
    fake.set("net.core.somaxconn", "4096");
    assert_eq!(roll_back(&fake), [Outcome::Back]);
    assert_eq!(roll_back(&fake), []);
}

#[test]
fn what_somebody_else_has_set_between_two_applies_is_kept() {
    let fake = Fake::new();
    assert!(apply_killed(&fake, &million(1), usize::MAX));
    fake.set("net.core.somaxconn", "20000");
    assert!(apply_killed(&fake, &million(2), usize::MAX));
    assert_eq!(fake.get("net.core.somaxconn"), "33333");
    let outcomes = roll_back(&fake);
    assert_eq!(fake.get("net.core.somaxconn"), "20000");
    assert_eq!(outcomes.last(), Some(&Outcome::Left { present: "20000".to_owned() }));
}

#[test]
fn what_somebody_else_has_set_back_needs_nothing() {
    let fake = Fake::new();
    let before = fake.settings();
    assert!(apply_killed(&fake, &million(1), usize::MAX));
    assert!(apply_killed(&fake, &million(2), usize::MAX));
    for (name, value) in &before {
        fake.set(name, value);
    }
    assert!(roll_back(&fake).iter().all(|outcome| *outcome == Outcome::Back));
    assert_eq!(fake.settings(), before);
}

#[test]
fn a_journal_of_another_boot_changes_nothing() {
    let fake = Fake::new();
    assert!(apply_killed(&fake, &million(1), usize::MAX));
    let after = fake.settings();
    let rolled = rollback_killed(&fake, "another", usize::MAX).expect("readable");
    assert!(rolled.iter().all(|rolled| rolled.outcome == Outcome::Gone));
    assert_eq!(fake.settings(), after);
    assert_eq!(Journal::look(&fake.journal()).expect("readable"), []);
}

#[test]
fn a_namespace_that_is_gone_takes_its_settings_with_it() {
    let fake = Fake::new();
    assert!(apply_killed(&fake, &million(1), usize::MAX));
    let after = fake.settings();
    let mut journal = Journal::take(&fake.journal()).expect("free");
    let find = |intent: &Intent| {
        let gone = intent.setting == "net.core.somaxconn";
        Ok(if gone { Found::Gone } else { Found::Here(fake.machine.host().clone()) })
    };
    let rolled = rollback(&mut journal, BOOT, &find, &mut |_| Ok(())).expect("writable");
    assert_eq!(rolled.last().map(|rolled| &rolled.outcome), Some(&Outcome::Gone));
    assert!(journal.open().is_empty());
    assert_eq!(
        Some(("net.core.somaxconn", fake.get("net.core.somaxconn"))),
        after.into_iter().find(|(name, _)| *name == "net.core.somaxconn")
    );
}

#[test]
fn what_is_not_found_from_here_is_left_alone_until_it_is() {
    let fake = Fake::new();
    let before = fake.settings();
    assert!(apply_killed(&fake, &million(1), usize::MAX));
    let mut journal = Journal::take(&fake.journal()).expect("free");
    let find = |intent: &Intent| {
        let unseen = intent.setting == "net.core.somaxconn";
        Ok(if unseen { Found::Unseen } else { Found::Here(fake.machine.host().clone()) })
    };
    let rolled = rollback(&mut journal, BOOT, &find, &mut |_| Ok(())).expect("writable");
    assert_eq!(rolled.last().map(|rolled| &rolled.outcome), Some(&Outcome::Unseen));
    assert_eq!(journal.open().len(), 1);
    drop(journal);
    assert_eq!(roll_back(&fake), [Outcome::Restored]);
    assert_eq!(fake.settings(), before);
}

#[test]
fn a_setting_that_is_hidden_is_not_gone() {
    let fake = Fake::new();
    assert!(apply_killed(&fake, &million(1), usize::MAX));
    fake.remove("net.core.somaxconn");
    assert_eq!(roll_back(&fake).last(), Some(&Outcome::Unseen));
    fake.set("net.core.somaxconn", "16666");
    assert_eq!(roll_back(&fake), [Outcome::Restored]);
}

/// Of three settings the middle one cannot be written, as /proc has them: the older one is restored all the same.
#[test]
fn one_that_cannot_be_written_does_not_keep_the_others_from_being_restored() {
    let fake = Fake::new();
    assert!(apply_killed(&fake, &million(1), usize::MAX));
    let path = fake.folder.path().join("proc").join(crate::testing::sysctl_path("net.ipv4.tcp_migrate_req"));
    let read_only = "/proc/sys/kernel/ngroups_max";
    let present = fs::read_to_string(read_only).expect("every kernel has it").trim().to_owned();
    let mut journal = Journal::take(&fake.journal()).expect("free");
    journal.add(Record::Done { sequence: 2, value: present }).expect("written");
    drop(journal);
    fs::remove_file(&path).expect("it was there");
    std::os::unix::fs::symlink(read_only, &path).expect("a link");
    let outcomes = roll_back(&fake);
    assert!(
        matches!(outcomes.as_slice(), [Outcome::Restored, Outcome::Failed { why }, Outcome::Restored]
            if why.contains("tcp_migrate_req")),
        "{outcomes:?}"
    );
    let open = Journal::look(&fake.journal()).expect("readable");
    assert_eq!(open.iter().map(|open| open.intent.sequence).collect::<Vec<_>>(), [2], "it is tried again");
}

#[test]
fn one_whose_place_cannot_be_entered_stays_in_the_journal() {
    let fake = Fake::new();
    assert!(apply_killed(&fake, &million(1), usize::MAX));
    let mut journal = Journal::take(&fake.journal()).expect("free");
    let find = |intent: &Intent| {
        ensure!(intent.setting != "net.ipv4.tcp_mem", "Operation not permitted");
        Ok(Found::Here(fake.machine.host().clone()))
    };
    let rolled = rollback(&mut journal, BOOT, &find, &mut |_| Ok(())).expect("the journal is writable");
    let outcomes: Vec<_> = rolled.into_iter().map(|rolled| rolled.outcome).collect();
    let failed = Outcome::Failed { why: "Operation not permitted".to_owned() };
    assert_eq!(outcomes, [failed, Outcome::Restored, Outcome::Restored]);
    assert_eq!(journal.open().len(), 1);
}

#[test]
fn by_hand_it_is_undone_only_where_and_when_it_was_done() {
    let fake = Fake::new();
    assert!(apply_killed(&fake, &million(1), usize::MAX));
    let open = Journal::look(&fake.journal()).expect("readable");
    let memory = open.last().expect("there are three");
    let command = "sysctl -w net.ipv4.tcp_mem=\"90000 120000 180000\"   # only if it is 500000 750000 1000000 now";
    assert_eq!(by_hand(memory, BOOT, Some("")), command);
    assert_eq!(by_hand(memory, BOOT, Some("ip netns exec blue ")), format!("ip netns exec blue {command}"));
    for line in [by_hand(memory, BOOT, None), by_hand(memory, "another", Some(""))] {
        assert!(line.starts_with("# net.ipv4.tcp_mem: was set ") && !line.contains("sysctl"), "{line}");
    }
}

#[test]
fn a_journal_that_names_anything_else_is_refused_whole() {
    let fake = Fake::new();
    fake.set("kernel.core_pattern", "2");
    assert!(apply_killed(&fake, &million(1), usize::MAX));
    let after = fake.settings();
    let mut journal = Journal::take(&fake.journal()).expect("free");
    let first = journal.open().first().expect("there are three").intent.clone();
    let foreign = Intent {
        sequence: 9,
        setting: "kernel.core_pattern".to_owned(),
        old: "1".to_owned(),
        new: "2".to_owned(),
        ..first
    };
    journal.add(Record::Write(foreign)).expect("written");
    drop(journal);
    let error = rollback_killed(&fake, BOOT, usize::MAX).expect_err("it is not ours");
    assert!(format!("{error:#}").contains("kernel.core_pattern"), "{error:#}");
    assert_eq!(fake.settings(), after);
    assert_eq!(fake.get("kernel.core_pattern"), "2");
}
