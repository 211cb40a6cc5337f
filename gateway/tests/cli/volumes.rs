//! Volumes and hubs that cannot be, or are not what the data directory was made with.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use tempfile::TempDir;

use super::{FAILURE, Server, USAGE, culver, initialised, refused, scratch, stderr, stdout, text};

/// A data directory with two volumes beside it.
fn with_two_volumes() -> (TempDir, PathBuf, [PathBuf; 2]) {
    let scratch = scratch();
    let (data_dir, volumes) = (scratch.path().join("data"), ["one", "two"].map(|name| scratch.path().join(name)));
    let [one, two] = volumes.each_ref().map(|volume| text(volume));
    let output = culver(&["init", "--data-dir", text(&data_dir), "--volume", one, "--volume", two]);
    assert!(output.status.success(), "{}", stderr(&output));
    (scratch, data_dir, volumes)
}

#[test]
fn hubs_that_cannot_be_are_refused() {
    let (scratch, data_dir, volumes) = with_two_volumes();
    let [one, two] = volumes.each_ref().map(|volume| text(volume));
    refused(&data_dir, &["--hubs", "17"], USAGE, &["hubs = 17 is not possible: choose 0 to 16"]);
    refused(&data_dir, &["--hubs", "1"], USAGE, &["hubs = 1 is not possible", "the 2 volumes needs a hub", "2 to 16"]);
    refused(&data_dir, &["--readers", "0"], USAGE, &["readers = 0 is not possible"]);
    // Before anything is made.
    let fresh = scratch.path().join("fresh");
    refused(&fresh, &["--hubs", "1", "--volume", one, "--volume", two], USAGE, &["hubs = 1 is not possible"]);
    assert!(!fresh.exists());
}

#[test]
fn more_volumes_than_hubs_are_refused() {
    let scratch = scratch();
    let (data_dir, volumes): (_, Vec<PathBuf>) =
        (scratch.path().join("data"), (0..17).map(|index| scratch.path().join(format!("volume-{index}"))).collect());
    let flags: Vec<&str> = volumes.iter().flat_map(|volume| ["--volume", text(volume)]).collect();
    refused(&data_dir, &flags, USAGE, &["the 17 volumes needs a hub"]);
    let output = culver(&[&["init", "--data-dir", text(&data_dir)], &flags[..]].concat());
    assert_eq!(output.status.code(), Some(FAILURE));
    assert!(stderr(&output).contains("name at most 16"), "{}", stderr(&output));
    assert!(volumes.iter().all(|volume| !volume.exists()), "nothing is made");
}

#[test]
fn other_volumes_than_it_was_made_with_are_refused() {
    let (scratch, data_dir, volumes) = with_two_volumes();
    let [one, two] = volumes.each_ref().map(|volume| text(volume));
    let third = scratch.path().join("three");
    let fixed = "volumes are fixed when a data directory is made";
    for flags in [
        &["--volume", one][..],
        &["--volume", one, "--volume", text(&third)],
        &["--volume", one, "--volume", two, "--volume", text(&third)],
    ] {
        refused(&data_dir, flags, FAILURE, &[fixed, one, two, "or without --volume"]);
    }
    assert!(!third.exists(), "nothing is made by a refused start");
    let (_other, single) = initialised();
    refused(&single, &["--volume", text(&third)], FAILURE, &[fixed, "volume-0"]);
    // Without naming them, and naming them in another order, it starts.
    for flags in [&[][..], &["--volume", two, "--volume", one]] {
        let server = Server::start(&data_dir, flags);
        let metrics = server.get("/metrics").1;
        assert!(metrics.contains("\nculver_volumes 2\n") && metrics.contains("\nculver_hubs 2\n"), "{metrics}");
        server.signal(Signal::TERM);
        assert_eq!(server.wait().0, Some(0));
    }
    let output = culver(&["verify", "--data-dir", text(&data_dir)]);
    assert!(output.status.success(), "{}", stdout(&output));
}

#[test]
fn a_volume_that_is_not_there_is_refused() {
    let (scratch, data_dir, [one, two]) = with_two_volumes();
    // Not mounted, so to speak.
    let away = scratch.path().join("away");
    fs::rename(&two, &away).expect("renamed");
    refused(&data_dir, &[], FAILURE, &[text(&two), "is not there", "mount its disk"]);
    fs::create_dir(&two).expect("an empty mount point");
    refused(&data_dir, &[], FAILURE, &[text(&two), "has no file `VOLUME`"]);
    assert_eq!(fs::read_dir(&two).expect("there").count(), 0, "nothing is made in it");
    // The disks in each other's place.
    fs::remove_dir(&two).expect("empty");
    fs::rename(&one, &two).expect("renamed");
    fs::rename(&away, &one).expect("renamed");
    refused(&data_dir, &[], FAILURE, &["is volume 1 of this data directory, not 0"]);
}

#[test]
fn volumes_that_cannot_be_are_refused() {
    let scratch = scratch();
    let (data_dir, fresh) = (scratch.path().join("second"), scratch.path().join("fresh"));
    let full = scratch.path().join("full");
    fs::create_dir(&full).expect("made");
    fs::write(full.join("holiday.jpg"), "not ours").expect("written");
    for (volumes, expected) in [
        ([&fresh, &fresh], "is named twice"),
        ([&fresh, &full], "is not empty"),
        ([&fresh, &fresh.join("within")], "lies within another"),
    ] {
        let [first, second] = volumes.map(|volume| text(volume));
        let output = culver(&["init", "--data-dir", text(&data_dir), "--volume", first, "--volume", second]);
        assert_eq!(output.status.code(), Some(FAILURE), "{expected}");
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
        assert!(!data_dir.join("CULVER").exists());
    }
}

#[test]
fn an_empty_directory_with_volumes_is_initialised_and_served() {
    let scratch = scratch();
    let (data_dir, [one, two]) = (scratch.path().join("data"), ["one", "two"].map(|name| scratch.path().join(name)));
    let server = Server::start(&data_dir, &["--hubs", "4", "--volume", text(&one), "--volume", text(&two)]);
    assert!(server.greeting.contains("was empty: it is a data directory now"), "{}", server.greeting);
    assert!(server.get("/metrics").1.contains("\nculver_hubs 4\n"));
    assert!(one.join("VOLUME").exists() && two.join("VOLUME").exists());
    assert!(!data_dir.join("volume-0").exists());
}
