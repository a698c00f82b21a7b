"""The studio in a real browser, driven by Playwright; skipped where gradio, Playwright or Chromium is missing.

``VISTOK_SCREENSHOTS=FOLDER`` keeps how the page looks at the end of each test.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from vistok.data.images import save_image
from vistok.studio import see

pytest.importorskip("gradio", reason="the studio's page needs gradio: pip install 'vistok[studio]'")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

pytestmark = [
    pytest.mark.slow(reason="a server and a browser start, and every tab computes: a minute"),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium"),
]
WAIT = 120_000  # milliseconds


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    folder = tmp_path_factory.mktemp("studio")
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "vistok", "studio", "--port", str(port), "--device", "cpu"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            url = f"http://127.0.0.1:{port}/"
            for _ in range(240):
                if server.poll() is not None:
                    pytest.fail((folder / "log").read_text())
                try:
                    urlopen(url, timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield url
            assert "Traceback" not in (folder / "log").read_text()
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, address, request):
    opened, strangers, errors = chromium.new_page(viewport={"width": 1280, "height": 860}), [], []
    opened.set_default_timeout(WAIT)
    local = (address, address.replace("http", "ws", 1), "data:", "blob:")
    opened.on("request", lambda asked: asked.url.startswith(local) or strangers.append(asked.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("#paint-go")
    yield opened
    if folder := os.environ.get("VISTOK_SCREENSHOTS"):
        opened.screenshot(path=Path(folder) / f"{request.node.name}.png", full_page=True)
    opened.close()
    assert not strangers, "the page asks for something from elsewhere"
    assert not errors


def choose(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def test_paint_by_the_keyboard(page):
    page.focus("#paint-prompt textarea, #paint-prompt input")
    page.keyboard.press("Control+A")
    page.keyboard.type("a green ring")
    page.keyboard.press("Enter")
    page.wait_for_selector("#paint-out .vs-bars")
    page.wait_for_selector("#paint-out >> text=fewer steps than plain decoding")
    assert page.locator("#paint-out img").count() == 3
    assert all(page.locator("#paint-out img").nth(i).get_attribute("alt") for i in range(3))


def test_a_mistake_is_shown_as_one_sentence(page):
    page.fill("#paint-prompt textarea, #paint-prompt input", "a zebra")
    page.click("#paint-go")
    alert = page.get_by_text("never saw 'zebra'")
    alert.wait_for()
    assert "Traceback" not in alert.inner_text()


def test_see(page):
    choose(page, "See")
    page.click("#see-scene")
    page.wait_for_function("document.querySelector('#see-question textarea, #see-question input').value.length > 5")
    page.click("#see-go")
    page.wait_for_selector("#see-out .vs-table")
    assert re.search(r"\d+ of \d+ visual tokens", page.inner_text("#see-out"))
    assert "MFLOPs" in page.inner_text("#see-out")


def test_tokens_of_an_uploaded_picture(page, tmp_path):
    save_image(see.example(5, 128)[0], tmp_path / "scene.png")
    choose(page, "Tokens")
    page.locator("input[type=file]:visible, .tabitem:visible input[type=file]").last.set_input_files(
        tmp_path / "scene.png"
    )
    page.wait_for_function("[...document.querySelectorAll('img')].some(i => i.src.includes('scene'))")
    page.click("#tokens-go")
    page.wait_for_selector("#tokens-out [aria-label=vq-mini]")
    assert "bytes" in page.inner_text("#tokens-out [aria-label=vq-mini]")


def test_too_large_an_upload_is_refused(page, tmp_path):
    (tmp_path / "large.png").write_bytes(b"\0" * 12_000_000)
    choose(page, "See")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "large.png")
    page.get_by_text(re.compile("maximum allowed size|exceed", re.I)).first.wait_for()


def test_write(page):
    choose(page, "Write")
    page.click("#write-go")
    page.wait_for_selector("#write-out .vs-chips")
    assert "tokens a forward" in page.inner_text("#write-out")
    assert page.locator("#write-out mark").count() > 0


def test_compare(page, tmp_path):
    for i in range(16):
        save_image(see.example(i)[0], tmp_path / f"set{i % 2}" / f"{i}.png")
    choose(page, "Compare")
    page.fill("#compare-reference input, #compare-reference textarea", str(tmp_path / "set0"))
    page.fill("#compare-samples input, #compare-samples textarea", str(tmp_path / "set1"))
    page.click("#compare-go")
    page.wait_for_selector("#compare-out .vs-chips")
    assert "fd-scenes-features" in page.inner_text("#compare-out")


def test_a_narrow_screen_needs_no_scrolling_sideways(page):
    page.set_viewport_size({"width": 360, "height": 740})
    page.click("#paint-go")
    page.wait_for_selector("#paint-out .vs-bars")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_it_listens_on_this_machine_alone(address):
    port = int(address.rsplit(":", 1)[1].strip("/"))
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("no /proc/net/tcp on this system")
    listening = [line.split()[1] for line in table.read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert [where for where in listening if where.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
