"""A page is one closed file: no text becomes a tag, and nothing runs or loads."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.report.html import render
from datarater.report.markup import style_sheet
from datarater.report.page import (
    BarRow,
    BarTable,
    Block,
    Curve,
    Curves,
    Excerpt,
    Excerpts,
    Facts,
    HeatMap,
    Histogram,
    Hue,
    IntervalRow,
    Intervals,
    Note,
    Page,
    Section,
    Table,
    Tile,
    Tiles,
)
from datarater.report.visible import visible

HOSTILE = (
    "</style></title><script>alert(1)</script><img src='http://example.com/a' onerror=x>\"'&lt;"
)
VOID = {"meta"}


def page_of(text: str) -> Page:
    """Returns a page that has the text in every place that takes one."""
    excerpt = Excerpt(1.0, text, Hue.KEPT, {text: text}, text, 3)
    missing = Excerpt(-1.0, text, Hue.DROPPED, {}, None, 0, text)
    blocks: list[Block] = [
        Tiles([Tile(text, text, text, Hue.KEPT)], [(text, 3, Hue.KEPT), (text, 1, Hue.DROPPED)]),
        Facts([(text, text)]),
        Note(text, text),
        Note(text),
        Table(text, [text, text], [[text, text]], text),
        BarTable(text, [text], text, [BarRow([text], 0.5)], mark=(0.3, text), caption=text),
        Histogram(text, [0, 1, 2], [(Hue.KEPT, text, [1, 2])], text, text, (1.0, text), text),
        HeatMap(
            text, [1, 10, 100], [0, 1, 2], [[1, 0], [2, 3]], text, text,
            ([(2, 0.5), (20, 1.5)], text), (1.0, text), text,
        ),
        Curves(text, [Curve(text, [1, 2], [2, 1], [1, 0.5], [3, 1.5])], text, text, caption=text),
        Intervals(text, [text, text], text, [IntervalRow([text, text], 1, 0.5, 2)], 1, text),
        Excerpts(text, [excerpt, missing], text),
    ]  # fmt: skip
    sections = [Section(text, blocks[:3]), Section(text, blocks[3:])]
    return Page(text, text, [text, text], sections, [text])


class Outline(HTMLParser):
    """Records the tags with the names of their attributes, and all text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.comments = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *sorted(name for name, _ in attrs)))
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_comment(self, data: str) -> None:
        self.comments += 1


@given(st.text(st.characters(exclude_categories=()), min_size=1) | st.just(HOSTILE))
def test_no_text_adds_a_tag_or_an_attribute(text: str) -> None:
    html = render(page_of(text))
    outline = Outline(html)
    assert outline.tags == Outline(render(page_of("x"))).tags
    assert (outline.open, outline.comments) == ([], 0)
    assert visible(html) == html
    html.encode()


def test_hostile_text_can_be_read() -> None:
    assert visible(HOSTILE) in Text(render(page_of(HOSTILE))).joined


class Text(HTMLParser):
    """Joins the text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.joined = ""
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.joined += data


def test_the_policy_allows_the_own_style_sheet_and_nothing_else() -> None:
    html = render(page_of("x"))
    css = re.search("<style>(.*)</style>", html, re.DOTALL)
    assert css is not None
    digest = base64.b64encode(hashlib.sha256(css[1].encode()).digest()).decode()
    values = [value for _, value in Outline(html).attributes]
    assert (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        in values
    )


def test_a_page_runs_nothing_and_names_no_place_to_load_from() -> None:
    outline = Outline(render(page_of("x")))
    assert not {tag for tag, *_ in outline.tags} & {"script", "link", "img", "iframe", "object"}
    names = {name for name, _ in outline.attributes}
    assert not names & {"src", "href", "style", "srcset", "xlink:href"}
    assert not any(name.startswith("on") for name in names)


def test_every_picture_has_a_name_and_a_description() -> None:
    html = render(page_of("x"))
    pictures = re.findall("<svg.*?</svg>", html, re.DOTALL)
    assert len(pictures) >= 6
    for picture in pictures:
        assert 'role="img"' in picture
        assert re.search('aria-label="x[^"]+"|aria-label="[^"]{3,}"', picture)
        assert "<title>" in picture
        assert "<desc>" in picture


def test_warnings_come_before_everything_but_the_title_and_its_lead() -> None:
    html = render(Page("title", "lead", ["first", "second"], [Section("one", [Note("note")])]))
    places = [html.index(word) for word in ("lead<", "first<", "second<", "note<")]
    assert places == sorted(places)
    assert "2 warnings" in html
    assert "No warnings." in render(Page("title", "lead", [], []))


def test_a_style_sheet_that_would_close_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot contain"):
        style_sheet("a {} </STYLE><script>")
