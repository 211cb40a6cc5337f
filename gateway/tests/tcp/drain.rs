//! Drains that operators ask for over their port.

use culver_protocol::error::ErrorCode;
use culver_protocol::proto;

use super::home::{Layout, Server, on_every_layout, serve_on};
use super::peer::{Got, Peer};

on_every_layout! {
    who_is_asked_goes_and_who_comes_is_turned_back_until_it_is_aborted,
    who_stays_is_ended_and_the_server_stays,
}

const TOLD_ALL: &str = r#"{"spread_s": 0, "alternates": ["b.example:7400"], "finish_s": 3600}"#;

/// Status and text.
fn ask(server: &Server, method: &str, path: &str, body: &str) -> (u16, String) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let url = format!("http://{}{path}", server.ops);
    let mut response = match method {
        "POST" => agent.post(url).content_type("application/json").send(body),
        "DELETE" => agent.delete(url).call(),
        _ => agent.get(url).call(),
    }
    .expect("it answers");
    (response.status().as_u16(), response.body_mut().read_to_string().expect("text"))
}

fn begin(server: &Server, body: &str) {
    let (status, said) = ask(server, "POST", "/drain", body);
    assert!(status == 200 && said.contains("\"draining\":true"), "{status} {said}");
}

fn who_is_asked_goes_and_who_comes_is_turned_back_until_it_is_aborted(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut peers: Vec<Peer> = (1..=9).map(|user| Peer::online(&home, &server, user)).collect();
    for (body, expected) in [("what", "all of it optional"), (r#"{"finish_s": 9999}"#, "0 to 3600")] {
        let (status, said) = ask(&server, "POST", "/drain", body);
        assert!(status == 400 && said.contains(expected), "{status} {said}");
    }
    assert_eq!(ask(&server, "DELETE", "/drain", "").0, 409);
    begin(&server, TOLD_ALL);
    assert_eq!(ask(&server, "GET", "/readyz", ""), (503, "draining\n".to_owned()));
    assert_eq!(ask(&server, "POST", "/drain", "{}").0, 409);
    for peer in &mut peers {
        let Got::Goaway(goaway) = peer.wait_for(|got| matches!(got, Got::Goaway(_))) else { unreachable!("as asked") };
        assert_eq!(goaway.reason(), proto::goaway::Reason::Drain);
        assert_eq!(goaway.alternates, ["b.example:7400"]);
    }
    assert_eq!((server.metric("culver_draining"), server.metric("culver_goaways_total")), (1, 9));
    let (_, said) = ask(&server, "GET", "/drain", "");
    assert!(said.contains("\"told\":9,\"connected\":9}"), "{said}");
    Peer::connect(server.listen).refused(ErrorCode::ShuttingDown);
    // Who has not gone is served as before.
    let one = &mut peers[0];
    one.send_and_wait(2, 1, b"still here");
    assert_eq!(ask(&server, "DELETE", "/drain", "").0, 200);
    assert_eq!(ask(&server, "GET", "/readyz", ""), (200, "ready\n".to_owned()));
    Peer::online(&home, &server, 99).ping();
    peers.iter_mut().for_each(Peer::ping);
    server.stop();
}

fn who_stays_is_ended_and_the_server_stays(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut peers: Vec<Peer> = (1..=9).map(|user| Peer::online(&home, &server, user)).collect();
    begin(&server, r#"{"connections_per_s": 1000000, "finish_s": 0}"#);
    for peer in &mut peers {
        let ended = |got: &Got| matches!(got, Got::Error(error) if error.code == ErrorCode::ShuttingDown.number());
        peer.wait_for(ended);
    }
    server.wait_for("culver_connections", |connections| connections == 0);
    assert_eq!(ask(&server, "GET", "/healthz", "").0, 200);
    server.stop();
}
