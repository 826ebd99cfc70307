"""Tests of realtime.handlers."""
