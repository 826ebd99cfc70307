"""An app where it cannot run: one line says what to do."""

import asyncio
import threading
from typing import Any

import pytest

from realtime import Realtime
from realtime.base.config import ServerSettings, Settings


async def test_an_asgi_server_that_asks_for_the_lifespan_is_refused_with_what_to_do() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    await Realtime()({"type": "lifespan"}, receive, send)
    await Realtime()({"type": "lifespan"})(receive, send)
    for message in sent:
        assert message["type"] == "lifespan.startup.failed"
        assert "realtime serve module:app" in message["message"]
        assert "\n" not in message["message"]
    assert len(sent) == 2


async def test_a_request_is_answered_503_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await Realtime()({"type": "http"}, None, send)
    assert sent[0]["status"] == 503
    assert b"lifespan=app.lifespan" in sent[1]["body"]
    told: list[str] = []
    body = Realtime()({"REQUEST_METHOD": "GET"}, lambda status, _: told.append(status))
    assert told == ["503 Service Unavailable"]
    assert b"gunicorn -w 1" in b"".join(body)
    assert [record.exc_info for record in caplog.records] == [None, None]


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        Realtime(settings=Settings()).run()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


async def test_run_beside_a_running_loop_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert "one runs already; use `async with app.lifespan():` within it" in refused(capsys)


def test_run_on_another_thread_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    thread = threading.Thread(target=lambda: lines.append(refused(capsys)))
    thread.start()
    thread.join()
    assert "needs the main thread" in lines[0]


async def test_a_second_worker_of_a_host_is_told_that_an_app_is_one_process(tmp_path: Any) -> None:
    settings = Settings(data_dir=str(tmp_path), server=ServerSettings(port=0, shards=1))
    async with Realtime(settings=settings).lifespan():
        await asyncio.sleep(0)
        with pytest.raises(Exception, match=r"in use by another process; .* one worker") as failed:
            async with Realtime(settings=settings).lifespan():
                pass
        assert failed.value.code == "data_dir_locked"  # type: ignore[attr-defined]
