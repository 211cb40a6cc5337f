//! A crowd of idle clients as a program: to the bare floor and back, over several descriptor tables on both sides.

use std::process::Command;

use serde_json::Value;

const CONNECTIONS: u64 = 2000;

#[test]
fn the_floor_of_idle_connections_is_measured_by_several_workers() {
    let output = Command::new(env!("CARGO_BIN_EXE_culver-loadgen"))
        .args(["floor", "--pairs", "1", "--duration", "100ms", "--warmup", "1ms", "--workers", "3", "--json", "-"])
        .args(["--connections", &CONNECTIONS.to_string()])
        .output()
        .expect("it is built");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {told}"));
    let figure = |name: &str| document.get("result")?.get(name)?.as_f64();
    assert!(figure("login_cpu_us").is_some_and(|cpu_us| cpu_us > 0.0), "{document}");
    assert!(figure("kernel_bytes_per_connection").is_some());
}

#[test]
fn what_cannot_be_is_said_before_the_first_connection() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_culver-loadgen")).args(arguments).output().expect("it is built");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, told) = run(&["density", "--keep-alive", "1s"]);
    assert!(code == Some(2) && told.contains("--keep-alive is from 5s"), "{code:?} {told}");
    let (code, told) = run(&["density", "--quiet", "61s"]);
    assert!(code == Some(2) && told.contains("a quarter of --keep-alive"), "{code:?} {told}");
    let (code, told) = run(&["density", "--source-ips", "10.0.0.0/33"]);
    assert!(code == Some(2) && told.contains("8 to 30 bits"), "{code:?} {told}");
    let (code, told) = run(&["storm", "--keep-alive", "1s"]);
    assert!(code == Some(2) && told.contains("--keep-alive is from 5s"), "{code:?} {told}");
    let (code, told) = run(&["storm", "--rss-ratio-max", "1.2"]);
    assert!(code == Some(2) && told.contains("--leave"), "{code:?} {told}");
    let (code, told) = run(&["storm", "--drop", "slowly"]);
    assert!(code == Some(2) && told.contains("rst, fin, silent"), "{code:?} {told}");
    let (code, told) = run(&["restart", "--culver", "x", "--users", "5", "--connections", "6"]);
    assert!(code == Some(2) && told.contains("--connections 6 is more than --users 5"), "{code:?} {told}");
    let (code, told) = run(&["idle-burst", "--rounds", "0"]);
    assert!(code == Some(2) && told.contains("--rounds"), "{code:?} {told}");
}
