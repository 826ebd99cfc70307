//! One acceptor, and each socket goes to the shard that has the fewest.

use crate::client::{Arrived, Client};
use crate::server::Server;
use realtime_hub::{Command, ConnId, Event};
use realtime_protocol::close::CloseCode;
use serde_json::{Value, json};

const SHARDS: usize = 4;

fn connections_by_shard(server: &Server) -> Vec<u64> {
    let stats: Value = serde_json::from_str(&server.engine.handle().stats_json()).unwrap();
    stats["shards"].as_array().unwrap().iter().map(|shard| shard["connections"].as_u64().unwrap()).collect()
}

fn connect(server: &Server) -> (ConnId, Client) {
    let client = Client::subscribed(server.port(), &["room:1".into()]);
    (server.opened(), client)
}

/// Closes those that `goes` picks by shard and number, and waits until their shards have let go of them.
fn close(server: &Server, clients: &mut Vec<(ConnId, Client)>, mut goes: impl FnMut(usize) -> bool) {
    for (_, client) in clients.extract_if(.., |(conn, _)| goes(conn.shard())).collect::<Vec<_>>().iter_mut() {
        client.close(CloseCode::NORMAL);
        assert_eq!(client.closed(), 1000);
        assert_eq!(client.next(), Arrived::End);
    }
    // The turn that closed the socket is over when the next one has answered; whoever stays keeps the channel.
    server.submit(Command::Members { ticket: 1, channel: "room:1".into() });
    for _ in 0..SHARDS {
        server.wait_for(|event| matches!(event, Event::Members { .. }).then_some(()));
    }
}

#[test]
fn sockets_go_to_the_shard_that_has_the_fewest_also_after_uneven_closes() {
    let server = Server::start(SHARDS, &json!({}));
    let mut clients: Vec<_> = (0..20).map(|_| connect(&server)).collect();
    assert_eq!(connections_by_shard(&server), [5; SHARDS]);
    let mut left = [5, 3, 1, 0];
    close(&server, &mut clients, |shard| {
        let goes = left[shard] > 0;
        left[shard] -= i32::from(goes);
        goes
    });
    assert_eq!(connections_by_shard(&server), [0, 2, 4, 5]);
    let shards: Vec<usize> = (0..6)
        .map(|_| {
            let (conn, client) = connect(&server);
            clients.push((conn, client));
            conn.shard()
        })
        .collect();
    assert_eq!(shards[..2], [0, 0], "the empty one first");
    assert_eq!(connections_by_shard(&server), [4, 4, 4, 5]);
}
