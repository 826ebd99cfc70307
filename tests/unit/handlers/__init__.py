"""Tests of realtime.conversations."""
