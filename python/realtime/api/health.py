"""`/health`: whether the process serves. `/ready`: whether it should be sent more, and if not, why."""

from litestar import Response, get
from litestar.types import ControllerRouterHandler
from msgspec import Struct

from realtime.api.edge import Edge
from realtime.base.memory import Memory


class Health(Struct):
    """Whether the process serves: `ok` or `draining`."""

    status: str


class Readiness(Struct):
    """Whether to send it more: `ready`, or `not_ready` with the reasons; and what memory is held for clients."""

    status: str
    reasons: list[str]
    memory: Memory


def routes(edge: Edge) -> list[ControllerRouterHandler]:
    """Return the routes that load balancers ask."""

    @get("/health", sync_to_thread=False, tags=["Health"])
    def health() -> Response[Health]:
        """Say whether the process serves; 503 from the begin of a drain on."""
        draining = edge.is_draining()
        return Response(Health("draining" if draining else "ok"), status_code=503 if draining else 200)

    @get("/ready", sync_to_thread=False, tags=["Health"])
    def ready() -> Response[Readiness]:
        """Say whether to send it more; 503 with the reasons where not."""
        reasons = edge.not_ready()
        told = Readiness("not_ready" if reasons else "ready", reasons, edge.control.memory())
        return Response(told, status_code=503 if reasons else 200)

    return [health, ready]
