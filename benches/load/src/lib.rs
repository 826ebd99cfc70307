//! realtime-load
