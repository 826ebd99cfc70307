//! Why a shard never sleeps on a message: every interleaving of the wake protocol, looked at one by one.
//!
//! The model has the steps that other threads can see, each of them atomic. A shard marks itself asleep, looks into
//! its inbox, and only then polls; who pushes looks at the mark after the push, takes it away and wakes. A stuck state
//! is one in which nobody can go on and a message waits. The same search finds the stuck state of the protocol with
//! its two steps swapped, so it would find ours.

use std::collections::HashSet;

const PUSHERS: usize = 2;
const PUSHES: u8 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Shard {
    Mark,
    Look,
    Poll,
    Woke,
    Take,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Pusher {
    Push,
    LookAtMark,
    Wake,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    shard: Shard,
    /// Whether the look found nothing, so that the poll may block.
    sleeps: bool,
    asleep: bool,
    queue: u8,
    /// The poller's waker: set by a wake, taken by a poll.
    token: bool,
    pushers: [(Pusher, u8); PUSHERS],
}

/// Which of its first two steps a shard takes first.
#[derive(Clone, Copy)]
enum Order {
    MarkThenLook,
    LookThenMark,
}

fn shard_step(world: &World, order: Order) -> Option<World> {
    let mut next = world.clone();
    match (world.shard, order) {
        (Shard::Mark, _) => {
            next.asleep = true;
            next.shard = match order {
                Order::MarkThenLook => Shard::Look,
                Order::LookThenMark => Shard::Poll,
            };
        }
        (Shard::Look, Order::MarkThenLook) => {
            next.sleeps = world.queue == 0;
            next.asleep = next.sleeps;
            next.shard = Shard::Poll;
        }
        (Shard::Look, Order::LookThenMark) => {
            next.sleeps = world.queue == 0;
            next.shard = if next.sleeps { Shard::Mark } else { Shard::Poll };
        }
        (Shard::Poll, _) if world.sleeps && !world.token => return None,
        (Shard::Poll, _) => {
            next.token = false;
            next.shard = Shard::Woke;
        }
        (Shard::Woke, _) => {
            next.asleep = false;
            next.shard = Shard::Take;
        }
        (Shard::Take, _) => {
            next.queue = 0;
            next.shard = match order {
                Order::MarkThenLook => Shard::Mark,
                Order::LookThenMark => Shard::Look,
            };
        }
    }
    Some(next)
}

fn pusher_step(world: &World, index: usize) -> Option<World> {
    let (step, left) = world.pushers[index];
    let mut next = world.clone();
    next.pushers[index] = match step {
        Pusher::Push if left == 0 => return None,
        Pusher::Push => {
            next.queue += 1;
            (Pusher::LookAtMark, left - 1)
        }
        Pusher::LookAtMark => {
            let was_asleep = std::mem::replace(&mut next.asleep, false);
            (if was_asleep { Pusher::Wake } else { Pusher::Push }, left)
        }
        Pusher::Wake => {
            next.token = true;
            (Pusher::Push, left)
        }
    };
    Some(next)
}

/// Every state that can be reached, and the first of them in which a message waits for ever.
fn search(order: Order) -> (usize, Option<World>) {
    let first = World {
        shard: match order {
            Order::MarkThenLook => Shard::Mark,
            Order::LookThenMark => Shard::Look,
        },
        sleeps: false,
        asleep: false,
        queue: 0,
        token: false,
        pushers: [(Pusher::Push, PUSHES); PUSHERS],
    };
    let (mut seen, mut open) = (HashSet::from([first.clone()]), vec![first]);
    while let Some(world) = open.pop() {
        let steps = (0..PUSHERS).map(|index| pusher_step(&world, index));
        let nexts: Vec<World> = steps.chain([shard_step(&world, order)]).flatten().collect();
        if nexts.is_empty() && world.queue > 0 {
            return (seen.len(), Some(world));
        }
        open.extend(nexts.into_iter().filter(|next| seen.insert(next.clone())));
    }
    (seen.len(), None)
}

#[test]
fn no_interleaving_leaves_a_message_to_a_sleeping_shard() {
    let (states, stuck) = search(Order::MarkThenLook);
    assert_eq!(stuck, None);
    assert!(states > 100, "{states} states are too few to mean anything");
}

#[test]
fn the_search_finds_the_fault_of_looking_first() {
    assert!(search(Order::LookThenMark).1.is_some());
}
