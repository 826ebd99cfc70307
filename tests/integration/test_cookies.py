"""A cookie as the sign-in: the example of docs/howto/authenticate.md runs as printed, for pages on other ports."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import httpx2

from tests import pages
from tests.kit import RawSocket, Server, token_for


async def test_the_cookie_example_of_the_docs_runs_with_a_page_on_another_port(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    shown = {block.language: block.text for block in pages.blocks("docs/howto/authenticate.md") if _is_example(block)}
    app = tmp_path / "cookies.py"
    begin = "from realtime import Conversations, Identity, Realtime, UpgradeRequest\n\napp = Realtime()\n"
    app.write_text(f"{begin}app.include(Conversations())\n\n\n{shown['python']}")
    origins = tomllib.loads(shown["toml"])["auth"]["origins"]
    assert "http://localhost:8000" in origins, "the page on another port"

    async def answer(server: Server, page: str, *more: str) -> tuple[str, int]:
        """Return what a page's socket hears first, and the status of its call, as a browser sends them."""
        lines = [f"Origin: {page}", *more]
        async with await RawSocket.open(server.port) as peer:
            sent = [*lines, "Sec-WebSocket-Protocol: realtime.v1"]
            await peer.upgrade("/ws", "".join(f"{line}\r\n" for line in sent))
            first, payload = await peer.frame()
        heard = json.loads(payload)["data"]["userId"] if first == 0x81 else str(int.from_bytes(payload[:2], "big"))
        headers = dict(line.split(": ", 1) for line in lines)
        async with httpx2.AsyncClient(base_url=server.api_url, trust_env=False) as web:
            return heard, (await web.get("/api/users/alice/sessions", headers=headers)).status_code

    async with serve(f"auth.origins={json.dumps(origins)}", app=f"{app}:app", api=True) as server:
        cookie = "Cookie: theme=dark; session=7f3a"
        for page in ("http://localhost:8000", "https://app.example"):
            assert await answer(server, page, cookie) == ("alice", 200)
        assert await answer(server, "http://localhost:8000", "Cookie: session=other") == ("4501", 401)
        assert await answer(server, "http://localhost:8001", cookie) == ("4502", 403)
        assert 'origin "http://localhost:8001"' in server.output
        assert "auth.origins" in server.output
        token = f"Authorization: Bearer {token_for('alice')}"
        assert await answer(server, "http://localhost:8000", token) == ("alice", 200)


def _is_example(block: pages.Block) -> bool:
    return "app.token_identity" in block.text or "localhost:8000" in block.text
