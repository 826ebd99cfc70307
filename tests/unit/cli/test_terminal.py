"""`sub`, `pub` and `chat` as processes, against a server that is played."""

import asyncio
import sys
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from realtime.cli.terminal import safe
from tests.unit.client.peer import asked, played, tell

HEAD = {"offset": 2, "epoch": "e"}


class Terminal:
    """A command of ours whose input and output are pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def run(cls, url: str, *arguments: str) -> "Terminal":
        command = [sys.executable, "-m", "realtime", *arguments, "--url", url, "--token", "t"]
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe))

    async def line(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            return (await self._process.stdout.readline()).decode().rstrip("\n")

    def write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())

    async def end(self) -> tuple[int, str, str]:
        """Close its input and wait; return its exit code and what it still printed."""
        async with asyncio.timeout(20):
            out, err = await self._process.communicate(b"")
        assert self._process.returncode is not None
        return self._process.returncode, out.decode(), err.decode()

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()


def message(offset: int, user: str, content: str, name: str | None = None) -> dict[str, Any]:
    stored = {"userId": user, "content": content, "createdAt": "2026-01-02T03:04:05.678Z", "clientMessageId": name}
    return {"type": "new_message", "data": stored, "channel": "conversation:lobby", "offset": offset}


async def confirm(peer: ServerConnection, **more: Any) -> Any:
    command = await asked(peer)
    assert command["type"] == "subscribe"
    data = {"channel": command["data"]["channel"], "position": HEAD, "head": 2, "replayed": 0, **more}
    await tell(peer, {"type": "subscription_confirmed", "data": data, "id": command["id"]})
    return command["data"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 漢 🙂", "plain ä 漢 🙂"),
        ("\x1b[2J", "\\u001b[2J"),
        ("a\nb\r\x07", "a\\nb\\r\\u0007"),
        ("\x9b\u202e", "\\u009b\\u202e"),
        (3, "3"),
    ],
)
def test_what_others_wrote_cannot_steer_a_terminal(text: object, shown: str) -> None:
    assert safe(text) == shown


async def test_sub_prints_events_of_its_channel_and_comes_back_with_its_position() -> None:
    wanted: list[Any] = []

    async def script(peer: ServerConnection) -> None:
        if not wanted:
            wanted.append(await confirm(peer, position={"offset": 0, "epoch": "d"}, replayed=2))
            await tell(peer, {"type": "user_presence", "data": {"userId": "bob", "status": "online"}})
            await tell(peer, message(1, "bob", "one"))
            await tell(peer, message(2, "bob", "two"))
            peer.transport.abort()
        else:
            # Another start: the epoch of the confirmation goes with what follows.
            again = {"position": {"offset": 2, "epoch": "e"}, "head": 3}
            wanted.append(await confirm(peer, recovered=True, **again, replayed=1))
            await tell(peer, message(3, "bob", "three"))
            await peer.close(4503, "removed")

    async with played(script) as url:
        terminal = await Terminal.run(url, "sub", "conversation:lobby", "--last", "2")
        try:
            lines = [await terminal.line() for _ in range(3)]
            code, out, err = await terminal.end()
        finally:
            terminal.kill()
    assert [content in line for content, line in zip(("one", "two", "three"), lines, strict=True)] == [True] * 3
    assert wanted == [
        {"channel": "conversation:lobby", "last": 2},
        {"channel": "conversation:lobby", "position": {"offset": 2, "epoch": "d"}},
    ]
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "* subscribed to conversation:lobby",
        "* the connection ended with 1006",
        "* connecting again in 1 s",
        "* subscribed to conversation:lobby",
        "realtime: the connection ended with 4503 removed",
    ]


@pytest.mark.parametrize(("answer", "code"), [("ack", 0), ("error", 2)])
async def test_pub_publishes_and_leaves(answer: str, code: int) -> None:
    seen: list[Any] = []

    async def script(peer: ServerConnection) -> None:
        command = await asked(peer)
        seen.append((command["type"], command["data"]))
        data = {"message": "Forbidden", "code": "forbidden", "retryable": False} if answer == "error" else None
        await tell(peer, {"type": answer, "data": data, "id": command["id"]})
        await peer.wait_closed()

    async with played(script) as url:
        terminal = await Terminal.run(url, "pub", "poll:7", "tally", '{"votes": [1, 2]}')
        ended, _, err = await terminal.end()
    assert seen == [("publish", {"channel": "poll:7", "event": "tally", "data": {"votes": [1, 2]}})]
    assert ended == code
    assert err == ("realtime: Forbidden (forbidden)\n" if code else "")


async def test_chat_shows_what_was_said_and_who_does_what_and_sends_lines() -> None:
    sent: list[Any] = []

    async def script(peer: ServerConnection) -> None:
        assert (await confirm(peer, replayed=1))["last"] == 20
        await tell(peer, message(2, "bob", "hello\x1b[2J"))
        await tell(peer, {"type": "user_presence", "data": {"userId": "bob", "status": "online"}})
        typing = {"type": "typing_indicator", "channel": "conversation:lobby"}
        await tell(peer, {**typing, "data": {"userId": "bob", "isTyping": True}})
        await tell(peer, {**typing, "data": {"userId": "ann", "isTyping": True}})
        command = await asked(peer)
        sent.append(command)
        await tell(peer, {"type": "ack", "data": {}, "id": command["id"]})
        await tell(peer, message(3, "ann", command["data"]["content"], command["data"]["clientMessageId"]))
        await peer.wait_closed()

    async with played(script) as url:
        terminal = await Terminal.run(url, "chat", "lobby")
        try:
            assert await terminal.line() == "* ann in lobby; a line is sent by Enter, Ctrl-D leaves"
            assert (await terminal.line()).endswith(" bob: hello\\u001b[2J")
            assert await terminal.line() == "* bob is online"
            assert await terminal.line() == "* bob is typing"
            terminal.write("  hi Bob \n\n")
            assert (await terminal.line()).endswith(" ann: hi Bob")
            code, out, err = await terminal.end()
        finally:
            terminal.kill()
    assert (code, out, err) == (0, "", "")
    assert sent[0]["type"] == "send_message"
    assert sent[0]["data"]["conversationId"] == "lobby"
    assert len(sent[0]["data"]["clientMessageId"]) == 36


async def test_chat_shows_what_other_systems_published_under_names_of_the_server() -> None:
    channel = {"channel": "conversation:lobby", "timestamp": "2026-01-02T03:04:05.678Z"}

    async def script(peer: ServerConnection) -> None:
        await confirm(peer)
        for offset, data in enumerate(({"content": "done"}, {"userId": 7, "text": "x\x1b", "createdAt": "now"}, {}), 3):
            await tell(peer, {"type": "new_message", "data": data, "offset": offset, **channel})
        by_bob = {"type": "new_message", "data": {"content": "of bob"}, "userId": "bob"}
        await tell(peer, {**by_bob, "offset": 6, **channel})
        for data in (None, 1, {}, {"userId": 3, "isTyping": True}):
            for name in ("typing_indicator", "user_presence", "error"):
                await tell(peer, {"type": name, "data": data, **channel})
        await tell(peer, message(7, "bob", "whole"))
        await peer.wait_closed()

    async with played(script) as url:
        terminal = await Terminal.run(url, "chat", "lobby")
        try:
            await terminal.line()
            said: list[str] = []
            while not any("whole" in line for line in said):
                said.append(await terminal.line())
                assert said[-1], await terminal.end()
            code, out, err = await terminal.end()
        finally:
            terminal.kill()
    assert [line[6:] for line in said if line[0] != "*"] == [
        "unknown: done",
        '7: {"userId": 7, "text": "x\\u001b", "createdAt": "now"}',
        "unknown: {}",
        "bob: of bob",
        "bob: whole",
    ]
    assert (code, out, err) == (0, "", "")


async def test_chat_whose_input_is_open_ends_in_order_when_it_is_sent_away() -> None:
    async def script(peer: ServerConnection) -> None:
        await confirm(peer)
        await peer.close(4503, "removed")

    async with played(script) as url:
        terminal = await Terminal.run(url, "chat", "lobby")
        try:
            assert await terminal.line() == "* ann in lobby; a line is sent by Enter, Ctrl-D leaves"
            assert await terminal.line() == ""  # the end of its output, its input still open
            code, out, err = await terminal.end()
        finally:
            terminal.kill()
    assert (code, out, err) == (2, "", "realtime: the connection ended with 4503 removed\n")


async def test_chat_takes_who_is_online_in_place_of_what_it_knew() -> None:
    async def script(peer: ServerConnection) -> None:
        await tell(peer, presence("everyone", "ann", "bob", "\x1bcyd"))
        await confirm(peer)
        await tell(peer, {"type": "user_presence", "data": {"userId": "dan", "status": "online"}})
        await tell(peer, presence("everyone", "ann", "dan", "eve"))
        await tell(peer, presence("shared"))
        await tell(peer, presence("everyone", *(f"user{number:02}" for number in range(12))))
        await peer.wait_closed()

    async with played(script) as url:
        terminal = await Terminal.run(url, "chat", "lobby")
        try:
            assert await terminal.line() == "* ann in lobby; a line is sent by Enter, Ctrl-D leaves"
            assert await terminal.line() == "* online: \\u001bcyd, bob"
            assert await terminal.line() == "* dan is online"
            for line in ("\\u001bcyd is offline", "bob is offline", "eve is online"):
                assert await terminal.line() == f"* {line}"
            shown = ", ".join(f"user{number:02}" for number in range(10))
            assert await terminal.line() == f"* online: {shown} and 2 more"
            code, out, err = await terminal.end()
        finally:
            terminal.kill()
    assert (code, out, err) == (0, "", "")


def presence(mode: str, *users: str) -> dict[str, object]:
    return {"type": "presence_mode", "data": {"mode": mode, "users": users} if users else {"mode": mode}}


async def test_a_line_is_sent_again_under_its_name_after_a_lost_connection() -> None:
    names: list[str] = []

    async def script(peer: ServerConnection) -> None:
        await confirm(peer)
        command = await asked(peer)
        names.append(command["data"]["clientMessageId"])
        if len(names) == 1:
            peer.transport.abort()
            return
        await tell(peer, {"type": "ack", "data": {}, "id": command["id"]})
        await tell(peer, message(3, "ann", "hi", names[0]))
        await peer.wait_closed()

    async with played(script) as url:
        terminal = await Terminal.run(url, "chat", "lobby")
        terminal.write("hi\n")
        code, _, err = await terminal.end()
    assert (code, err) == (0, "")
    assert len(names) == 2
    assert names[0] == names[1]
