"""Tests of realtime.base.config."""
