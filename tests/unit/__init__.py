"""Tests of the Python modules; the folders mirror python/realtime."""
