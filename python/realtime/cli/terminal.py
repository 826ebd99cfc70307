"""Clients for the terminal: `sub` prints a channel, `pub` publishes to it, `chat` is the second person in a demo.

Thin over `realtime.client`. After a lost connection `sub` and `chat` come back by themselves, after 1, 2, 4, 8 and then
16 s, with the position of the last event, so that nothing is shown twice and nothing is missed. What other people
wrote is shown without control characters: a message must not steer anybody's terminal.
"""

import asyncio
import json
import os
import sys
import threading
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from datetime import datetime
from functools import partial
from typing import Any, Self

from realtime.client import (
    Client,
    CommandFailed,
    ConnectionEnded,
    Event,
    NotConnected,
    Position,
    connect,
)

try:
    import readline
    import termios
except ImportError:  # not on every system; the prompt is plain then
    _EDITS_LINES = False
else:
    _EDITS_LINES = True

_BACKOFF_S = (1, 2, 4, 8, 16)
_SHOWN_TIMEOUT_S = 2.0
_TYPING_LOOK_S = 0.5
_TYPING_AGAIN_S = 10.0
_PEOPLE_SHOWN_MAX = 10


def safe(text: object) -> str:
    """Return `text` with everything that is not printable shown as its escape."""
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in str(text))


async def subscribe(url: str, token: str, channel: str, last: int | None) -> None:
    """Print each event of `channel` as one line of JSON, until the process is ended."""
    position: Position | None = None
    async with aclosing(_lasting(url, token)) as clients:
        async for client in clients:
            try:
                confirmed = await client.subscribe(channel, last=None if position else last, position=position)
                position = confirmed.position
                _say(f"subscribed to {confirmed.channel}")
                async for event in client:
                    if event.channel == confirmed.channel:
                        position = _after(position, event)
                        sys.stdout.write(safe(event.raw) + "\n")
                        sys.stdout.flush()
            except ConnectionEnded as end:
                if not end.may_come_back:
                    raise
                _say(str(end))


async def publish(url: str, token: str, channel: str, event: str, data: Any) -> None:
    """Publish one event and leave when the server has taken it."""
    async with connect(url, token=token) as client:
        await client.publish(channel, event, data)


async def chat(url: str, token: str, conversation: str, last: int) -> None:
    """Show a conversation and send what is typed, until the input ends."""
    with _Screen() as screen:
        room = _Room(conversation, last, screen)
        talking = asyncio.create_task(room.talk(url, token))
        writing = asyncio.create_task(room.write())
        try:
            await asyncio.wait([talking, writing], return_when=asyncio.FIRST_COMPLETED)
            if talking.done():
                talking.result()
            if writing.done():
                writing.result()
        finally:
            for task in (talking, writing):
                task.cancel()
            await asyncio.wait([talking, writing])


class _Room:
    """One conversation in a terminal: what has been seen, and the connection while there is one."""

    def __init__(self, conversation: str, last: int, screen: "_Screen") -> None:
        self._conversation = conversation
        self._channel = f"conversation:{conversation}"
        self._last = last
        self._screen = screen
        self._position: Position | None = None
        self._client: Client | None = None
        self._connected = asyncio.Event()
        self._typists: set[str] = set()
        # Who was said to be online; None while that is not known.
        self._people: set[str] | None = None
        self._unshown: set[str] = set()
        self._all_shown = asyncio.Event()

    async def talk(self, url: str, token: str) -> None:
        """Keep connected and show what comes."""
        async with aclosing(_lasting(url, token, self._screen.note)) as clients:
            async for client in clients:
                try:
                    await self._follow(client)
                except ConnectionEnded as end:
                    if not end.may_come_back:
                        raise
                    self._screen.note(str(end))
                finally:
                    self._client = None
                    self._connected.clear()

    async def _follow(self, client: Client) -> None:
        confirmed = await client.subscribe(
            self._channel, last=None if self._position else self._last, position=self._position
        )
        if confirmed.recovered is False:
            self._screen.note("some messages could not be fetched again")
        if self._position is None:
            self._screen.note(f"{client.user} in {self._conversation}; a line is sent by Enter, Ctrl-D leaves")
        self._position = confirmed.position
        self._client = client
        self._connected.set()
        async for event in client:
            self._position = _after(self._position, event) if event.channel == self._channel else self._position
            self._show(event, client.user)

    def _show(self, event: Event, user: str) -> None:
        # Other systems and apps publish events under these names too, with whatever data they have.
        data = event.data if isinstance(event.data, dict) else {}
        who = data.get("userId")
        match event.type:
            case "new_message" if event.channel == self._channel:
                self._typists.discard(str(who))
                self._came_back(data.get("clientMessageId"))
                self._screen.line(_message_line(data, event))
            case "user_presence" if isinstance(who, str):
                self._note_presence(who, data.get("status") == "online", user)
            case "presence_mode":
                self._note_people(data.get("users"), user)
            case "typing_indicator" if event.channel == self._channel and isinstance(who, str) and who != user:
                if data.get("isTyping") and who not in self._typists:
                    self._screen.note(f"{safe(who)} is typing")
                (self._typists.add if data.get("isTyping") else self._typists.discard)(who)
            case "error":
                self._screen.note(safe(data.get("message")))
            case _:
                pass

    def _note_presence(self, who: str, is_online: bool, user: str) -> None:
        if self._people is not None:
            (self._people.add if is_online else self._people.discard)(who)
        if who != user:
            self._screen.note(f"{safe(who)} is {'online' if is_online else 'offline'}")

    def _note_people(self, users: list[str] | None, user: str) -> None:
        """Take who is online in place of what was known; say what is other than it was said to be."""
        known, self._people = self._people, None if users is None else set(users)
        if known is not None and self._people is not None:
            for who in sorted((known ^ self._people) - {user}):
                self._screen.note(f"{safe(who)} is {'online' if who in self._people else 'offline'}")
        elif others := sorted((self._people or set()) - {user}):
            more = f" and {len(others) - _PEOPLE_SHOWN_MAX} more" if len(others) > _PEOPLE_SHOWN_MAX else ""
            self._screen.note(f"online: {', '.join(map(safe, others[:_PEOPLE_SHOWN_MAX]))}{more}")

    async def write(self) -> None:
        """Send each line of the input; each again under the same clientMessageId until the server has it."""
        await self._connected.wait()
        typing = asyncio.create_task(self._type())
        try:
            while (line := await self._screen.read()) is not None:
                if line.strip():
                    await self._send(line.strip())
            if self._unshown:
                # An ack and its message have no order between them: leave when one's own last lines were seen.
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._all_shown.wait(), _SHOWN_TIMEOUT_S)
        finally:
            typing.cancel()

    def _came_back(self, client_message_id: object) -> None:
        self._unshown.discard(str(client_message_id))
        if not self._unshown:
            self._all_shown.set()

    async def _send(self, content: str) -> None:
        client_message_id = str(uuid.uuid4())
        self._unshown.add(client_message_id)
        self._all_shown.clear()
        while True:
            await self._connected.wait()
            client = self._client
            if client is None:
                continue
            message = {
                "conversationId": self._conversation,
                "content": content,
                "clientMessageId": client_message_id,
            }
            try:
                await client.send("send_message", message)
            except ConnectionEnded:
                self._connected.clear()
            except CommandFailed as failure:
                if not failure.retryable:
                    self._came_back(client_message_id)
                    self._screen.note(f"not sent: {safe(failure)}")
                    return
                await asyncio.sleep(1)
            else:
                return

    async def _type(self) -> None:
        """Tell the others while there is an unfinished line on the screen."""
        seen, quiet_s, told = "", 0.0, False
        while True:
            await asyncio.sleep(_TYPING_LOOK_S)
            draft = self._screen.draft()
            quiet_s = quiet_s + _TYPING_LOOK_S if draft == seen else 0.0
            typing = draft != "" and quiet_s < _TYPING_AGAIN_S
            seen = draft
            if typing != told and self._client is not None:
                told = typing
                with suppress(ConnectionEnded):
                    name = "typing_start" if typing else "typing_stop"
                    await self._client.tell(name, {"conversationId": self._conversation})


class _Screen:
    """Lines above, a prompt below. Without a terminal it only reads lines and prints lines."""

    _PROMPT = "> "

    def __init__(self) -> None:
        self._terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._buffer: Callable[[], str] = str
        self._restore: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        if self._terminal:
            self._take_terminal()
        loop = asyncio.get_running_loop()
        # A daemon: nothing can take a thread out of a blocking read, and the process must end all the same.
        threading.Thread(target=self._read_lines, args=(loop,), name="input", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def line(self, text: str) -> None:
        """Show one line."""
        if self._terminal:
            sys.stdout.write(f"\r\x1b[K{text}\n{self._PROMPT}{self._buffer()}")
        else:
            sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Show one line that nobody said."""
        self.line(f"\x1b[2m* {text}\x1b[0m" if self._terminal else f"* {text}")

    def draft(self) -> str:
        """Return the line that is being written."""
        return self._buffer()

    async def read(self) -> str | None:
        """Return the next line; None at the end of the input."""
        return await self._lines.get()

    def _take_terminal(self) -> None:
        if _EDITS_LINES:
            self._buffer = readline.get_line_buffer
            descriptor, before = sys.stdin.fileno(), termios.tcgetattr(sys.stdin.fileno())
            self._restore = partial(termios.tcsetattr, descriptor, termios.TCSADRAIN, before)

    def _read_lines(self, loop: asyncio.AbstractEventLoop) -> None:
        # The loop may be closed by the time that the last line comes.
        with suppress(RuntimeError):
            while True:
                try:
                    text = input(self._PROMPT) if self._terminal else self._plain_line()
                except (EOFError, OSError, UnicodeDecodeError):
                    loop.call_soon_threadsafe(self._lines.put_nowait, None)
                    return
                if self._terminal:
                    # The message comes back from the server with its time; what was typed makes room for it.
                    sys.stdout.write("\x1b[1A\r\x1b[K")
                    sys.stdout.flush()
                loop.call_soon_threadsafe(self._lines.put_nowait, text)

    def _plain_line(self) -> str:
        # Past the buffer of sys.stdin: the interpreter aborts where a thread holds its lock at the end.
        raw = b""
        while not raw.endswith(b"\n") and (read := os.read(sys.stdin.fileno(), 1)):
            raw += read
        if not raw:
            raise EOFError
        return raw.decode(sys.stdin.encoding)


def _message_line(message: dict[str, Any], event: Event) -> str:
    """Return the line of a `new_message`; an existing API or an event hook may leave out what it is made of."""
    author = event.user_id or message.get("userId") or message.get("role") or "unknown"
    content = message.get("content")
    if not isinstance(content, str):
        content = json.dumps(message, ensure_ascii=False)
    at = _clock(message.get("createdAt")) or _clock(event.timestamp) or "--:--"
    return f"{at} {safe(author)}: {safe(content)}"


def _clock(timestamp: object) -> str | None:
    try:
        return datetime.fromisoformat(str(timestamp)).astimezone().strftime("%H:%M")
    except (ValueError, OverflowError, OSError):
        return None


def _say(text: str) -> None:
    sys.stderr.write(f"* {text}\n")


async def _lasting(url: str, token: str, tell: Callable[[str], None] = _say) -> AsyncGenerator[Client, None]:
    """Yield a connection, and another one each time that the last has ended; the first one must succeed."""
    attempt = 0
    first = True
    while True:
        told_s: float | None = None
        try:
            async with connect(url, token=token) as client:
                attempt, first = 0, False
                yield client
            told_s = client.reconnect_in_s
        except NotConnected:
            if first:
                raise
        delay_s = _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)] if told_s is None else told_s
        attempt += 1
        tell(f"connecting again in {delay_s:.3g} s")
        await asyncio.sleep(delay_s)


def _after(position: Position | None, event: Event) -> Position | None:
    if position is None or event.offset is None:
        return position
    return Position(max(position.offset, event.offset), position.epoch)
