"""Tests: unit (no socket, no real time), integration (real sockets), conformance, node and browser."""
