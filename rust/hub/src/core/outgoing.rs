//! What is on its way out of a shard: this turn's frames, their compression, what slow readers may hold, and how long
//! events take.

use super::budget::Budget;
use super::fan_outs::FanOuts;
use super::turn::Turn;
use crate::Hub;
use crate::compression::Compressor;
use std::sync::Arc;

/// The way out.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) turn: Turn,
    pub(super) compressor: Compressor,
    pub(super) budget: Budget,
    pub(super) fan_outs: FanOuts,
}

impl Outgoing {
    pub(super) fn new(hub: &Arc<Hub>, shard: usize) -> Self {
        Self {
            turn: Turn::default(),
            compressor: Compressor::new(Arc::clone(hub), shard),
            budget: Budget::default(),
            fan_outs: FanOuts::default(),
        }
    }
}
