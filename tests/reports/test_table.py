"""Tables and their renderers."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from lorafa_prof.reports.table import (
    Cell,
    Column,
    Table,
    cell_text,
    clean,
    figures,
    render_csv,
    render_markdown,
    words,
)
from lorafa_prof.reports.text import render_text

ROOT = Path(__file__).resolve().parents[2]

NO = Cell(text="no", value=False, tone="bad")
TABLE = Table(
    title="Peak memory of llama2-7b",
    columns=(
        Column(name="method"),
        Column(name="what is trained"),
        Column(name="peak allocated GiB", justify="right", key="peak_allocated_bytes"),
        Column(name="steps", justify="right"),
        Column(name="fits 24 GiB", key="fits"),
    ),
    rows=(
        ("full", "every parameter", Cell(text="112.40", value=120_688_000_000), 12_345, NO),
        ("lora", "A and B, both of the low rank", Cell(text="85.10", value=91_375_000_000), 10, NO),
        ("lora-fa", "B", Cell(text="-", value=None), None, Cell(text="yes", value=True, tone="good")),
    ),
    sections=(1,),
    notes=("Nothing here was measured: the figures are made up for a test, and this note is wrapped.",),
)  # fmt: skip


class TestText:
    """The table on a terminal."""

    def test_one_block_where_it_fits(self) -> None:
        """Title, header, rule, rows, a rule between sections, notes: as people see it."""
        assert render_text(TABLE, 90) == (
            "Peak memory of llama2-7b\n"
            "method   what is trained                peak allocated GiB   steps  fits 24 GiB\n"
            "───────────────────────────────────────────────────────────────────────────────\n"
            "full     every parameter                            112.40  12,345  no\n"
            "───────────────────────────────────────────────────────────────────────────────\n"
            "lora     A and B, both of the low rank               85.10      10  no\n"
            "lora-fa  B                                               -       -  yes\n"
            "\n"
            "- Nothing here was measured: the figures are made up for a test, and this note is wrapped.\n"
        )

    def test_headers_are_wrapped_before_words(self) -> None:
        """A little less room: the header takes two lines, the cells stay whole."""
        assert render_text(TABLE, 76).splitlines()[1:5] == [
            "                                         peak allocated",
            "method   what is trained                            GiB   steps  fits 24 GiB",
            "─" * 76,
            "full     every parameter                         112.40  12,345  no",
        ]

    def test_words_are_wrapped_before_columns_move(self) -> None:
        """Less room still: the words are wrapped, the figures are not."""
        lines = render_text(TABLE, 52).splitlines()
        assert max(map(len, lines)) <= 52
        assert "lora     A and B, both of        85.10      10  no" in lines
        assert "         the low rank" in lines

    def test_columns_move_to_another_block(self) -> None:
        """Where wrapping is not enough, a second block repeats the key column."""
        lines = render_text(TABLE, 40).splitlines()
        assert max(map(len, lines)) <= 40
        assert "method   what is trained             GiB" in lines
        assert "method    steps  fits 24 GiB" in lines
        assert sum(line.startswith("lora-fa") for line in lines) == 2

    def test_two_key_columns_are_repeated(self) -> None:
        """`keys` says how many columns name a row."""
        table = Table(
            title="t",
            columns=(*words("model", "method"), *figures(*(f"figure{i}" for i in range(8)))),
            rows=(("llama2-7b", "lora", *range(10**6, 10**6 + 8)),),
            keys=2,
        )
        lines = render_text(table, 60).splitlines()
        assert sum(line.startswith("llama2-7b  lora") for line in lines) > 1
        assert {f"{n:,}" for n in range(10**6, 10**6 + 8)} <= set(" ".join(lines).split())

    @pytest.mark.parametrize("width", [-1, 0, 1, 20])
    def test_an_absurd_width_still_shows_everything(self, width: int) -> None:
        """Twenty columns are the least that is drawn; every figure is there in one piece."""
        text = render_text(TABLE, width)
        assert max(map(len, text.splitlines())) <= 20
        assert {"112.40", "12,345", "85.10"} <= set(text.split())

    @given(
        st.lists(st.tuples(st.text(max_size=30), st.integers(-(10**15), 10**15), st.text(max_size=12)), max_size=5),
        st.integers(60, 200),
    )
    def test_any_content_fits_and_loses_no_figure(self, rows: list[tuple[str, int, str]], width: int) -> None:
        """No line is wider than asked, whatever the cells hold, and each number is there in one piece."""
        table = Table(
            title="t" * 70,
            columns=(*words("a name"), *figures("some long header of words"), *words("c")),
            rows=tuple(rows),
        )
        from rich.cells import cell_len

        text = render_text(table, width)
        assert max(map(cell_len, text.splitlines())) <= width
        for _, number, _ in rows:
            assert f"{number:,}" in text

    def test_colour_is_extra(self) -> None:
        """Without colour there is no escape sequence; with it the words are the same."""
        plain, coloured = render_text(TABLE, 90), render_text(TABLE, 90, color=True)
        assert "\x1b" not in plain
        assert "\x1b[31mno" in coloured
        assert "\x1b[32myes" in coloured
        bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
        assert [line.rstrip() for line in bare.splitlines()] == plain.splitlines()

    def test_the_environment_does_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pure: width and colour are arguments."""
        expected = render_text(TABLE, 90)
        for name, value in {"COLUMNS": "30", "FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
            monkeypatch.setenv(name, value)
        assert render_text(TABLE, 90) == expected

    def test_markup_and_emoji_codes_are_text(self) -> None:
        """A path like [red] or :smile: is shown as it is."""
        table = Table(title="[b]t[/b]", columns=words(":warning:"), rows=(("[red]x[/red]",),), notes=("[i]",))
        text = render_text(table, 80)
        for part in ("[b]t[/b]", ":warning:", "[red]x[/red]", "- [i]"):
            assert part in text

    def test_nothing_steers_the_terminal(self) -> None:
        """Control characters and line ends from names are neutralised in all forms."""
        table = Table(title="a\x1b[2Jb", columns=words("x\ny"), rows=(("\x07\u202ebell\udc80",),))
        for text in (render_text(table, 80), render_markdown(table)):
            assert not {"\x1b", "\x07", "\u202e", "\udc80"} & set(text)
            assert "a\ufffd" in text
            assert "x y" in text

    def test_an_empty_table(self) -> None:
        """A header without rows."""
        assert render_text(Table(title="None", columns=words("a", "b"), rows=()), 60) == "None\na  b\n────\n"


class TestCells:
    """What a cell says to people."""

    @pytest.mark.parametrize(
        ("cell", "text"),
        [
            (None, "-"),
            (0, "0"),
            (1_234_567, "1,234,567"),
            (1234.5678, "1,234.57"),
            (True, "yes"),
            (False, "no"),
            ("a  b\nc", "a b c"),
            (Cell(text="17.38", value=18_656_264_192), "17.38"),
        ],
    )
    def test_text(self, cell: object, text: str) -> None:
        """Thousands are separated, unknown is a dash and not a zero."""
        assert cell_text(cell) == text  # type: ignore[arg-type]

    def test_rows_have_a_cell_for_each_column(self) -> None:
        """A ragged table is a programming error, found when it is made."""
        with pytest.raises(ValueError, match="row 1"):
            Table(title="t", columns=words("a", "b"), rows=((1, 2), (1,)))


class TestMarkdown:
    """The table on GitHub."""

    def test_whole(self) -> None:
        """Heading, justified columns, notes as a list."""
        table = Table(
            title="Peak | of x",
            columns=(Column(name="a|b"), Column(name="GiB", justify="right")),
            rows=(("<b> & *c* `d` [e](f) ~g~", 1.5), ("lora_A.weight _x_", None)),
            notes=("2 < 3",),
        )
        assert render_markdown(table) == (
            "### Peak \\| of x\n"
            "\n"
            "| a\\|b | GiB |\n"
            "| --- | ---: |\n"
            "| &lt;b&gt; &amp; \\*c\\* \\`d\\` \\[e\\](f) \\~g\\~ | 1.50 |\n"
            "| lora_A.weight \\_x\\_ | - |\n"
            "\n"
            "- 2 &lt; 3\n"
        )


class TestCsv:
    """The table in a spreadsheet, and in pandas."""

    def test_values_not_texts(self) -> None:
        """Keys as headers, raw numbers, empty for unknown, CRLF as RFC 4180 has it."""
        assert render_csv(TABLE) == (
            "method,what is trained,peak_allocated_bytes,steps,fits\r\n"
            "full,every parameter,120688000000,12345,false\r\n"
            'lora,"A and B, both of the low rank",91375000000,10,false\r\n'
            "lora-fa,B,,,true\r\n"
        )

    @pytest.mark.parametrize("text", ["=1+1", "+cmd", "-2+3", "@sum", "\tx", "\rx", "-", "-e5", "--1"])
    def test_a_spreadsheet_runs_nothing(self, text: str) -> None:
        """Text that begins like a formula is marked as text."""
        assert self.read(Table(title="t", columns=words("a"), rows=((text,),)))[1] == ["'" + text]

    @pytest.mark.parametrize("text", ["-2", "+3.5", "-1e9", "-.5", "-12%"])
    def test_numbers_in_text_stay_numbers(self, text: str) -> None:
        """A leading sign alone is no formula."""
        assert self.read(Table(title="t", columns=words("a"), rows=((text,),)))[1] == [text]

    def test_numbers_are_exact(self) -> None:
        """Written so that reading gives the same number back."""
        rows = ((-5, 0.1 + 0.2), (2**63, 1e300))
        read = self.read(Table(title="t", columns=figures("i", "f"), rows=rows))
        assert tuple((int(i), float(f)) for i, f in read[1:]) == rows

    @given(st.lists(st.tuples(st.text(), st.text()), max_size=6))
    def test_round_trip(self, rows: list[tuple[str, str]]) -> None:
        """Quotes, commas, line ends: any text comes back, but for the guard against formulas."""
        read = self.read(Table(title="t", columns=words("a", "b"), rows=tuple(rows)))[1:]
        assert [tuple(cell.removeprefix("'") for cell in row) for row in read] == [
            tuple(cell.removeprefix("'") for cell in row) for row in rows
        ]

    def read(self, table: Table) -> list[list[str]]:
        return list(csv.reader(io.StringIO(render_csv(table), newline=""), strict=True))


#: Letters of one column and of two, of none and of more than one byte, signs of our tables, blanks of several kinds.
LETTERS = st.text("ab c de  1.,-é×·₁⌉\t\x1b\u200b", max_size=40) | st.text(max_size=12)


class TestTheTwoWaysToDraw:
    """Text without colour is drawn here where it can be, and must be what rich would have drawn."""

    @given(st.data(), st.integers(20, 100))
    def test_they_draw_the_same(self, data: st.DataObject, width: int) -> None:
        """Any table: rich's drawing of it in colour, without the escape sequences, is ours."""
        count = data.draw(st.integers(0, 4))
        names = data.draw(st.lists(LETTERS, min_size=count, max_size=count))
        sides = data.draw(st.lists(st.sampled_from(["left", "right"]), min_size=count, max_size=count))
        cells = st.integers() | st.none() | st.builds(Cell, text=LETTERS) | LETTERS
        table = Table(
            title=data.draw(LETTERS),
            columns=tuple(Column(name=n, justify=j) for n, j in zip(names, sides, strict=True)),
            rows=tuple(data.draw(st.lists(st.tuples(*[cells] * count), max_size=4))),
            sections=tuple(data.draw(st.lists(st.integers(0, 5), max_size=2))),
            notes=tuple(data.draw(st.lists(LETTERS, max_size=2))),
            keys=data.draw(st.integers(0, 2)),
        )
        bare = re.sub(r"\x1b\[[0-9;]*m", "", render_text(table, width, color=True))
        assert render_text(table, width).splitlines() == [line.rstrip() for line in bare.splitlines()]

    @pytest.mark.parametrize("text", ["plain", "8192·b·s·⌈s⌉₁₂₈ × 2 → ≥ ─", "Zoë"])
    def test_what_we_draw_is_one_column_wide_to_rich(self, text: str) -> None:
        """Rich's tables of character widths say the same of what is taken for one column wide here."""
        from rich.cells import cell_len

        assert cell_len(text) == len(text)

    @pytest.mark.parametrize("name", ["模型", "e\u0301", "👩‍👩‍👧"])
    def test_other_widths_are_left_to_rich(self, name: str) -> None:
        """Wide, combining and joined characters keep the columns where they belong."""
        from rich.cells import cell_len

        table = Table(title="t", columns=(*words("a"), *figures("b")), rows=((name, 1), ("x", 12345)))
        rows = render_text(table).splitlines()[3:]
        assert len({cell_len(row) for row in rows}) == 1


def test_importing_the_module_imports_no_rich() -> None:
    """Only a text table pays for rich, and only in colour."""
    probe = "import sys, lorafa_prof.reports.text as t; t.render_text(t.Table(title='', columns=(), rows=())); "
    code = subprocess.run([sys.executable, "-c", probe + "sys.exit('rich' in sys.modules)"], check=False, cwd=ROOT)
    assert code.returncode == 0


def test_clean_keeps_letters() -> None:
    """Accents, Greek and wide characters are no control characters."""
    assert clean("é Σmk 漢字 →") == "é Σmk 漢字 →"
