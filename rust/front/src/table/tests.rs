use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn table(connections_max: usize, bytes_max: usize) -> Table {
    Table::new(connections_max, bytes_max, 60 * SECOND, Arc::default())
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn opened(table: &mut Table, last: u8) -> (Id, Rc<Fate>) {
    let now = Instant::now();
    table.open(address(last), now + SECOND, now)
}

#[test]
fn the_longest_idle_connection_of_the_address_with_the_most_goes() {
    let mut table = table(4, 0);
    let now = Instant::now();
    let (first, first_fate) = opened(&mut table, 1);
    let (_, second_fate) = opened(&mut table, 1);
    let (_, others_fate) = opened(&mut table, 2);
    table.enter(first, Stage::InFlight, None, now);
    table.keep(first, now);
    assert!(table.make_room());
    assert_eq!(second_fate.end.get(), Some(End::Crowded), "the first has answered a request since");
    assert_eq!((first_fate.end.get(), others_fate.end.get()), (None, None));
    assert_eq!(table.len(), 2);
}

#[test]
fn for_another_part_of_the_process_none_goes_that_has_come_only_now() {
    let mut table = table(4, 0);
    let now = Instant::now();
    let (_, fate) = table.open(address(1), now + SECOND, now);
    assert!(!table.give_up_one(now + YOUNG / 2));
    assert_eq!(fate.end.get(), None);
    assert!(table.give_up_one(now + YOUNG));
    assert_eq!(fate.end.get(), Some(End::Crowded));
}

#[test]
fn one_that_waits_for_its_turn_goes_last_and_one_at_work_never() {
    let mut table = table(8, 0);
    let now = Instant::now();
    let (waiting, waiting_fate) = opened(&mut table, 1);
    let (sending, sending_fate) = opened(&mut table, 1);
    let (working, working_fate) = opened(&mut table, 1);
    let (_, idle_fate) = opened(&mut table, 1);
    table.enter(waiting, Stage::Waiting, None, now);
    table.enter(sending, Stage::Body, None, now);
    table.enter(working, Stage::InFlight, None, now);
    for fate in [idle_fate, sending_fate, waiting_fate] {
        assert!(fate.end.get().is_none());
        assert!(table.make_room());
        assert_eq!(fate.end.get(), Some(End::Crowded));
    }
    assert!(!table.make_room(), "there is nobody left who may go");
    assert!(working_fate.end.get().is_none());
}

#[test]
fn at_the_limit_of_bytes_all_stay_and_above_it_the_address_that_holds_most_loses_its_largest() {
    let mut table = table(8, 100);
    let (small, small_fate) = opened(&mut table, 1);
    let (large, large_fate) = opened(&mut table, 1);
    let (other, other_fate) = opened(&mut table, 2);
    table.hold(small, Purpose::Heads, 20);
    table.hold(large, Purpose::Bodies, 40);
    table.hold(other, Purpose::Answers, 40);
    assert_eq!(table.len(), 3, "100 of 100 bytes");
    table.hold(other, Purpose::Answers, 41);
    assert_eq!(large_fate.end.get(), Some(End::Bytes));
    assert_eq!((small_fate.end.get(), other_fate.end.get()), (None, None));
    assert_eq!(table.bytes, 61);
}

#[test]
fn whoever_is_overdue_is_ended_for_what_it_was_at() {
    let mut table = table(8, 0);
    let now = Instant::now();
    let (head, head_fate) = opened(&mut table, 1);
    let (_, silent_fate) = opened(&mut table, 1);
    let (half, half_fate) = opened(&mut table, 1);
    table.enter(head, Stage::Head, Some(now + SECOND / 2), now);
    table.enter(half, Stage::InFlight, None, now);
    table.half_closed(half, now + 2 * SECOND);
    table.sweep(now + SECOND / 2);
    assert_eq!((head_fate.end.get(), silent_fate.end.get()), (Some(End::Head), None));
    table.sweep(now + SECOND * 3 / 2);
    assert_eq!((silent_fate.end.get(), half_fate.end.get()), (Some(End::Idle), None));
    table.sweep(now + 2 * SECOND);
    assert_eq!(half_fate.end.get(), Some(End::HalfClosed));
}

#[test]
fn the_time_between_requests_is_shorter_the_fuller_the_table_is() {
    let mut table = table(4, 0);
    let now = Instant::now();
    let (first, first_fate) = opened(&mut table, 1);
    table.keep(first, now);
    table.sweep(now + 59 * SECOND);
    assert!(first_fate.end.get().is_none());
    let _others: Vec<_> = (2..=3).map(|last| opened(&mut table, last)).collect();
    assert_eq!(table.keep_alive(), 30 * SECOND);
    opened(&mut table, 4);
    assert_eq!(table.keep_alive(), SECOND);
    table.sweep(now + 2 * SECOND);
    assert_eq!(first_fate.end.get(), Some(End::Idle));
}

#[test]
fn an_ipv6_host_counts_as_one_address_however_many_it_has() {
    let mut table = table(8, 100);
    for peer in ["2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1", "::ffff:10.0.0.1", "10.0.0.1"] {
        let now = Instant::now();
        table.open(peer.parse().unwrap(), now + SECOND, now);
    }
    let counts: Vec<_> = ["2001:db8:1:2::", "2001:db8:1:3::", "10.0.0.1"]
        .iter()
        .map(|address| table.addresses[&address.parse::<IpAddr>().unwrap()].connections)
        .collect();
    assert_eq!(counts, [2, 1, 2]);
}

proptest! {
    #[test]
    fn whatever_happens_the_sums_are_those_of_the_connections(
        steps in prop::collection::vec((0u8..7, 0u8..3, 0usize..8, 0usize..50), 1..200)
    ) {
        let mut table = table(8, 120);
        let now = Instant::now();
        let mut ids: Vec<Id> = Vec::new();
        for (step, last, at, bytes) in steps {
            let id = ids.get(at).copied().unwrap_or(0);
            match step {
                0 => {
                    if !table.is_full() || table.make_room() {
                        ids.push(opened(&mut table, last).0);
                    }
                }
                1 => table.close(id),
                2 => table.enter(id, Stage::InFlight, None, now),
                3 => table.enter(id, Stage::Body, None, now),
                4 => table.keep(id, now),
                5 => table.hold(id, Purpose::Bodies, bytes),
                _ => table.hold(id, Purpose::Heads, bytes),
            }
            ids.retain(|id| table.entries.contains_key(id));
            prop_assert!(table.len() <= 8);
            prop_assert!(table.bytes <= 120);
            prop_assert_eq!(table.bytes, table.entries.values().map(Entry::held).sum::<usize>());
            for (address, counted) in &table.addresses {
                let of_it: Vec<_> = table.entries.values().filter(|entry| entry.address == *address).collect();
                prop_assert_eq!(counted.connections, of_it.len());
                prop_assert_eq!(counted.bytes, of_it.iter().map(|entry| entry.held()).sum::<usize>());
                prop_assert_eq!(counted.may_go.len(), of_it.iter().filter(|e| e.stage.rank().is_some()).count());
                let is_listed = table.crowds.contains(&(counted.connections, *address));
                prop_assert_eq!(is_listed, !counted.may_go.is_empty());
            }
            prop_assert!(table.crowds.len() <= table.addresses.len());
        }
    }
}
