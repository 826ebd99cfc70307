"""Tests of realtime.cli."""
