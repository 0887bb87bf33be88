"""A browser shows a page without scripts, without the network and without scrolling sideways.

Starting a browser takes seconds, so one start opens every page at every width, in frames that a
script outside the pages measures.
"""

import html as escaping
import json
import re
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
WIDTHS = (360, 390, 768, 1280)
PAGES = {
    "hostile": render(page_of(HOSTILE)),
    "long": render(page_of(LONG)),
    "right_to_left": render(page_of("مرحبا שלום \u202e" * 20)),
    "evaluation": render(evaluation_page(evaluation())),
}


def with_content(host: str) -> str:
    """Returns a page whose text escaped: it loads an image and runs a script."""
    inside = f'<main><img src="http://{host}/a"><script>document.title = "ran"</script>'
    return render(Page("title", "lead", [], [])).replace("<main>", inside)


# Pages that show that the measurements can fail.
CONTROLS = {
    "wide": PAGES["evaluation"].replace("<main>", f"<main><pre>{LONG}</pre>"),
    "guarded": with_content("guarded.example.com"),
    "unguarded": re.sub('<meta http-equiv="[^>]*>', "", with_content("unguarded.example.com")),
}
MEASURE = """<!DOCTYPE html><title>waiting</title><script>
const frames = FRAMES, found = {};
for (const [name, width, scheme] of frames) {
  const frame = document.createElement('iframe');
  frame.width = width; frame.height = 900; frame.src = name + '.html';
  frame.style.colorScheme = scheme;
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    found[name + ' ' + width + ' ' + scheme] = {
      scroll: root.scrollWidth, client: root.clientWidth, title: page.title,
      scripts: page.scripts.length,
      ink: frame.contentWindow.getComputedStyle(page.body).color,
      paper: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    };
    if (Object.keys(found).length == frames.length) document.title = JSON.stringify(found);
  };
  document.documentElement.append(frame);
}
</script>"""


@dataclass(frozen=True)
class Visit:
    """What a browser made of the pages.

    Attributes:
        frames: Measurements, by page, width and color scheme.
        console: Messages, by page.
        hosts: Hosts that were asked for something.
    """

    frames: dict[tuple[str, int, str], dict[str, Any]]
    console: dict[str, list[str]]
    hosts: set[str]


def browse(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update",
            "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr", "--virtual-time-budget=5000", *flags,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def network() -> Iterator[tuple[int, list[bytes]]]:
    """A server in place of every other host; yields its port and what was asked of it."""
    seen: list[bytes] = []

    class Requests(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            seen.append(self.request.recv(4096))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Requests) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], seen
        server.shutdown()


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory, network: tuple[int, list[bytes]]) -> Visit:
    folder = tmp_path_factory.mktemp("browser")
    for name, text in {**PAGES, **CONTROLS}.items():
        (folder / f"{name}.html").write_text(text)
    frames = [(name, width, "light") for name in PAGES for width in WIDTHS]
    frames += [("evaluation", 768, "dark"), *((name, 360, "light") for name in CONTROLS)]
    (folder / "measure.html").write_text(MEASURE.replace("FRAMES", json.dumps(frames)))

    port, seen = network
    done = browse(
        folder,
        "--allow-file-access-from-files",
        f"--host-resolver-rules=MAP * 127.0.0.1:{port}",
        "--dump-dom",
        f"file://{folder}/measure.html",
    )
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None
    assert title[1] != "waiting", done.stderr
    found = {}
    for key, measures in json.loads(escaping.unescape(title[1])).items():
        name, width, scheme = key.split()
        found[name, int(width), scheme] = measures

    console: dict[str, list[str]] = {}
    for line in done.stderr.splitlines():
        if "CONSOLE" in line:
            source = re.search(r"/(\w+)\.html \(\d+\)$", line)
            console.setdefault(source[1] if source else "", []).append(line)
    hosts = {host for one in seen for host in re.findall(r"Host: ([\w.]+)", one.decode("latin-1"))}
    return Visit(found, console, hosts)


@pytest.mark.parametrize("name", PAGES)
def test_no_width_needs_scrolling_sideways_and_no_script_runs(name: str, visit: Visit) -> None:
    for width in WIDTHS:
        found = visit.frames[name, width, "light"]
        assert found["scroll"] == found["client"] <= width
        assert found["scripts"] == 0
    assert visit.frames["wide", 360, "light"]["scroll"] > 360


def test_the_pages_leave_the_console_silent_and_the_network_untouched(visit: Visit) -> None:
    assert set(visit.console) == {"guarded"}, visit.console
    assert visit.hosts & {"example.com", "guarded.example.com", "unguarded.example.com"} == {
        "unguarded.example.com"
    }


def test_the_policy_blocks_what_would_run_and_load_without_it(visit: Visit) -> None:
    assert visit.frames["guarded", 360, "light"]["title"] == "title"
    assert visit.frames["unguarded", 360, "light"]["title"] == "ran"
    assert all("Content Security Policy" in line for line in visit.console["guarded"])


def test_a_dark_screen_has_a_dark_page(visit: Visit) -> None:
    light, dark = (visit.frames["evaluation", 768, scheme] for scheme in ("light", "dark"))
    assert light["paper"] == "rgb(255, 255, 255)"
    assert dark["paper"] == "rgb(20, 23, 26)"
    assert light["ink"] != dark["ink"]
