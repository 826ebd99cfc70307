"""Every code block of the documentation runs, page by page, in a scratch home: tests/scratch.py says how.

What a page's blocks make is then used as the page says: its apps get clients, its servers are asked.
"""

import asyncio
import json
import re
import runpy
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from realtime.testing import TestApp
from tests import pages
from tests.answers import alike
from tests.kit import eventually
from tests.pages import Block
from tests.scratch import Scratch

Check = Callable[[Scratch], Awaitable[None]]
CHECKS: dict[tuple[str, str], Check] = {}


def check(page: str, during: str = "") -> Callable[[Check], Check]:
    """Declare what is done while the page's server of this command runs, or after all blocks have run."""

    def declare(function: Check) -> Check:
        CHECKS[page, during] = function
        return function

    return declare


@check("README.md", "board.py")
async def a_note_reaches_the_board_and_is_there_for_who_comes_later(scratch: Scratch) -> None:
    async with await scratch.connect(scratch.token("ann")) as ann:
        await ann.subscribe("board:1")
        assert (await ann.ask("note", {"text": "hello"}))["type"] == "ack"
        await ann.expect("note", text="hello")
    async with await scratch.connect(scratch.token("bob")) as bob:
        await bob.subscribe("board:1", last=50)
        await bob.expect("note", text="hello")


@check("docs/tutorial/4-typing-and-cursors.md", "realtime serve board.py")
async def who_types_and_points_is_relayed(scratch: Scratch) -> None:
    async with (
        await scratch.connect(scratch.token("ann")) as ann,
        await scratch.connect(scratch.token("bob")) as bob,
    ):
        for each in (ann, bob):
            await each.subscribe("board:1")
        await ann.ask("point", {"board": "1", "x": 3, "y": 4})
        await bob.expect("pointed", userId="ann", x=3, y=4)
        await ann.ask("typing", {"board": "1"})
        await bob.expect("typed", userId="ann", isTyping=True)
        await ann.ask("unsubscribe", {"channel": "board:1"})
        await bob.expect("typed", userId="ann", isTyping=False)


@check("docs/howto/handlers-and-jobs.md")
async def an_app_of_every_kind_of_handler_does_what_its_page_says(scratch: Scratch) -> None:
    board = runpy.run_path(str(scratch.home / "board.py"))
    async with TestApp(board["app"]) as t:
        ann, bob = await t.connect(user="ann"), await t.connect(user="bob")
        await bob.command("subscribe", channel="board:1")
        await bob.command("subscribe", channel="stats")
        assert (await ann.ack("note", board="1", text="hello"))["number"] == 1
        await bob.expect("note", text="hello")
        assert (await ann.command("note", board="1", text=" ")).data["path"] == "data.text"
        assert (await ann.command("subscribe", channel="board:staff-1")).data["code"] == "forbidden"
        assert await ann.ack("render", board="1", text="hello") == 5
        t.clock.advance(60)
        await bob.expect("stats", notes=1)
        await ann.ack("watch")
        await ann.expect("tick")
        board["banned"].add("ann")
        assert (await ann.command("watch")).data["message"] == "you may not"
        assert board["calls"] == {"note": 2, "render": 1, "watch": 1}


@check("docs/howto/browser-client.md")
async def a_browser_client_gets_each_message_once_over_a_restart(scratch: Scratch) -> None:
    if not (scratch.home / "before.mjs").exists():  # there is no Node
        return
    node = await asyncio.create_subprocess_exec(
        "node", "--import", "./before.mjs", "client.mjs", cwd=scratch.home, stdout=asyncio.subprocess.PIPE
    )
    assert node.stdout is not None
    shown = []
    try:
        for content in ("before the end", "after the end"):
            async with await scratch.connect(scratch.token("bob")) as bob:
                await bob.say("lobby", content)
            while content not in (line := (await node.stdout.readline()).decode()):
                assert line, "the client has ended"
                shown.append(line)
            await asyncio.to_thread(scratch.serve, "realtime serve", "the server again")
    finally:
        node.terminate()
        await node.wait()
    assert not any("the end" in line for line in shown), shown


@check("docs/howto/authenticate.md", "access.py")
async def a_cookie_says_who_somebody_is(scratch: Scratch) -> None:
    cookie = {"additional_headers": {"Cookie": "session=7f3a"}, "established": False}
    async with await scratch.connect("", **cookie) as alice:
        assert (await alice.receive())["data"]["userId"] == "alice"
    async with await scratch.connect("", established=False) as nobody:
        assert (await nobody.closed())[0] == 4501


@check("docs/topics/uwebsockets.md", "engine.transport=socketify")
async def a_client_is_answered_over_socketify(scratch: Scratch) -> None:
    async with await scratch.connect(scratch.token("ann")) as ann:
        await ann.subscribe("conversation:1")
        assert (await ann.say("1", "hi"))["number"] == 1
        await ann.expect("new_message", content="hi")


@check("docs/howto/fan-out-alone.md")
async def connections_of_another_server_get_what_is_published(scratch: Scratch) -> None:
    page = runpy.run_path(str(scratch.home / "page.py"))
    async with (
        serve(page["handle"], "127.0.0.1", 0, compression=None) as server,
        connect(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", compression=None) as client,
    ):
        await eventually(lambda: page["fanout"].members("prices") == 1, what="a member")
        assert page["fanout"].publish("prices", '{"price": 8}') == 1
        assert await client.recv() == '{"price": 8}'


@check("docs/howto/keep-your-api.md")
async def an_existing_api_gets_the_request_of_the_page(scratch: Scratch) -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]  # it has one
        heard.set_result(head + await reader.readexactly(size))
        body = b'{"id": "m-1", "content": "hi"}'
        writer.write(
            b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        writer.write(body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", scratch.ports[3001]):
        await asyncio.to_thread(scratch.serve, "realtime serve", "the edge before an API")
        token = scratch.token("ann")
        async with await scratch.connect(token) as ann:
            stored = await ann.say("42", "hi", metadata={"tone": "warm"})
            assert stored == {"id": "m-1", "content": "hi", "number": 1}
    (shown,) = (block for block in pages.blocks("docs/howto/keep-your-api.md") if block.language == "http")
    head, _, body = (await heard).decode().partition("\r\n\r\n")
    shown_head, _, shown_body = shown.text.partition("\n\n")
    request, *lines = head.split("\r\n")
    assert request == f"{shown_head.splitlines()[0]} HTTP/1.1"
    names = {line.partition(":")[0].lower() for line in lines}
    assert {line.partition(":")[0].lower() for line in shown_head.splitlines()[1:]} <= names
    assert f"Bearer {token}" in head
    assert alike(json.loads(shown_body), json.loads(body)), body


@check("docs/reference/protocol.md")
async def the_first_frame_is_as_the_page_shows_it(scratch: Scratch) -> None:
    (shown,) = (block for block in pages.blocks("docs/reference/protocol.md") if "established" in block.text)
    await asyncio.to_thread(scratch.serve, "realtime serve", "the server of the protocol")
    async with await scratch.connect(scratch.token("ann"), established=False) as ann:
        frame = await ann.receive()
        assert alike(json.loads(shown.text), frame), frame


FIRST = ("README.md", "docs/tutorial/1-first-app.md")
"""The pages that a reader begins with; the others rely on what `docs/tutorial/1-first-app.md` does to the PATH."""

PAGES = [
    page
    for page in pages.pages()
    if any(block.language in pages.RUN for block in pages.blocks(page)) or (page, "") in CHECKS
]


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path) -> None:
    found = [block for block in pages.blocks(page) if not block.reason]
    api_port = 3003 if re.search(r"^url = ", pages.text_of(page), re.MULTILINE) else 3001
    with Scratch(tmp_path, api_port=api_port, on_path=page not in FIRST) as scratch:
        scripts = {**pages.files(found), **pages.files(found, language="js")}
        there = [pages.files(pages.blocks(earlier)) for earlier in pages.before(page)]
        for name, source in [pair for files in (*there, scripts) for pair in files.items()]:
            scratch.write(name, scratch.moved(source))
        for block in found:
            _do(scratch, block)
            for (of, during), function in CHECKS.items():
                if (of, block.language) == (page, "sh") and during and during in block.text:
                    asyncio.run(_within(function, scratch))
        started = _started(scripts, "\n".join(block.text for block in found if block.language in {"sh", "console"}))
        for name, source in scripts.items():
            if name in started:
                continue
            assert not re.search(r"^app = |def test_", source, re.MULTILINE), f"{page}: say how {name} is started"
            if name.endswith(".py"):
                scratch.shell(f"python {name}", f"{page} ({name})")
            else:
                scratch.node(name, f"{page} ({name})", scratch.token("ada"))
        if (page, "") in CHECKS:
            asyncio.run(_within(CHECKS[page, ""], scratch))
        scratch.stop()


def _started(scripts: dict[str, str], shell: str) -> set[str]:
    """Return the files that commands of the page name, and those that these import."""
    started: set[str] = set()
    text = shell
    while found := {name for name in scripts if re.search(rf"\b{re.escape(Path(name).stem)}\b", text)} - started:
        started |= found
        text = "\n".join(line for name in found for line in scripts[name].splitlines() if " import " in line)
    return started


async def _within(function: Check, scratch: Scratch) -> None:
    async with asyncio.timeout(60):
        await function(scratch)


def _do(scratch: Scratch, block: Block) -> None:
    if block.language == "sh":
        scratch.run(block)
    elif block.language == "console":
        for typed in pages.commands(block):
            scratch.ask(block, typed)
    elif block.name and block.language not in {"python", "js"}:
        scratch.write(block.name, scratch.moved(block.text))


def test_every_check_is_of_a_block_of_its_page() -> None:
    for page, during in CHECKS:
        assert during in pages.text_of(page)
