//! realtime-log
