"""What the HTTP side knows of the edge: its configuration, its Python half, and whether it serves.

Made by `cli.serving`, `embedded` and tests; every family of routes is built over one.
"""

from collections.abc import Callable
from functools import cached_property

from msgspec import Struct

from realtime.api.development import DevelopmentAccess
from realtime.base.config import Settings
from realtime.control.control import Control
from realtime.conversations.archive import Archive
from realtime.serving.server import Server


class Edge(Struct, frozen=True, dict=True):
    """What the HTTP side asks of the edge.

    Args:
        settings: the configuration in force.
        control: connections, broadcaster and rules of the running server.
        url: the WebSocket endpoint as a browser on this machine reaches it.
        is_draining: whether the server goes away.
        not_ready: why it should be sent no more; empty while it is ready.
        development: who may use the playground; None where a secret is configured.
    """

    settings: Settings
    control: Control
    url: str
    is_draining: Callable[[], bool]
    not_ready: Callable[[], list[str]]
    development: DevelopmentAccess | None = None

    @cached_property
    def archive(self) -> Archive:
        """The messages of all conversations; one for all routes, since it keeps their changes apart."""
        return Archive(self.control.broadcaster, self.control.clock)


def edge_of(server: Server, development: DevelopmentAccess | None) -> Edge:
    """Return the edge of a server that runs."""
    return Edge(
        settings=server.settings,
        control=server.control,
        url=server.url,
        is_draining=lambda: server.draining or server.failure is not None,
        not_ready=server.readiness,
        development=development,
    )
