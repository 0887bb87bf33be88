"""A browser shows a page without scripts, without the network and without scrolling sideways."""

import html as escaping
import json
import re
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from datarater.report.evaluation import evaluation_page
from datarater.report.html import render
from datarater.report.page import Page
from tests.datarater.report.test_evaluation import evaluation
from tests.datarater.report.test_html import HOSTILE, page_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
LONG = "word" * 200
PAGES = {
    "hostile": page_of(HOSTILE),
    "long": page_of(LONG),
    "right_to_left": page_of("مرحبا שלום \u202e" * 20),
    "evaluation": evaluation_page(evaluation()),
}
WIDTHS = (360, 390, 768, 1280)
MEASURE = """<!DOCTYPE html><title>waiting</title><script>
const widths = WIDTHS, found = {};
function measure(width) {
  const frame = document.createElement('iframe');
  frame.width = width; frame.height = 900; frame.src = 'page.html';
  frame.onload = () => {
    const inner = frame.contentDocument.documentElement;
    found[width] = {
      scroll: inner.scrollWidth, client: inner.clientWidth, height: inner.scrollHeight,
      scripts: frame.contentDocument.scripts.length, changed: frame.contentWindow.changed === 1,
      ink: frame.contentWindow.getComputedStyle(frame.contentDocument.body).color,
      paper: frame.contentWindow.getComputedStyle(frame.contentDocument.body).backgroundColor,
    };
    if (Object.keys(found).length == widths.length) document.title = JSON.stringify(found);
  };
  document.documentElement.append(frame);
}
widths.forEach(measure);
</script>"""


class _Requests(socketserver.BaseRequestHandler):
    seen: ClassVar[list[bytes]] = []

    def handle(self) -> None:
        self.seen.append(self.request.recv(4096))


@pytest.fixture
def network() -> Iterator[tuple[int, list[bytes]]]:
    """A server in place of every other host; yields its port and what was asked of it."""
    _Requests.seen = []
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Requests) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], _Requests.seen
        server.shutdown()


def browse(folder: Path, page: str, *flags: str) -> tuple[str, str]:
    """Opens a page; returns the document as the browser leaves it, and the console."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update",
            "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr", "--virtual-time-budget=5000", *flags, "--dump-dom",
            f"file://{folder / page}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return done.stdout, console


def measured(folder: Path, text: str, *flags: str) -> dict[str, dict[str, Any]]:
    """Opens a page in frames of several widths, and returns what a script outside measures."""
    (folder / "page.html").write_text(text)
    (folder / "measure.html").write_text(MEASURE.replace("WIDTHS", str(list(WIDTHS))))
    shown, console = browse(folder, "measure.html", "--allow-file-access-from-files", *flags)
    title = re.search("<title>(.*?)</title>", shown)
    assert title is not None
    assert title[1] != "waiting", console
    found: dict[str, dict[str, Any]] = json.loads(escaping.unescape(title[1]))
    return found


@pytest.mark.parametrize("name", PAGES)
def test_no_width_needs_scrolling_sideways(name: str, tmp_path: Path) -> None:
    for width, found in measured(tmp_path, render(PAGES[name])).items():
        assert found["scroll"] == found["client"] <= int(width)
        assert found["scripts"] == 0


def test_the_measure_finds_a_page_that_is_too_wide(tmp_path: Path) -> None:
    wide = render(PAGES["evaluation"]).replace("<main>", "<main><pre>" + LONG + "</pre>")
    assert measured(tmp_path, wide)["360"]["scroll"] > 360


@pytest.mark.parametrize("name", PAGES)
def test_the_console_is_silent_and_the_network_untouched(
    name: str, tmp_path: Path, network: tuple[int, list[bytes]]
) -> None:
    port, seen = network
    (tmp_path / "page.html").write_text(render(PAGES[name]))
    _, console = browse(tmp_path, "page.html", f"--host-resolver-rules=MAP * 127.0.0.1:{port}")
    assert console == ""
    assert not [one for one in seen if b"example.com" in one]


def test_the_network_would_be_seen_and_the_policy_blocks_it(
    tmp_path: Path, network: tuple[int, list[bytes]]
) -> None:
    port, seen = network
    rules = f"--host-resolver-rules=MAP * 127.0.0.1:{port}"
    inside = '<main><img src="http://example.com/a"><script>document.title = "ran"</script>'
    page = render(Page("title", "lead", [], [])).replace("<main>", inside)

    (tmp_path / "page.html").write_text(page)
    shown, console = browse(tmp_path, "page.html", rules)
    assert "<title>title</title>" in shown
    assert "Content Security Policy" in console
    assert not [one for one in seen if b"example.com" in one]

    (tmp_path / "page.html").write_text(re.sub('<meta http-equiv="[^>]*>', "", page))
    shown, _ = browse(tmp_path, "page.html", rules)
    assert "<title>ran</title>" in shown
    assert [one for one in seen if b"example.com" in one]


def test_a_dark_screen_has_a_dark_page(tmp_path: Path) -> None:
    text = render(PAGES["evaluation"])
    light = measured(tmp_path, text, "--blink-settings=preferredColorScheme=1")["768"]
    dark = measured(tmp_path, text, "--blink-settings=preferredColorScheme=0")["768"]
    assert light["paper"] == "rgb(255, 255, 255)"
    assert dark["paper"] == "rgb(20, 23, 26)"
    assert light["ink"] != dark["ink"]
