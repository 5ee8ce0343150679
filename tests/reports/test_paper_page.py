"""The page of a paper's claims: each answer in its row, what is missing named, figures with the heights of the runs."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET

from lorafa_prof.reports.figures import rendered
from lorafa_prof.reports.figures.paper import draw_examined
from lorafa_prof.reports.paper_page import paper_page
from lorafa_prof.results.claims import Answer, Assumption, Examined, Level, Point, Statement
from lorafa_prof.units import GIB
from tests.support.hand_made import RUN, memory, prediction

SAID = Statement(key="s", where="Fig. 1", says="it fits", certainty="uncertain", assumed="The card is not named.")
ENGINES = ("analytic", "simulate")


def answer(subject: str, engine: str, agrees: bool | None, assumption: str = "fp32", refusal: str = "") -> Answer:
    ours = None if refusal else f"{subject} by {engine}"
    return Answer(
        statement="s", subject=subject, assumption=assumption, engine=engine, expected="fits", ours=ours, agrees=agrees,
        refusal=refusal,
    )  # fmt: skip


def group(*answers: Answer, **more: object) -> Examined:
    known: dict[str, object] = {
        "title": "Fig. 1: a card", "statements": (SAID,), "answers": answers, "setting": "Two runs",
        "remarks": ("because",),
    }  # fmt: skip
    return Examined(**known | more)  # type: ignore[arg-type]


def page(*answers: Answer, **more: object) -> str:
    return paper_page(
        [group(*answers, **more)], [], assumptions=[Assumption(name="fp32", options={}, means="so")],
        versions={"analytic": {"torch": "2.13"}, "simulate": {}}, pictures={"f": "figures/f.svg"}, command="do it",
    )  # fmt: skip


def test_each_answer_has_its_row() -> None:
    """Both engines beside the paper's word; methods by the names that papers write; a refusal is not a verdict."""
    text = page(
        answer("lora-fa", "analytic", True), answer("lora-fa", "simulate", False),
        answer("dora", "analytic", None, refusal="no closed form"), answer("dora", "simulate", True),
        figure="f",
    )  # fmt: skip
    assert "| fp32 | LoRA-FA | fits | lora-fa by analytic | agrees | lora-fa by simulate | differs |" in text
    assert "| fp32 | DoRA | fits | not modelled | - | dora by simulate | agrees |" in text
    assert "- Fig. 1 (*uncertain*): it fits. The card is not named." in text
    assert "![Fig. 1: a card](figures/f.svg)" in text
    assert "- because" in text
    assert "`do it`" in text


def test_the_summary_names_what_differs() -> None:
    """By assumption; the lesser part of its subjects by name; where nobody can tell, that."""

    def summary(*answers: Answer) -> str:
        (row,) = [line for line in page(*answers).splitlines() if line.startswith("| it fits |")]
        return row

    assert summary(answer("lora", "analytic", True)).endswith("| uncertain | agrees | cannot be told |")
    assert summary(answer("lora", "analytic", False)).endswith("| differs | cannot be told |")
    mixed = [answer("lora", "analytic", True), answer("lora", "analytic", False, "bf16")]
    assert "| agrees: fp32; differs: bf16 |" in summary(*mixed)
    most = [answer(name, "analytic", name != "qlora") for name in ("lora", "vera", "qlora")]
    assert "| differs: fp32 (QLoRA) |" in summary(*most)


def texts(examined: Examined) -> set[str]:
    svg = rendered(draw_examined(examined).figure, "svg")
    found = ET.parse(io.BytesIO(svg)).iter("{http://www.w3.org/2000/svg}text")
    return {"".join(each.itertext()) for each in found}


def point(engine: str, size: float, x: float | None = None) -> Point:
    reserved = int(size * GIB) if engine == "simulate" else None
    said = memory(peak_allocated_bytes=int(size * GIB), peak_reserved_bytes=reserved)
    return Point(assumption="fp32", prediction=prediction(said, engine=engine, run=RUN), x=x)


def test_bars_of_methods() -> None:
    """A bar for each engine as high as it says; a method that one was asked of in vain is not modelled."""
    method = RUN.method.name
    asked = [answer(name, engine, None) for name in (method, "dora") for engine in ENGINES]
    said = texts(
        group(
            *asked, figure="f", points=(point("analytic", 49), point("simulate", 52)),
            levels=(Level(name="a card", nbytes=80 * GIB),),
        )
    )  # fmt: skip
    assert {"49", "52", "not modelled", "DoRA", "fp32", "a card, 80.00 GiB"} <= said


def test_lines_against_what_is_varied() -> None:
    """Allocated memory where no card is drawn; the caption tells every point."""
    points = tuple(point(engine, 10 + x, x) for engine in ENGINES for x in (1, 4))
    examined = group(figure="f", points=points, against="rank")
    assert {"rank", "1", "4", "analytic", "simulate"} <= texts(examined)
    assert "at 4 rank, fp32, simulate: 14.0 GiB" in draw_examined(examined).caption


def test_points_of_an_engine_that_was_asked_at_some_places_are_not_joined() -> None:
    """A line between them would say something of places at which nobody was asked."""
    points = [point("analytic", 10 + x, x) for x in (1, 2, 4)] + [point("simulate", 10 + x, x) for x in (1, 4)]
    figure = draw_examined(group(figure="f", points=tuple(points), against="rank")).figure
    joined = [line for line in figure.axes[0].lines if line.get_linestyle() != "None"]
    assert [list(line.get_xdata()) for line in joined] == [[1, 2, 4]]


def test_numbers_of_bars_have_a_ground() -> None:
    """White, over the levels that pass behind them."""
    examined = group(
        answer(RUN.method.name, "analytic", None), figure="f", points=(point("analytic", 49),),
        levels=(Level(name="a card", nbytes=50 * GIB),),
    )  # fmt: skip
    axes = draw_examined(examined).figure.axes[0]
    (number,) = [text for text in axes.texts if text.get_text() == "49"]
    assert number.get_bbox_patch().get_facecolor() == (1, 1, 1, 1)
    assert number.get_zorder() > max(line.get_zorder() for line in axes.lines)
