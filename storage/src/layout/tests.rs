use super::*;
use crate::error::VolumeProblem;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory can be made")
}

/// The error, and that it says what to do.
fn refused(path: &Path, advice: &str) -> OpenError {
    let error = DataDir::open(path).expect_err("this directory cannot be opened");
    let text = error.to_string();
    assert!(text.contains(advice), "{text}");
    error
}

#[test]
fn what_was_created_opens() {
    let directory = directory();
    let path = directory.path().join("data");
    DataDir::create(&path, Incarnation(u64::MAX - 6), &[]).expect("a missing directory is made");
    let data_dir = DataDir::open(&path).expect("it was just created");
    assert_eq!(data_dir.incarnation(), Incarnation(u64::MAX - 6));
    assert_eq!((data_dir.shard_count(), data_dir.volume_count()), (64, 1));
    assert_eq!(data_dir.volume_path(0), path.join("volume-0"));
    assert!(matches!(DataDir::create(&path, Incarnation(1), &[]), Err(OpenError::Exists { .. })));
}

#[test]
fn what_init_writes_first_may_be_there() {
    let directory = directory();
    assert!(fs::write(directory.path().join("culver.toml"), "").is_ok());
    assert!(matches!(refused(directory.path(), "culver init"), OpenError::Empty { .. }));
    DataDir::create(directory.path(), Incarnation(1), &[]).expect("a settings file is no obstacle");
}

#[test]
fn a_creation_that_was_cut_short_is_made_good() {
    let directory = directory();
    fs::create_dir(directory.path().join("volume-0")).expect("it can be made");
    fs::write(directory.path().join("CULVER.new"), "{\"for").expect("it can be written");
    assert!(matches!(refused(directory.path(), "culver init"), OpenError::Empty { .. }));
    DataDir::create(directory.path(), Incarnation(1), &[]).expect("what is left of a creation is no obstacle");
    DataDir::open(directory.path()).expect("it was just created");
}

#[test]
fn a_directory_that_cannot_be_made() {
    let directory = directory();
    let file = directory.path().join("file");
    fs::write(&file, "x").expect("it can be written");
    let made = DataDir::create(&file.join("below"), Incarnation(1), &[]);
    assert!(matches!(made, Err(OpenError::Unwritable { .. })), "{made:?}");
}

#[test]
fn a_missing_directory() {
    let path = directory().path().join("none");
    assert!(matches!(refused(&path, "culver init --data-dir"), OpenError::Missing { .. }));
}

#[test]
fn an_empty_directory() {
    assert!(matches!(refused(directory().path(), "culver init --data-dir"), OpenError::Empty { .. }));
}

#[test]
fn a_foreign_directory() {
    let directory = directory();
    fs::write(directory.path().join("thesis.tex"), "x").expect("it can be written");
    assert!(matches!(refused(directory.path(), "name another directory"), OpenError::Foreign { .. }));
    assert!(matches!(DataDir::create(directory.path(), Incarnation(1), &[]), Err(OpenError::Foreign { .. })));
    let file = directory.path().join("thesis.tex");
    assert!(matches!(refused(&file, "name another directory"), OpenError::Foreign { .. }));
}

#[test]
fn a_newer_format() {
    let directory = directory();
    fs::write(directory.path().join(MARKER), r#"{"format": 7, "unheard": ["of"]}"#).expect("it can be written");
    let error = refused(directory.path(), "use the version that wrote it");
    assert!(matches!(error, OpenError::Newer { found: 7, known: FORMAT, .. }));
}

#[test]
fn a_damaged_marker() {
    for text in [
        "",
        "{",
        "{\"format\": 1}",
        "\u{0}\u{0}",
        r#"{"format":1,"incarnation":"zz","shard_count":64,"volumes":["volume-0"]}"#,
        r#"{"format":1,"incarnation":"a","shard_count":64,"volumes":["volume-0","volume-1"]}"#,
        r#"{"format":2,"incarnation":"a","shard_count":2,"volumes":["volume-0"]}"#,
        r#"{"format":2,"incarnation":"a","shard_count":2,"volumes":["volume-0"],"volume_of_shard":[0,1]}"#,
        r#"{"format":2,"incarnation":"a","shard_count":2,"volumes":["a","b"],"volume_of_shard":[0,0]}"#,
        r#"{"format":2,"incarnation":"a","shard_count":2,"volumes":[],"volume_of_shard":[0,0]}"#,
        r#"{"format":3,"incarnation":"a","shard_count":2,"volumes":["volume-0"]}"#,
    ] {
        let directory = directory();
        fs::write(directory.path().join(MARKER), text).expect("it can be written");
        assert!(matches!(refused(directory.path(), "backup"), OpenError::Marker { .. }));
    }
}

#[test]
fn a_directory_that_is_held() {
    let directory = directory();
    DataDir::create(directory.path(), Incarnation(1), &[]).expect("an empty directory is made");
    let held = DataDir::open(directory.path()).expect("it was just created");
    let pid = std::process::id();
    let error = refused(directory.path(), &format!("process {pid}: stop that process first"));
    assert!(matches!(error, OpenError::Held { pid: Some(found), .. } if found == pid));
    drop(held);
    DataDir::open(directory.path()).expect("nobody holds it any more");
}

#[test]
fn a_directory_that_cannot_be_written() {
    let directory = directory();
    DataDir::create(directory.path(), Incarnation(1), &[]).expect("an empty directory is made");
    // Not by permissions, for root may write anywhere.
    fs::create_dir(directory.path().join(LOCK)).expect("it can be made");
    assert!(matches!(refused(directory.path(), "belongs to the user"), OpenError::Unwritable { .. }));
}

/// A data directory with two volumes on "other disks".
fn with_two_volumes(root: &Path) -> (PathBuf, [PathBuf; 2]) {
    let (data, volumes) = (root.join("data"), [root.join("disk-a"), root.join("disk-b")]);
    DataDir::create(&data, Incarnation(7), &volumes).expect("empty folders are volumes");
    (data, volumes)
}

#[test]
fn several_volumes() {
    let directory = directory();
    let (data, volumes) = with_two_volumes(directory.path());
    let open = DataDir::open(&data).expect("it was just created");
    let spread: Vec<u16> = (0..64).map(|shard| shard % 2).collect();
    assert_eq!((open.volume_count(), open.volume_of_shard()), (2, spread));
    assert_eq!((open.volume_path(0), open.volume_path(1)), (volumes[0].clone(), volumes[1].clone()));
    drop(open);
    let [a, b] = volumes;
    DataDir::open_with(&data, &[b, a]).expect("in any order, for each folder knows which it is");
}

#[test]
fn volumes_within_the_directory_move_with_it() {
    let directory = directory();
    let (before, after) = (directory.path().join("before"), directory.path().join("after"));
    let volumes = [before.join("disks").join("a"), before.join("b")];
    DataDir::create(&before, Incarnation(7), &volumes).expect("folders below it can be volumes");
    fs::rename(&before, &after).expect("it can be moved");
    let open = DataDir::open(&after).expect("it is complete");
    assert_eq!(open.volume_path(0), after.join("disks/a"));
}

#[test]
fn a_creation_with_volumes_that_was_cut_short_is_made_good() {
    let directory = directory();
    let (data, volumes) = with_two_volumes(directory.path());
    let within = [data.join("a"), volumes[1].clone()];
    fs::remove_file(data.join(MARKER)).expect("as if it had never been written");
    fs::create_dir(&within[0]).expect("it can be made");
    assert!(matches!(DataDir::open_with(&data, &within), Err(OpenError::Empty { .. })));
    DataDir::create(&data, Incarnation(8), &within).expect("what is left of a creation is no obstacle");
    DataDir::open_with(&data, &within).expect("it was just created");
}

#[test]
fn another_set_of_volumes() {
    let directory = directory();
    let (data, [a, b]) = with_two_volumes(directory.path());
    let other = directory.path().join("disk-c");
    for given in
        [vec![a.clone()], vec![a.clone(), other.clone()], vec![a.clone(), b.clone(), other], vec![a.clone(); 2]]
    {
        let error = DataDir::open_with(&data, &given).expect_err("it has others");
        assert!(matches!(error, OpenError::Volumes { .. }));
        let advice = format!("start it with --volume {} --volume {}, or without", a.display(), b.display());
        assert!(error.to_string().contains(&advice), "{error}");
    }
}

/// What is wrong with a volume, and that the message says what to do.
fn problem(result: Result<impl std::fmt::Debug, OpenError>, advice: &str) -> VolumeProblem {
    let error = result.expect_err("a volume is not what it should be");
    assert!(error.to_string().contains(advice), "{error}");
    let OpenError::Volume { problem, .. } = error else { panic!("{error}") };
    problem
}

#[test]
fn volumes_that_are_swapped_foreign_or_not_there() {
    let directory = directory();
    let root = directory.path();
    let (data, [a, b]) = with_two_volumes(root);
    let rename = |from: &Path, to: &Path| fs::rename(from, to).expect("it can be moved");
    let open = |advice| problem(DataDir::open(&data), advice);
    rename(&a, &root.join("aside"));
    assert_eq!(open("mount its disk"), VolumeProblem::Missing);
    fs::create_dir(&a).expect("a disk that is not mounted leaves an empty folder");
    assert_eq!(open("mount its disk"), VolumeProblem::Missing);
    rename(&b, &a);
    rename(&root.join("aside"), &b);
    assert_eq!(open("each disk in its own place"), VolumeProblem::Swapped { found: 1, expected: 0 });
    let foreign = root.join("foreign");
    DataDir::create(&foreign, Incarnation(8), &[root.join("disk-c")]).expect("another directory");
    rename(&a, &root.join("aside"));
    rename(&root.join("disk-c"), &a);
    assert_eq!(open("the right disk"), VolumeProblem::Foreign);
    rename(&b, &root.join("disk-c"));
    rename(&root.join("aside"), &b);
    fs::remove_dir_all(&a).expect("it can be removed");
    rename(&root.join("disk-c"), &a);
    DataDir::open(&data).expect("every disk is in its place again");
}

#[test]
fn folders_that_cannot_be_volumes() {
    let directory = directory();
    let (data, full) = (directory.path().join("data"), directory.path().join("full"));
    fs::create_dir(&full).expect("it can be made");
    fs::write(full.join("thesis.tex"), "x").expect("it can be written");
    let (a, below_a) = (directory.path().join("a"), directory.path().join("a/b"));
    let create = |volumes: &[PathBuf], advice| problem(DataDir::create(&data, Incarnation(1), volumes), advice);
    assert_eq!(create(&[full], "an empty folder"), VolumeProblem::NotEmpty);
    assert_eq!(create(&[a.clone(), a.join(".")], "a folder for each"), VolumeProblem::Repeated);
    assert_eq!(create(&[below_a.clone(), a.clone()], "an empty folder"), VolumeProblem::NotEmpty);
    fs::remove_dir(&below_a).expect("it can be removed");
    assert_eq!(create(&[a.clone(), below_a], "a folder for each"), VolumeProblem::Repeated);
    assert_eq!(create(std::slice::from_ref(&data), "this volume alone"), VolumeProblem::Around);
    let many: Vec<PathBuf> = (0..=VOLUMES_MAX).map(|index| directory.path().join(index.to_string())).collect();
    assert_eq!(create(&many, "at most 16"), VolumeProblem::TooMany);
    assert!(!data.join(MARKER).exists());
}

#[test]
fn a_volume_that_is_held() {
    let directory = directory();
    let (data, _) = with_two_volumes(directory.path());
    let held = DataDir::open(&data).expect("it was just created");
    // A copy of the directory's own files names the same volumes.
    let copy = directory.path().join("copy");
    fs::create_dir(&copy).expect("it can be made");
    fs::copy(data.join(MARKER), copy.join(MARKER)).expect("it can be copied");
    assert!(matches!(refused(&copy, "stop that process first"), OpenError::Held { pid: None, .. }));
    drop(held);
    DataDir::open(&copy).expect("nobody holds them any more");
}

/// What the version before this one wrote.
fn format_1(path: &Path) {
    let marker = r#"{"format": 1, "incarnation": "00000000000000ff", "shard_count": 64, "volumes": ["volume-0"]}"#;
    fs::create_dir_all(path.join(VOLUME_0)).expect("it can be made");
    fs::write(path.join(MARKER), marker).expect("it can be written");
}

#[test]
fn format_1_becomes_format_3() {
    let directory = directory();
    format_1(directory.path());
    for _ in 0..2 {
        let open = DataDir::open(directory.path()).expect("it is taken over");
        assert_eq!((open.incarnation(), open.volume_of_shard()), (Incarnation(255), vec![0; 64]));
        assert!(fs::read_to_string(directory.path().join(MARKER)).is_ok_and(|text| text.contains("\"format\": 3")));
    }
    fs::remove_dir_all(directory.path().join(VOLUME_0)).expect("it can be removed");
    assert_eq!(problem(DataDir::open(directory.path()), "mount its disk"), VolumeProblem::Missing);
}

/// Its volumes stay what they are, and are not marked anew.
#[test]
fn format_2_becomes_format_3() {
    let directory = directory();
    let (data, [a, b]) = with_two_volumes(directory.path());
    let now = fs::read_to_string(data.join(MARKER)).expect("it was just written");
    let before = now.replacen("\"format\": 3", "\"format\": 2", 1);
    assert_ne!(before, now);
    fs::write(data.join(MARKER), &before).expect("it can be written");
    for _ in 0..2 {
        let open = DataDir::open(&data).expect("it is taken over");
        assert_eq!((open.incarnation(), open.volume_paths()), (Incarnation(7), [a.clone(), b.clone()].as_slice()));
        assert!(fs::read_to_string(data.join(MARKER)).is_ok_and(|text| text == now));
    }
    fs::write(data.join(MARKER), &before).expect("it can be written");
    fs::remove_file(b.join("VOLUME")).expect("it is there");
    assert_eq!(problem(DataDir::open(&data), "mount its disk"), VolumeProblem::Missing);
}

#[test]
fn a_migration_that_was_cut_short_is_made_good() {
    let directory = directory();
    format_1(directory.path());
    DataDir::open(directory.path()).expect("it is taken over");
    format_1(directory.path());
    DataDir::open(directory.path()).expect("a volume that is marked already is no obstacle");
    format_1(directory.path());
    fs::remove_dir_all(directory.path().join(VOLUME_0)).expect("it can be removed");
    assert_eq!(problem(DataDir::open(directory.path()), "mount its disk"), VolumeProblem::Missing);
}
