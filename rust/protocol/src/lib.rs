//! realtime-protocol
