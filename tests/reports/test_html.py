"""The page of a report: valid, complete, self-contained, and deaf to what names say."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from lorafa_prof.compare import compare
from lorafa_prof.reports.figures import KINDS
from lorafa_prof.reports.html import html_table, inline_svg, render_page
from lorafa_prof.reports.summary import MOST_ROWS, MOST_VERDICTS, verdict_table
from lorafa_prof.reports.table import Cell, Column, Table
from lorafa_prof.results import Fit, Memory, Promise, Threshold
from lorafa_prof.results.collection import Collection
from lorafa_prof.results.records import Record
from tests.support.hand_made import CARD, MIB, RUN, VERSIONS, measurement, memory, prediction, without_memory

#: Elements without an end.
VOID = {"meta", "br", "link", "img", "hr", "input"}
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> &amp; ${title} \x1b[2J\n</style></svg>'


class Page(HTMLParser):
    """Reads a page as a browser would, and fails where an element is not closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.cells: list[list[str]] = []
        self.values: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> within {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if any(tag in ("td", "th") for tag in self.open[-3:]):
            self.cells[-1][-1] += data

    def of(self, name: str) -> list[str | None]:
        return [value for _, attribute, value in self.attributes if attribute == name]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def collection(name: str = "small", **more: Any) -> Collection:
    run = RUN.replace(model=replace(RUN.model, name=name))
    seen = measurement(
        run=run, environment=CARD | {"device": name, "driver": name, "flags": {"a": [1, name]}},
        assumptions=(f"{name} assumed",),
        promises=(Promise(name=name, kept=False, detail=name, cost_bytes=5),),
    )  # fmt: skip
    gone = replace(without_memory("error", error=name), run=run)
    fit = Fit(device=name, capacity_bytes=3 * MIB, context_bytes=None, fits=False, headroom_bytes=-7 * MIB, max_bs=0)
    said = prediction(run=run, fit=(fit,), unmodelled=(name,), versions=VERSIONS | {"engine": "x", "other": name})
    limit = Threshold(
        engine="analytic", device=name, axis="bs", run=run, versions=VERSIONS, max=17, first_oom=18, limit=99,
        limited_by=name, capacity_bytes=3 * MIB, context_bytes=None, at_max=None, at_first_oom=None,
    )  # fmt: skip
    return Collection(
        measurements=(seen, gone), predictions=(said,), comparisons=(compare(seen, [said], [name]),),
        thresholds=(limit,), compared=(seen, said), **more,
    )  # fmt: skip


def page_of(found: Collection, title: str = "a title", *, figures: bool = True) -> str:
    drawings = [drawing for kind in KINDS.values() for drawing in kind.draw(found)] if figures else []
    return render_page(found, drawings, title, [title])


@pytest.fixture(scope="module")
def whole() -> str:
    return page_of(collection())


@pytest.fixture(scope="module")
def hostile() -> str:
    return page_of(collection(HOSTILE), HOSTILE)


class TestSelfContained:
    """Nothing is fetched, nothing runs."""

    @pytest.mark.parametrize("which", ["whole", "hostile"])
    def test_no_reference_leaves_the_page(self, which: str, request: pytest.FixtureRequest) -> None:
        """Links and paints point within it; no element or attribute that would load or run anything."""
        text = request.getfixturevalue(which)
        page = Page(text)
        ids = page.of("id")
        assert len(ids) == len(set(ids))
        for target in [*page.of("href"), *page.of("xlink:href")]:
            assert target is not None
            assert target.startswith("#")
            assert target[1:] in ids
        painted = re.findall(r"url\(([^)]*)\)", " ".join(value or "" for _, _, value in page.attributes))
        assert {paint.lstrip("#") for paint in painted} <= set(ids)
        assert not page.tags.keys() & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image"}
        assert not page.of("src")
        assert not [name for _, name, _ in page.attributes if name.startswith("on")]
        assert not re.search(r"@import|expression\(|javascript:", " ".join(v or "" for _, _, v in page.attributes))

    def test_the_policy_forbids_it_as_well(self, whole: str) -> None:
        """Before anything else is read, but the encoding."""
        policy = next(v for _, n, v in Page(whole).attributes if n == "content" and "default-src" in (v or ""))
        assert policy == "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
        assert whole.index("Content-Security-Policy") < whole.index("<title>") < whole.index("<style>")

    def test_the_same_page_each_time(self, whole: str) -> None:
        """No dates, no random names."""
        assert page_of(collection()) == whole


class TestStructure:
    """What a browser and a screen reader see."""

    def test_it_is_closed(self, whole: str) -> None:
        """Each element where it was opened; one title, one heading of the first order, sections in order."""
        page = Page(whole)
        assert whole.startswith('<!DOCTYPE html>\n<html lang="en">')
        assert (page.tags["h1"], page.tags["title"], page.tags["main"]) == (1, 1, 1)
        sections = [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]
        assert sections == ["summary", "figures", "tables", "environment", "assumptions", "unmodelled"]

    def test_tables_are_square(self, whole: str) -> None:
        """Every table has as many cells in each row as in its head, rows and columns are headed."""
        for table in re.findall(r"<table.*?</table>", whole, re.DOTALL):
            rows = Page(table).cells
            assert {len(row) for row in rows} == {len(rows[0])}
            assert table.count('<tr><th scope="row"') == len(rows) - 1

    def test_figures_are_described(self, whole: str) -> None:
        """Inline, with a label for those who do not see them, and a caption."""
        page = Page(whole)
        assert page.tags["svg"] == page.tags["figure"] == page.tags["figcaption"] >= 3
        labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
        assert all(label and label.endswith(".") for label in labels)

    def test_two_figures_share_no_names(self) -> None:
        """Every id of a figure begins with its own prefix, and what refers to it as well."""
        svg = b"""<?xml version="1.0"?>
<!DOCTYPE svg>
<svg viewBox="0 0 90 60" width="1"><metadata>x</metadata><defs><style type="text/css">*{a:b}</style><path id="m"/>
</defs><use xlink:href="#m"/><g clip-path="url(#p)"/></svg>"""
        text = inline_svg(svg, "f7", 'a "label"')
        assert text.startswith('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 90 60" style="width:120px')
        assert 'aria-label="a &quot;label&quot;"' in text
        assert 'id="f7-m"' in text
        assert 'href="#f7-m"' in text
        assert "url(#f7-p)" in text
        assert "metadata" not in text
        assert "<style" not in text


class TestEscaping:
    """Names, messages, versions, titles: all of it is text."""

    def test_nothing_becomes_an_element(self, hostile: str) -> None:
        """The same elements as with harmless names."""
        tame, wild = Page(page_of(collection("tame"))).tags, Page(hostile).tags
        assert {tag: n for tag, n in wild.items() if tag in ("script", "img", "style", "svg", "title")} == {
            "style": 1, "svg": tame["svg"], "title": 1,
        }  # fmt: skip
        assert wild["td"] == tame["td"]

    def test_it_is_still_said(self, hostile: str) -> None:
        """As text, one line, without what could steer a terminal."""
        page = Page(hostile)
        assert "<script>alert(1)</script>" in page.text
        assert "${title}" in page.text
        assert "\x1b" not in hostile

    def test_cells_headers_notes(self) -> None:
        """Everything that a table holds."""
        evil = "<b onclick='x'>&\""
        table = Table(
            title=evil, columns=(Column(name=evil), Column(name=evil)), rows=((evil, Cell(text=evil, value=evil)),),
            notes=(evil,),
        )  # fmt: skip
        page = Page(html_table(table))
        assert page.tags["b"] == 0
        assert page.text.count(evil) == 6


class TestNumbers:
    """What the files hold is on the page."""

    def test_every_cell_of_every_table(self, whole: str) -> None:
        """As the tables of the command line have them, and the exact bytes in the markup."""
        page = Page(whole)
        values = set(filter(None, page.of("value")))
        said = memory()
        figures = [getattr(said, name) for name in Memory.__dataclass_fields__ if name.endswith("_bytes")]
        assert {repr(figure) for figure in figures if figure} <= values
        assert {"0.5", "0.4", "128.0", "1000000", "88496", "7424"} <= values
        for text in ("200.00 MiB", "220.00 MiB", "small", "A100", "2.13.0+cpu", "5.23.0", "small assumed"):
            assert text.replace("A100", "small") in page.text

    def test_verdicts_come_first(self, whole: str) -> None:
        """What fits, what ran, what came true, before any figure."""
        page = Page(whole)
        first = page.text[: page.text.index("Figures", page.text.index("What was asked"))]
        for words in ("does not fit", "7.00 MiB over", "largest batch: 17", "ran; promises not kept", "error",
                      "peak allocated exactly as observed"):  # fmt: skip
            assert words in first

    def test_unknown_is_a_dash(self) -> None:
        """Never 0."""
        page = Page(html_table(Table(title="t", columns=(Column(name="a"), Column(name="b")), rows=(("x", None),))))
        assert page.cells[-1] == ["x", "-"]
        assert page.of("value") == []

    def test_of_many_the_first_and_how_many_more(self) -> None:
        """A page is for people."""
        record = Record(
            engine="analytic", settings={"model": "m", "method": "lora", "bs": 1, "seq": 2, "rank": 3}, memory=memory()
        )
        fit = Fit(device="c", capacity_bytes=5, context_bytes=None, fits=True, headroom_bytes=1, max_bs=None)
        record = replace(record, fit=(fit,))
        rows = Collection(rows=(record,) * (MOST_ROWS + 5))
        assert f"of a sweep's rows: fits ({MOST_ROWS + 5})" in Page(page_of(rows, figures=False)).text
        assert f"The first {MOST_ROWS} of {MOST_ROWS + 5} rows." in Page(page_of(rows, figures=False)).text
        many = Collection(predictions=(prediction(),) * (MOST_VERDICTS + 3))
        assert verdict_table(many).notes == ("3 more verdicts are not shown.",)

    def test_sections_without_anything_are_left_out(self) -> None:
        """Without figures none is announced."""
        page = Page(page_of(collection(), figures=False))
        assert "figures" not in page.of("id")
        assert "#figures" not in page.of("href")
