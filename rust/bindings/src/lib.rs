//! realtime-bindings
