"""Answers a browser on this machine; nothing is fetched from elsewhere, and uploads go when the server goes."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from vistok.errors import VistokError
from vistok.progress import at_rest

if TYPE_CHECKING:
    from vistok.studio.page import Options

LEAST_GRADIO = (6, 24)  # the first whose launch knows run_history
PORT = 7860
LOCALHOST = "127.0.0.1"
LARGEST_UPLOAD = "10mb"
# Whatever a page may ask for comes from this server; gradio's own templates need inline scripts.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:"
)


def check_gradio() -> None:
    """Raises VistokError where gradio is not installed, or is older than the studio needs."""
    try:
        found = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        raise VistokError(
            "the studio needs gradio, which is not installed: type pip install 'vistok[studio]'."
        ) from None
    if tuple(map(int, found.split(".")[:2])) < LEAST_GRADIO:
        least = ".".join(map(str, LEAST_GRADIO))
        raise VistokError(f"the studio needs gradio {least} or newer, not {found}: type pip install 'vistok[studio]'.")


def check_port(host: str, port: int) -> None:
    """Refuses an address that cannot be served on.

    Raises:
        VistokError: the port is no port, is in use, or may not be used, or the host is not this machine's.
    """
    if not 1 <= port <= 65535:
        raise VistokError(f"a port is a number from 1 to 65535, got {port}: type vistok studio --port {PORT}.")
    if _is_free(host, port):
        return
    try:
        socket.getaddrinfo(host, port)
    except OSError:
        raise VistokError(f"'{host}' is no address of this machine: type vistok studio --host {LOCALHOST}.") from None
    free = next((other for other in range(max(port + 1, 1024), port + 1200) if _is_free(host, other)), PORT)
    raise VistokError(f"port {port} is in use or not allowed: type vistok studio --port {free}.")


def _is_free(host: str, port: int) -> bool:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind((host, port))
    except (OSError, OverflowError):
        return False
    return True


def address_of(host: str, port: int) -> str:
    """Returns what to type into a browser."""
    name = "localhost" if host == LOCALHOST else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/"


class OwnOnly:
    """ASGI middleware that tells the browser to load nothing from elsewhere."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"content-security-policy", POLICY.encode())]
                message = message | {"headers": [*headers, (b"referrer-policy", b"no-referrer")]}
            await send(message)

        await self.app(scope, receive, sent)


@contextmanager
def served(options: Options, host: str = LOCALHOST, port: int = PORT) -> Iterator[str]:
    """Serves the page while it is open; yields its address.

    Args:
        options: what is shown.
        host: address to listen on.
        port: see :func:`check_port`.

    Raises:
        VistokError: gradio is missing, the port cannot be used, or a model cannot be loaded.
    """
    check_gradio()
    check_port(host, port)
    with tempfile.TemporaryDirectory(prefix="vistok-studio-") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}  # before gradio is imported
        from starlette.middleware import Middleware

        from vistok.studio.page import CSS, build, theme

        page = build(options)
        try:
            page.queue(default_concurrency_limit=1).launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=LARGEST_UPLOAD,
                footer_links=[],
                ssr_mode=False,
                enable_monitoring=False,
                run_history=False,
                theme=theme(),
                css_paths=CSS,
                app_kwargs={"middleware": [Middleware(OwnOnly)]},
            )
            yield address_of(host, port)
        finally:
            page.close(verbose=False)


def serve(options: Options, host: str = LOCALHOST, port: int = PORT, browser: bool = False) -> None:
    """Serves the page until Ctrl-C or SIGTERM, which are how it is meant to end.

    Args:
        options, host, port: see :func:`served`.
        browser: open it in a browser.

    Raises:
        VistokError: see :func:`served`.
    """
    import threading

    with served(options, host, port) as address:
        at_rest()
        print(f"vistok studio: {address}  (Ctrl+C ends it)", flush=True)
        if host not in (LOCALHOST, "localhost", "::1"):
            print("vistok: whoever reaches this address can use the studio and read pictures here.", file=sys.stderr)
        if browser and not webbrowser.open(address):
            print(f"vistok: no browser was found here: open {address} in yours.", file=sys.stderr)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
