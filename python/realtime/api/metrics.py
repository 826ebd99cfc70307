"""`/metrics`: the figures of the server in Prometheus' text format, for this machine's programs and for services."""

from litestar import Response, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ControllerRouterHandler
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from realtime.api.edge import Edge
from realtime.api.guards import Guard
from realtime.metrics import Families


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

    @get(
        "/metrics",
        guards=[guard.operators_only],
        sync_to_thread=False,
        tags=["Operation"],
        responses={200: ResponseSpec(str, media_type="text/plain", description="Prometheus' text format.")},
    )
    def metrics() -> Response[bytes]:
        """Tell every figure. What it costs does not grow with the connections."""
        return Response(families.text(), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    return [metrics]
