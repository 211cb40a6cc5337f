use super::*;
use crate::buckets::Limit;

fn refused(change: impl FnOnce(&mut Config)) -> String {
    let mut config = Config::default();
    change(&mut config);
    config.validate().expect_err("must be refused").to_string()
}

#[test]
fn template_shows_every_default() {
    let uncommented: String = TEMPLATE
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let read = Config::parse(&uncommented).expect("the template is valid");
    // What is shown of them holds where others can connect.
    assert_eq!(read, Config { sends: Sends::LIMITED, logins: Logins::LIMITED, ..Config::default() });
    assert_eq!(Config::parse(TEMPLATE).expect("valid as written"), Config::default());
    for (name, value) in toml::Table::try_from(read).expect("a table") {
        let names = value.as_table().map_or_else(|| vec![name], |table| table.keys().cloned().collect());
        for name in names {
            assert!(uncommented.contains(&format!("{name} = ")), "{name} is missing in the template");
        }
    }
}

#[test]
fn defaults_are_valid() {
    Config::default().validate().expect("the defaults are valid");
    assert!(Config::default().reactor_count() >= 1);
}

#[test]
fn handshakes_share_the_cores() {
    let config = Config::default();
    let ppm = |reactors, cores| config.handshake_ppm(reactors, cores);
    assert_eq!((ppm(1, 2), ppm(2, 2), ppm(1, 1)), (250_000, 250_000, 250_000));
    assert_eq!((ppm(4, 2), ppm(150, 2)), (125_000, 3333), "all together no more than a quarter of both cores");
}

#[test]
fn unknown_settings_are_refused() {
    let error = Config::parse("listne = \"127.0.0.1:1\"").expect_err("unknown");
    assert!(error.contains("listne"), "{error}");
    for nonsense in ["-1", "1.5", "\"1 GiB\""] {
        let error = Config::parse(&format!("[disk]\nreserve_mib = {nonsense}")).expect_err("no number of MiB");
        assert!(error.contains("reserve_mib") && error.contains("line 2"), "{error}");
    }
    assert!(Config::parse("[ticket]\nlife = 3").is_err());
}

#[test]
fn plaintext_stays_on_loopback() {
    for address in ["0.0.0.0:7400", "192.0.2.1:7400", "[::]:7400", "[::ffff:192.0.2.1]:7400"] {
        let error = refused(|config| {
            config.listen = address.parse().expect("an address");
            config.security.suites = vec![SuiteName::None, SuiteName::Aes256];
        });
        assert!(error.contains("not a loopback address"), "{error}");
        let encrypted = Config { listen: address.parse().expect("an address"), ..Config::default() };
        encrypted.validate().expect("encryption is for everywhere");
        assert!(!encrypted.offer().plaintext, "{address}");
    }
    for address in ["127.0.0.1:7400", "127.9.9.9:1", "[::1]:7400", "[::ffff:127.0.0.1]:7400"] {
        let config = Config { listen: address.parse().expect("an address"), ..Config::default() };
        config.validate().expect(address);
        assert!(config.offer().plaintext, "{address}");
    }
}

#[test]
fn values_out_of_bounds_are_named() {
    assert!(refused(|config| config.reactors = 10_000).starts_with("reactors = 10000"));
    assert!(refused(|config| config.hubs = 17).starts_with("hubs = 17"));
    assert!(refused(|config| config.readers = 0).contains("readers = 0"));
    assert!(refused(|config| config.inbox.retention_days = 29).contains("choose 30 to"));
    assert!(refused(|config| config.inbox.quota_bytes = 1).contains("inbox.quota_bytes"));
    assert!(
        refused(|config| config.disk.reserve_mib = 1 << 31).contains("disk.reserve_mib = 2147483648 is not possible")
    );
    assert!(refused(|config| config.peers.user_timeout_s = 4).contains("peers.user_timeout_s = 4 is not possible"));
    assert!(refused(|config| config.peers.notsent_kib = 3).contains("peers.notsent_kib = 3"));
    assert!(refused(|config| config.peers.unsent_mib = 0).contains("peers.unsent_mib = 0"));
    assert!(refused(|config| config.keep_alive.max_s = 1).contains("keep_alive.max_s = 1"));
    assert!(refused(|config| config.ticket.life_s = 0).contains("ticket.life_s"));
    assert!(refused(|config| config.token.audience.clear()).contains("token.audience"));
    assert!(refused(|config| config.ops = config.listen).contains("an address each"));
    assert!(refused(|config| config.backup.dirs = vec!["backups".into()]).contains("whole path"));
}

#[test]
fn sends_are_limited_where_others_can_connect_or_where_it_is_said() {
    let limits = |listen: &str, text: &str| {
        let config = Config::parse(text).expect("understood");
        let config = Config { listen: listen.parse().expect("an address"), ..config };
        config.validate().expect("possible");
        config.send_limits()
    };
    let (here, anywhere) = (["127.0.0.1:7400", "[::1]:7400", "[::ffff:127.0.0.1]:7400"], ["0.0.0.0:7400", "[::]:7400"]);
    let default = Limits { device: Some(Limit::new(50, 1000)), user: Some(Limit::new(100, 2000)) };
    for listen in here {
        assert_eq!(limits(listen, ""), Limits::default(), "{listen}");
    }
    for listen in anywhere {
        assert_eq!(limits(listen, ""), default, "{listen}");
        assert_eq!(limits(listen, "[sends]\ndevice_per_s = 0\n"), Limits { device: None, ..default }, "{listen}");
        assert_eq!(limits(listen, "[sends]\ndevice_per_s = 0\nuser_per_s = 0"), Limits::default(), "{listen}");
    }
    for listen in here.into_iter().chain(anywhere) {
        let found = limits(listen, "[sends]\ndevice_per_s = 0\nuser_per_s = 7\nuser_burst = 3\n");
        assert_eq!(found, Limits { device: None, user: Some(Limit::new(7, 3)) }, "{listen}");
        assert_eq!(found.to_string(), "device unlimited; user 7/s, 3 at once");
    }
}

#[test]
fn half_a_limit_or_an_impossible_one_is_refused() {
    let error = |text: &str| Config::parse(&format!("[sends]\n{text}")).expect("a number").validate();
    let error = |text: &str| error(text).expect_err("must be refused").to_string();
    for who in ["device", "user"] {
        let alone = error(&format!("{who}_per_s = 5"));
        assert!(alone.starts_with(&format!("sends.{who}_per_s = 5 is not possible: ")), "{alone}");
        assert!(alone.contains(&format!("sends.{who}_burst = 1 to 1000000")), "{alone}");
        let alone = error(&format!("{who}_burst = 5"));
        assert!(alone.starts_with(&format!("sends.{who}_burst = 5 is not possible: ")), "{alone}");
        assert!(alone.contains(&format!("sends.{who}_per_s = 1 to 1000000")), "{alone}");
        let empty = error(&format!("{who}_per_s = 5\n{who}_burst = 0"));
        assert_eq!(empty, format!("sends.{who}_burst = 0 is not possible: choose 1 to 1000000"));
        let fast = error(&format!("{who}_per_s = 1000001\n{who}_burst = 5"));
        assert_eq!(fast, format!("sends.{who}_per_s = 1000001 is not possible: choose 0 to 1000000"));
        let large = error(&format!("{who}_per_s = 5\n{who}_burst = 1000001"));
        assert_eq!(large, format!("sends.{who}_burst = 1000001 is not possible: choose 1 to 1000000"));
    }
    for nonsense in ["-1", "0.5", "\"5/s\"", "5000000000"] {
        let error = Config::parse(&format!("[sends]\ndevice_per_s = {nonsense}")).expect_err("no number of messages");
        assert!(error.contains("device_per_s") && error.contains("line 2"), "{error}");
    }
}

#[test]
fn logins_are_limited_by_the_cores_and_dealt_to_the_reactors() {
    let limits = |listen: &str, text: &str, reactors| {
        let config = Config::parse(text).expect("understood");
        let config = Config { listen: listen.parse().expect("an address"), ..config };
        config.validate().expect("possible");
        (config.login_limits(reactors, 4), config.user_login_limit())
    };
    let (here, anywhere) = ("[::1]:7400", "0.0.0.0:7400");
    let all = |per_s, reactors| Some(Limit::new(per_s, per_s).part_of(reactors));
    let (source, user) = (Some(Limit::new(500, 5000).part_of(2)), Some(Limit::new(1, 30)));
    assert_eq!(limits(here, "", 1), (admission::Limits { all: all(20_000, 1), source: None }, None));
    assert_eq!(limits(anywhere, "", 2), (admission::Limits { all: all(20_000, 2), source }, user));
    let off = "[logins]\nper_s = 0\nsource_per_s = 0\nuser_per_s = 0\n";
    assert_eq!(limits(anywhere, off, 2), (admission::Limits::default(), None));
    let named = "[logins]\nper_s = 7\nsource_per_s = 500\nsource_burst = 5000\nuser_per_s = 2\nuser_burst = 3\n";
    for listen in [here, anywhere] {
        let found = limits(listen, named, 2);
        assert_eq!(found, (admission::Limits { all: all(7, 2), source }, Some(Limit::new(2, 3))), "{listen}");
    }
    for (text, told) in [
        ("per_s = 1000001", "logins.per_s = 1000001 is not possible: choose 0 to 1000000"),
        ("source_per_s = 5", "logins.source_per_s = 5 is not possible: "),
        ("user_burst = 5", "logins.user_burst = 5 is not possible: "),
    ] {
        let config = Config::parse(&format!("[logins]\n{text}")).expect("a number");
        let error = config.validate().expect_err("must be refused").to_string();
        assert!(error.starts_with(told), "{error}");
    }
}

#[test]
fn every_volume_has_a_hub() {
    let with = |hubs| Config { hubs, ..Config::default() };
    for (hubs, volumes, count) in [(0, 1, 1), (0, 3, 3), (4, 2, 4), (16, 1, 16), (2, 2, 2)] {
        assert_eq!(with(hubs).hub_count(volumes).expect("possible"), count);
    }
    let error = with(1).hub_count(2).expect_err("one is too few").to_string();
    assert!(error.starts_with("hubs = 1 is not possible") && error.contains("choose 2 to 16"), "{error}");
}

#[test]
fn keep_alive_is_brought_within_bounds() {
    let keep_alive = KeepAlive { default_s: 100, min_s: 10, max_s: 200 };
    assert_eq!([0, 1, 10, 60, 4000].map(|wanted_s| keep_alive.agree(wanted_s)), [100, 10, 10, 60, 200]);
}
