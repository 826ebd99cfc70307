"""Tests over real sockets, with clients that are not ours, each with one shard and with two."""
