"""The page as a person meets it: controls, keyboard, address, widths, print."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.planner.browser import Browser

HOSTILE = (
    "<img src=x onerror=alert(1)>", "'\"><script>alert(1)</script>", "__proto__", "constructor", "javascript:alert(1)",
    "1e9", "-1", "0", "1.5", "NaN", "99999999999999999999", "", "%00", "\u202e", "x" * 20_000,
)  # fmt: skip

FIELDS = (
    "model", "method", "gpu", "bs", "seq", "rank", "dtype", "adapter-dtype", "amp", "attn", "checkpointing",
    "__proto__", "constructor", "<b>",
)  # fmt: skip


class TestControls:
    """What is set is what is answered."""

    def test_the_verdict_comes_first_and_moves_with_the_controls(self, browser: Browser) -> None:
        """LoRA-FA of a small model fits on a 24 GB card; full fine-tuning of a 7B model does not."""
        assert browser.text("answer") == "Fits"
        first = browser.run("return document.querySelector('main > *').id")
        assert first == "verdict"
        browser.choose("model", "mistral-7b")
        browser.choose("method", "full")
        assert browser.text("answer") == "Does not fit"
        assert "too much" in browser.text("because")
        browser.choose("gpu", "h100")
        assert browser.text("answer") == "Fits"
        assert "nobody has measured it" in browser.text("facts")

    @pytest.mark.parametrize(
        ("name", "value"),
        [("dtype", "fp16"), ("adapter_dtype", "bf16"), ("amp", "1"), ("attn", "eager"), ("checkpointing", "full")],
    )
    def test_every_option_is_asked(self, browser: Browser, name: str, value: str) -> None:
        """An option that is chosen reaches the address, the command line that is shown, and the engine."""
        browser.choose(name, value)
        assert f"{name.replace('_', '-')}={value}" in browser.run("return location.hash")
        shown = "--amp" if name == "amp" else f"--{name.replace('_', '-')} {value}"
        assert shown in browser.run("return document.getElementById('command').textContent")
        assert browser.run(f"return String(planner.run.{name})") == ("true" if name == "amp" else value)

    def test_bars_and_curves_follow(self, browser: Browser) -> None:
        """The bars' lengths and the ring in the frontier move with the batch; the table of batches is there."""
        ring = "return document.querySelector('.here').getAttribute('cy')"
        bars = "return [...document.querySelectorAll('#bars .segment')].map((r) => r.getAttribute('width')).join()"
        before = browser.run(ring), browser.run(bars)
        browser.type_into("bs", "6")
        after = browser.run(ring), browser.run(bars)
        assert before[0] != after[0]
        assert before[1] != after[1]
        assert browser.run("return document.querySelectorAll('#frontier path.curve').length") == 2
        assert browser.run("return document.querySelectorAll('#batches tbody tr').length") >= 8

    def test_a_bar_chooses_its_method(self, browser: Browser) -> None:
        """Clicked where it is empty too; from the keyboard the list does it."""
        browser.run("document.querySelector('#bars .bar').dispatchEvent(new MouseEvent('click', { bubbles: true }))")
        assert browser.find("method").get_attribute("value") == "full"

    def test_bytes_are_shown_where_they_are_asked_for(self, browser: Browser) -> None:
        """The table's integers are the engine's."""
        browser.find("exact").click()
        shown = browser.run("return [...document.querySelectorAll('#parts td.chosen')].map((c) => c.textContent)")
        memory = browser.run("return planner.engine.evaluate(planner.run).memory")
        assert shown[0] == f"{memory['weights_bytes']:,}"
        assert shown[8] == f"{memory['peak_allocated_bytes']:,}"
        assert browser.run("return document.querySelector('#parts th').textContent") == "bytes"

    def test_the_frontier_is_where_the_verdict_turns(self, browser: Browser) -> None:
        """Each point of a curve fits, 16 tokens more do not, and at its left end one sequence more does not."""
        script = """
            const run = { ...planner.run, method: "full" };
            const fits = (seq, bs) => planner.engine.evaluate({ ...run, bs, seq }).fit.fits;
            const curve = planner.curve("full"), [seq, bs] = curve.at(-1);
            return [curve.length, curve.every((point) => fits(...point)), fits(seq, bs + 1),
              curve.slice(0, -1).some(([seq, bs]) => fits(seq + 16, bs))];
        """
        points, all_fit, one_more, longer = browser.run(script)
        assert points >= 10
        assert (all_fit, one_more, longer) == (True, False, False)

    def test_what_would_fit_does(self, browser: Browser, page: Path) -> None:
        """Each change that is offered fits when it is taken, and is then what the controls show."""
        start = "#model=mistral-7b&method=full&bs=4&seq=2048&gpu=rtx4090"
        browser.open(page, start)
        offers = browser.run("return [...document.querySelectorAll('#advice button')].map((b) => b.textContent)")
        assert "LoRA-FA with checkpointing" in offers
        assert "Smallest card: B200 180GB (SXM), 178.4 GiB" in offers
        for number in range(len(offers)):
            browser.open(page, start)
            browser.driver.find_elements("css selector", "#advice button")[number].click()
            assert browser.text("answer") == "Fits", offers[number]
            assert browser.focused() == "verdict"
        assert browser.find("gpu").get_attribute("value") == "b200"

    def test_a_sequence_beyond_the_positions_is_refused(self, browser: Browser) -> None:
        """In the words of the command line, and without a figure."""
        browser.type_into("seq", "200000")
        assert browser.text("answer") == "No prediction"
        assert browser.text("because") == "sequence length 200000 is beyond the 131072 positions of llama3.2-1b"

    @pytest.mark.parametrize("text", ["0", "-3", "1.5", "", "9999999"])
    def test_a_number_that_is_none_is_told(self, browser: Browser, text: str) -> None:
        """The field says what it takes, is marked, and the last answer stands."""
        from selenium.webdriver.common.keys import Keys

        browser.type_into("bs", text or Keys.BACKSPACE)
        assert browser.text("bs-error") == "A whole number from 1 to 1,048,576."
        assert browser.find("bs").get_attribute("aria-invalid") == "true"
        last = browser.run("return planner.run.bs")
        assert last == (999999 if text == "9999999" else 1)  # which it was before the last key
        browser.type_into("bs", "2")
        assert browser.find("bs").get_attribute("aria-invalid") == "false"
        assert browser.run("return planner.run.bs") == 2


class TestKeyboard:
    """Everything can be reached and moved without a mouse."""

    def test_the_order_of_focus_is_that_of_the_page(self, browser: Browser) -> None:
        """Tab goes from the skip link through the controls to the answer's tables."""
        from selenium.webdriver.common.keys import Keys

        seen = []
        for _ in range(16):
            browser.press(Keys.TAB)
            seen.append(browser.focused())
        controls = ["model", "method", "gpu", "bs", "bs-slider", "seq", "seq-slider", "rank", "rank-slider", "dtype"]
        assert seen[:11] == ["", *controls]
        assert seen[11:15] == ["adapter_dtype", "amp", "attn", "checkpointing"]

    def test_arrow_keys_move_sliders_and_numbers(self, browser: Browser) -> None:
        """A slider goes to the next stop, a number one up; lists take letters or arrows."""
        from selenium.webdriver.common.keys import Keys

        browser.find("seq-slider").send_keys(Keys.ARROW_RIGHT)
        assert browser.run("return planner.run.seq") == 1536
        browser.find("seq-slider").send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
        assert browser.run("return planner.run.seq") == 768
        assert browser.find("seq-slider").get_attribute("aria-valuetext") == "768"
        browser.find("bs").send_keys(Keys.ARROW_UP)
        assert browser.run("return planner.run.bs") == 2
        browser.find("method").send_keys(Keys.ARROW_UP)
        assert browser.run("return planner.run.method") == "full"
        assert not browser.find("rank").is_enabled()

    def test_everything_that_takes_input_has_a_name(self, browser: Browser) -> None:
        """Each control has a label, each figure a description, and headings go down one level at a time."""
        unnamed = """
            return [...document.querySelectorAll("select, input, button, svg[role=img]")]
              .filter((e) => !(e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim()))
              .map((e) => e.id || e.tagName);
        """
        assert browser.run(unnamed) == []
        levels = browser.run("return [...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
        assert levels[0] == 1
        assert all(below - above <= 1 for above, below in pairwise(levels))
        assert browser.find("verdict").get_attribute("aria-live") == "polite"


class TestAddress:
    """The address holds the state, and may say anything."""

    def test_an_address_is_a_run(self, browser: Browser, page: Path) -> None:
        """What one person set, another one sees."""
        browser.choose("model", "mistral-7b")
        browser.choose("amp", "1")
        browser.type_into("rank", "17")
        address, answer = browser.run("return [location.hash, document.getElementById('facts').textContent]")
        browser.open(page, address)
        assert browser.run("return document.getElementById('facts').textContent") == answer
        assert not browser.find("notice").is_displayed()

    def test_another_address_in_an_open_page_is_followed(self, browser: Browser) -> None:
        """As when a link is pasted over, or back is pressed."""
        browser.run("location.hash = '#bs=3&gpu=h100'")
        browser.wait("planner.run.bs === 3")
        assert browser.find("bs").get_attribute("value") == "3"
        assert browser.find("gpu").get_attribute("value") == "h100"

    @pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12])
    def test_a_hostile_address_does_nothing(self, browser: Browser, page: Path, text: str) -> None:
        """Whatever stands in it, the page opens with its defaults, says so, and takes no markup from it."""
        elements = browser.run("return document.querySelectorAll('*').length")
        browser.open(page, "#" + "&".join(f"{quote(field)}={quote(text)}" for field in FIELDS))
        assert browser.run("return JSON.stringify(planner.run) === JSON.stringify(planner.defaults)")
        assert browser.find("notice").is_displayed()
        assert browser.text("answer") == "Fits"
        assert browser.run("return document.querySelectorAll('*').length") == elements
        assert browser.run("return Object.keys(Object.prototype).length") == 0

    @pytest.mark.parametrize("address", ["#%E0%A4%A", "#&&&==&", "#<script>alert(1)</script>", "#" + "a=b&" * 5000])
    def test_an_address_that_is_no_list_does_nothing(self, browser: Browser, page: Path, address: str) -> None:
        """Broken escapes, empty names, thousands of them."""
        browser.open(page, address)
        assert browser.text("answer") == "Fits"
        assert browser.run("return document.querySelectorAll('script').length") == 2

    def test_the_policy_forbids_what_the_page_does_not_need(self, browser: Browser) -> None:
        """A script that gets in does not run, and nothing can be fetched."""
        browser.run(
            "const s = document.createElement('script'); s.textContent = 'window.entered = 1'; document.body.append(s);"
        )
        assert browser.run("return window.entered") is None
        fetched = browser.run("return fetch('data:text/plain,x').then(() => 'yes', () => 'no')")
        assert fetched == "no"
        complaints = browser.complaints()
        assert complaints
        assert all("Content Security Policy" in line for line in complaints)


def test_what_a_page_asks_for_and_complains_of_is_seen(chromium: Browser, tmp_path: Path) -> None:
    """Else the checks after each of these tests would pass whatever the page does: this one asks and complains."""
    page = tmp_path / "asks.html"
    page.write_text(
        "<script>document.documentElement.dataset.ready = 'yes'; console.error('broken')</script>"
        "<img src='http://127.0.0.1:9/pixel.png'>",
        "utf-8",
    )
    chromium.forget()
    chromium.open(page)
    assert "http://127.0.0.1:9/pixel.png" in chromium.requests_elsewhere(page)
    assert any("broken" in line for line in chromium.complaints())


class TestLooks:
    """It is readable everywhere."""

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [360, 768, 1280])
    def test_nothing_is_wider_than_the_screen(self, browser: Browser, page: Path, width: int, scheme: str) -> None:
        """From a phone's 360 pixels up, in both colour schemes; on a phone controls and answer are one column."""
        browser.open(page, "#model=mistral-7b&seq=8192&bs=16", width=width, scheme=scheme)
        assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
        if width == 360:
            sizes = browser.run(
                "return [...document.querySelectorAll('select, input[type=number], button')]"
                ".map((e) => e.getBoundingClientRect()).map((r) => [r.height, r.right])"
            )
            assert all(height >= 32 and right <= 360 for height, right in sizes)

    @pytest.mark.parametrize("width", [360, 400, 1280])
    def test_the_bars_names_are_whole_and_nothing_runs_through_them(
        self, browser: Browser, page: Path, width: int
    ) -> None:
        """Wherever on the scale the card's memory is, its line is drawn, and no text is cut or crossed by it."""
        for address in ("#", "#model=mistral-7b&seq=8192&bs=16", "#model=mistral-7b&method=full", "#bs=4000&seq=9000"):
            browser.open(page, address, width=width)
            texts, lines, edge = browser.run(BARS)
            assert lines
            assert all(left >= 0 and right <= edge for _, left, _, right, _ in texts), address
            for text, left, top, right, bottom in texts:
                through = [x for x, y1, y2 in lines if left < x < right and y1 < bottom and top < y2]
                assert not through, f"{address}: the capacity runs through {text!r}"

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_stands_out_from_what_it_is_on(self, browser: Browser, page: Path, scheme: str) -> None:
        """A contrast of at least 4.5 to 1 (WCAG 2, AA) for every text of the page, in both colour schemes."""
        for address in ("#", "#model=mistral-7b&method=full", "#seq=200000"):
            browser.open(page, address, scheme=scheme)
            assert browser.run(CONTRAST) == []

    def test_print_shows_the_answer_and_no_controls(self, browser: Browser) -> None:
        """Two pages or so of paper with verdict, bars, table and remarks."""
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        try:
            assert not browser.find("controls").is_displayed()
            assert browser.find("asked").is_displayed()
            assert browser.find("parts").is_displayed()
        finally:
            browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


#: The texts among the bars, each with its box; the pieces of the capacity's line; the figure's right edge.
BARS = """
const box = (e) => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
const [left, , right] = box(document.querySelector("#bars svg"));
return [
  [...document.querySelectorAll("#bars text")].map((e) => [e.textContent, ...box(e)])
    .map(([text, l, t, r, b]) => [text, l - left, t, r - left, b]),
  [...document.querySelectorAll("#bars .capacity")].map(box).map(([l, t, r, b]) => [(l + r) / 2 - left, t, b]),
  right - left,
];
"""

#: Texts whose colour is too near to that of the nearest opaque element behind them.
CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (text) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = text;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const over = (above, below) => above.slice(0, 3).map((c, i) => (c * above[3] + below[i] * (255 - above[3])) / 255);
const behind = (e) => {
  if (e === null) return [255, 255, 255];
  const here = rgba(getComputedStyle(e).backgroundColor);
  return here[3] === 255 ? here.slice(0, 3) : over(here, behind(e.parentElement));
};
const bright = (c) => {
  const [r, g, b] = c.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ratio = (a, b) => (Math.max(bright(a), bright(b)) + 0.05) / (Math.min(bright(a), bright(b)) + 0.05);
const found = [];
for (const e of document.querySelectorAll("body *")) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !e.checkVisibility() || e.closest("script, option, [disabled]")) continue;
  const style = getComputedStyle(e);
  const ink = rgba(e instanceof SVGElement ? style.fill : style.color);
  const back = behind(e);
  if (ratio(over(ink, back), back) < 4.5) found.push(`${e.tagName} ${e.textContent.trim().slice(0, 30)}`);
}
return found;
"""
