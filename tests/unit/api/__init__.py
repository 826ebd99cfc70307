"""Tests of realtime.api."""
