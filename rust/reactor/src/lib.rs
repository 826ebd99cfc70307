//! realtime-reactor
