"""What stands in the way of the studio is one sentence that names the command to type; no gradio is needed here."""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
import socket
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.cli.test_cli import vistok
from vistok.errors import VistokError
from vistok.studio import server
from vistok.studio.server import LEAST_GRADIO, OwnOnly, address_of, check_port


@pytest.fixture
def taken():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held.getsockname()[1]


def install(monkeypatch, version):
    """Lets this version of gradio seem to be installed; None for none."""

    def found(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", found)


@pytest.mark.parametrize("version", [None, "5.50.0", "6.0.0", "6.23.1"])
def test_a_missing_or_older_extra_names_what_to_install(version, monkeypatch):
    install(monkeypatch, version)
    refused = vistok("studio")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "pip install 'vistok[studio]'" in refused.stderr and (version or "not installed") in refused.stderr


def test_the_extra_asks_for_what_the_studio_needs():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    (least,) = re.findall(r'studio = \["gradio>=([\d.]+)"\]', text)
    assert tuple(map(int, least.split("."))) == LEAST_GRADIO


def test_a_port_in_use_names_one_that_is_free(taken, monkeypatch):
    install(monkeypatch, "6.24.0")
    refused = vistok("studio", "--port", str(taken))
    assert refused.returncode == 2 and str(taken) in refused.stderr
    free = int(refused.stderr.split("--port ")[1].rstrip(".\n"))
    assert free != taken
    check_port("127.0.0.1", free)


def test_ctrl_c_is_how_it_ends(monkeypatch, capsys):
    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            raise KeyboardInterrupt

    monkeypatch.setattr(threading, "Event", Interrupted)
    monkeypatch.setattr(server, "served", lambda options, host, port: nullcontext(address_of(host, port)))
    server.serve(None, "127.0.0.1", 7861)
    told = capsys.readouterr()
    assert "http://localhost:7861/" in told.out and not told.err


@pytest.mark.parametrize(("host", "name"), [("127.0.0.1", "localhost"), ("::1", "[::1]"), ("0.0.0.0", "0.0.0.0")])
def test_the_address_is_one_of_a_browser(host, name):
    assert address_of(host, 7860) == f"http://{name}:7860/"


@pytest.mark.parametrize(
    ("host", "port", "culprit"), [("127.0.0.1", 0, "0"), ("127.0.0.1", 70000, "70000"), ("not a host", 7860, "a host")]
)
def test_what_is_no_address_is_told(host, port, culprit):
    with pytest.raises(VistokError, match=f"{culprit}.*type vistok studio"):
        check_port(host, port)


def test_the_browser_is_told_to_load_nothing_from_elsewhere():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    asyncio.run(OwnOnly(app)({"type": "http"}, None, send))
    headers = dict(sent[0]["headers"])
    assert headers[b"x"] == b"y" and b"default-src 'self'" in headers[b"content-security-policy"]
    assert b"http:" not in headers[b"content-security-policy"] and sent[1]["body"] == b""
