"""Which slashes of a path were percent-encoded, as servers and hosts of ours hand paths over."""

from typing import Any

import pytest

from realtime.api.paths import SLASH, path_of


@pytest.mark.parametrize(
    ("path", "raw", "found"),
    [
        ("/api/users/a/b/sessions", b"/api/users/a%2Fb/sessions", f"/api/users/a{SLASH}b/sessions"),
        ("/api/users/a/b/sessions", b"/api/users/a%2fb/sessions?x=%2F", f"/api/users/a{SLASH}b/sessions"),
        ("/api/users///sessions", b"/api/users/%2F/sessions", f"/api/users/{SLASH}/sessions"),
        ("/api/users/é/b", "/api/users/é%2Fb".encode(), f"/api/users/é{SLASH}b"),
        ("/api/users/é/b", b"/api/users/%C3%A9%2Fb", f"/api/users/é{SLASH}b"),
        ("/api/users/a%2Fb", b"/api/users/a%252Fb", "/api/users/a%2Fb"),
        ("/api/users/ab", b"/api/users/ab", "/api/users/ab"),
        # Below a mount: the raw path is the whole one.
        ("/api/users/a/b", b"/real/time/api/users/a%2Fb", f"/api/users/a{SLASH}b"),
        # What does not fit is left as it is, and an absent raw path says nothing.
        ("/api/users/a/b", b"/elsewhere/a%2Fc", "/api/users/a/b"),
        ("/api/users/a/b", None, "/api/users/a/b"),
    ],
)
def test_an_encoded_slash_is_told_from_one_that_parts_segments(path: str, raw: bytes | None, found: str) -> None:
    scope: dict[str, Any] = {"path": path} | ({} if raw is None else {"raw_path": raw})
    assert path_of(scope) == found
