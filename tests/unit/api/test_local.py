"""Which requests count as this machine's: by the peer, the `Host`, and what no proxy has added."""

import pytest

from realtime.api.local import is_local


@pytest.mark.parametrize(
    ("client", "headers", "local"),
    [
        ("127.0.0.1", [(b"host", b"localhost:3001")], True),
        ("::ffff:127.0.0.1", [(b"Host", b"LOCALHOST")], True),
        ("::1", [(b"host", b"[::1]:3001"), (b"origin", b"http://[::1]:3001")], True),
        ("127.0.0.1", [], False),
        ("127.0.0.1", [(b"host", b"localhost"), (b"host", b"evil.example")], False),
        ("127.0.0.1", [(b"host", b"localhost"), (b"host", b"localhost")], False),
        ("127.0.0.1", [(b"host", b"localhost"), (b"Via", b"1.1 proxy")], False),
        ("::ffff:10.0.0.1", [(b"host", b"localhost")], False),
        ("localhost", [(b"host", b"localhost")], False),
        (None, [(b"host", b"localhost")], False),
    ],
)
def test_a_request_is_local_by_all_that_it_shows(
    client: str | None, headers: list[tuple[bytes, bytes]], local: bool
) -> None:
    assert is_local({"client": None if client is None else (client, 1), "headers": headers}) is local
