"""`/metrics`: the figures of the server in Prometheus' text format, for this machine's programs and for services.

A text takes the loop over a millisecond. So twenty are made a second; who asks more often is given the newest again,
which is then a twentieth of a second old at most.
"""

import time
from collections.abc import Callable
from typing import Final

from litestar import Response, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ControllerRouterHandler
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from realtime.api.edge import Edge
from realtime.api.guards import Guard
from realtime.base.metrics import Families

TEXTS_PER_S: Final = 20


class Text:
    """The newest text.

    Args:
        make: makes a new one.
        now_s: the monotonic time.
    """

    def __init__(self, make: Callable[[], bytes], now_s: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._now_s = now_s
        self._left = float(TEXTS_PER_S)
        self._filled_s = now_s()
        self._newest = b""

    def __call__(self) -> bytes:
        """Return a new text, or the newest where a second's worth of them was made within one."""
        now_s = self._now_s()
        self._left = min(self._left + (now_s - self._filled_s) * TEXTS_PER_S, TEXTS_PER_S)
        self._filled_s = now_s
        if self._left >= 1:
            self._left -= 1
            self._newest = self._make()
        return self._newest


def routes(edge: Edge, guard: Guard) -> list[ControllerRouterHandler]:
    """Return the route that a Prometheus scrapes."""
    control = edge.control
    families = Families(
        control.stats,
        control.figures,
        control.ledger,
        control.settings,
        users=lambda: control.connections.users,
        ready=lambda: not edge.not_ready(),
    )
    text = Text(families.text)

    @get(
        "/metrics",
        guards=[guard.operators_only],
        sync_to_thread=False,
        tags=["Operation"],
        responses={200: ResponseSpec(str, media_type="text/plain", description="Prometheus' text format.")},
    )
    def metrics() -> Response[bytes]:
        """Tell every figure. What it costs does not grow with the connections."""
        return Response(text(), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    return [metrics]
