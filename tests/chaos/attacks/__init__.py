"""The attacks, a class each, by name; those without a token and those of one signed-in user."""

import re
from typing import Final

from tests.chaos.attacks import bodies, commands, frames, handshakes, reads, requests
from tests.chaos.attacks.attack import Attack


def _name(kind: type[Attack]) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


ATTACKS: Final[dict[str, type[Attack]]] = {
    _name(kind): kind
    for module in (handshakes, requests, bodies, frames, commands, reads)
    for kind in vars(module).values()
    if isinstance(kind, type)
    and issubclass(kind, Attack)
    and kind.__module__ == module.__name__
    and kind.__name__[0] != "_"
}
