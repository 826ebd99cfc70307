"""What deploy.md gives operators to copy: nginx takes its configuration and serves by it, systemd takes the unit.

Where nginx or systemd-analyze is missing, the form of each block is checked alone; `.ci/run` installs both.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

from tests import pages
from tests.kit import PATIENCE_S, eventually, free_port
from tests.pages import Block
from tests.scratch import Scratch

PAGE = "docs/howto/production.md"
SITE = "chat.example.com"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
EXPOSURE_MAX = 20
"""In tenths, as `systemd-analyze security --threshold` takes it."""


def of(language: str) -> list[Block]:
    return [
        block
        for page in pages.pages()
        for block in pages.blocks(page)
        if block.language == language and not block.reason
    ]


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    """A scratch home for one page."""
    with Scratch(tmp_path / "scratch") as made:
        yield made


class Proxy:
    """A page's nginx configuration as files of a scratch home, and the ports that it listens on."""

    def __init__(self, scratch: Scratch, block: Block) -> None:
        self.ports = {80: free_port(), 443: free_port()}
        listen = re.compile(r"(?<=listen )(80|443)\b")
        text = listen.sub(lambda match: f"127.0.0.1:{self.ports[int(match[1])]}", scratch.moved(block.text))
        scratch.make_folders(text)
        self.certificate = self._certificate(text)
        self.path = scratch.root / "nginx.conf"
        user = "user root;\n" if os.geteuid() == 0 else ""
        temporary = "".join(
            f"{name}_temp_path {scratch.root}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        self.path.write_text(
            f"{user}pid {scratch.root}/nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}{text}\n}}\n"
        )
        self.command = [str(NGINX), "-e", "stderr", "-p", str(scratch.root), "-c", str(self.path)]

    @staticmethod
    def _certificate(text: str) -> Path | None:
        named = re.search(r"ssl_certificate (\S+);\s+ssl_certificate_key (\S+);", text)
        if named is None:
            return None
        Path(named[1]).parent.mkdir(parents=True, exist_ok=True)
        request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        request += ["-days", "1", "-subj", f"/CN={SITE}", "-addext", f"subjectAltName=DNS:{SITE}"]
        subprocess.run([*request, "-out", named[1], "-keyout", named[2]], check=True, capture_output=True)
        return Path(named[1])

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve for the time of the block."""
        with subprocess.Popen([*self.command, "-g", "daemon off;"], stderr=subprocess.DEVNULL) as process:
            try:
                yield
            finally:
                process.terminate()
                process.wait(PATIENCE_S)


@pytest.mark.parametrize("block", of("nginx"), ids=str)
def test_nginx_takes_a_configuration(block: Block, scratch: Scratch) -> None:
    lines = [line.split("#")[0].strip() for line in block.text.splitlines()]
    assert all(line.endswith((";", "{", "}")) for line in lines if line)
    assert block.text.count("{") == block.text.count("}")
    if NGINX:
        said = subprocess.run([*Proxy(scratch, block).command, "-t"], capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("block", of("ini"), ids=str)
def test_systemd_takes_a_unit_and_finds_it_hardened(block: Block, scratch: Scratch) -> None:
    lines = [line for line in block.text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"\[\w+\]|[A-Z]\w+=.*", line) for line in lines), lines
    if not shutil.which("systemd-analyze"):
        return
    unit = scratch.root / Path(block.name).name
    unit.write_text(scratch.moved(block.text))
    verify = ["systemd-analyze", "verify", str(unit)]
    verified = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    rate = ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE_MAX}", "--no-pager", str(unit)]
    rated = subprocess.run(rate, capture_output=True, text=True, check=False)
    assert rated.returncode == 0, rated.stdout


def test_the_probes_and_ports_of_kubernetes_are_the_servers() -> None:
    (block,) = (each for each in of("yaml") if each.page == PAGE)
    pod = yaml.safe_load(block.text)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"ws": 3002, "http": 3001}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("liveness", "readiness")}
    assert probes == {
        "liveness": {"path": "/health", "port": "http"},
        "readiness": {"path": "/ready", "port": "http"},
    }
    assert pod["terminationGracePeriodSeconds"] > 25


def test_nothing_is_to_be_said_of_the_configuration_in_kubernetes(scratch: Scratch) -> None:
    (block,) = (each for each in of("yaml") if each.page == PAGE)
    (container,) = yaml.safe_load(block.text)["spec"]["template"]["spec"]["containers"]
    settings = "".join(f"{each['name']}={shlex.quote(each['value'])}\n" for each in container["env"])
    secret = "umask 077\nmkdir -p /run/secrets/realtime\nopenssl rand -base64 48 >/run/secrets/realtime/jwt\n"
    report = scratch.shell(f"{secret}{settings}realtime check", str(block))
    assert report.splitlines()[-1] == "Nothing stands against a start.", report
    assert "Warning" not in report


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed; .ci/run installs it")
def test_the_server_behind_the_proxy_of_the_page(scratch: Scratch) -> None:
    found = [block for block in pages.blocks(PAGE) if not block.reason]
    for block in found:
        if block.language == "sh" and ("openssl" in block.text or "export" in block.text):
            scratch.run(block)
        elif block.name:
            scratch.write(block.name, scratch.moved(block.text))
    scratch.serve("realtime serve --config /etc/realtime/realtime.toml", PAGE)
    proxy = Proxy(scratch, next(block for block in found if block.language == "nginx"))
    with proxy.running():
        asyncio.run(_through(scratch, proxy))
    scratch.stop()


async def _through(scratch: Scratch, proxy: Proxy) -> None:
    trusted = ssl.create_default_context(cafile=str(proxy.certificate))
    token = scratch.token("ann")
    log = scratch.root / "var" / "log" / "nginx" / "realtime.log"
    at: dict[str, Any] = {"host": "127.0.0.1", "port": proxy.ports[443], "ssl": trusted, "proxy": None}
    at["additional_headers"] = {"X-Forwarded-For": "203.0.113.7"}
    protocols = [Subprotocol("realtime.v1"), Subprotocol(f"bearer.{token}")]
    await eventually(log.exists, what="nginx")
    address = f"wss://{SITE}/ws"
    async with connect(address, subprotocols=protocols, origin=Origin(f"https://{SITE}"), **at) as socket:
        assert json.loads(await socket.recv())["type"] == "connection_established"
    await eventually(lambda: "203.0.113.7" in scratch.output, what="the client's address in the log")
    async with connect(address, subprotocols=protocols, origin=Origin("https://evil.example"), **at) as socket:
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 4502
    async with connect(f"{address}?token={token}", subprotocols=protocols[:1], **at) as socket:
        await socket.recv()
    await eventually(lambda: log.read_text().count("GET /ws") == 3, what="three lines in nginx's log")
    assert token not in log.read_text()
    base = f"https://127.0.0.1:{proxy.ports[443]}"
    headers = {"Host": SITE, "Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(base_url=base, headers=headers, verify=False) as web:
        assert (await web.get("/api/users/ann/sessions")).status_code == 200
        for path in ("/metrics", "/docs", "/ready", "/"):
            assert (await web.get(path)).status_code == 404
        plain = await web.get(f"http://127.0.0.1:{proxy.ports[80]}/ws?a=1")
        assert (plain.status_code, plain.headers["location"]) == (301, f"https://{SITE}/ws?a=1")
