"""Tests of realtime.identity."""
