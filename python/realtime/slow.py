"""Naming in the log what held the event loop: a plain function that takes long delays every session.

Called by `routing`, `listening` and `periodic`, which look at the clock around each plain function of an author's.
"""

import logging

log = logging.getLogger("realtime")


def name_slow(what: str, took_s: float, cure: str = "make it async, or thread=True") -> None:
    """Say that `what` held the loop for `took_s`, which is more than `handlers.slow_ms`, and what to do."""
    log.warning("%s held the event loop for %d ms; %s", what, took_s * 1000, cure)
