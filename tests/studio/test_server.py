"""What stands in the way of the studio is one sentence that names the command to type; no gradio is needed here."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys

import pytest

from tests.cli.test_cli import vistok
from vistok.errors import VistokError
from vistok.studio.server import OwnOnly, check_port


@pytest.fixture
def taken():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held.getsockname()[1]


def test_a_missing_extra_names_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused = vistok("studio")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "pip install 'vistok[studio]'" in refused.stderr


def test_a_port_in_use_names_one_that_is_free(taken, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: sys)
    refused = vistok("studio", "--port", str(taken))
    assert refused.returncode == 2 and str(taken) in refused.stderr
    free = int(refused.stderr.split("--port ")[1].rstrip(".\n"))
    assert free != taken
    check_port("127.0.0.1", free)


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
