//! realtime-hub
