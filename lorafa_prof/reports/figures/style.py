"""How every figure looks: colours, hatches, markers and lines, units, and the bytes of a file.

Colours are told apart by people who do not see red and green alike (after Okabe and Ito), and none carries a meaning
alone: parts have a hatch, methods a marker and a dash of their own, so that print in grey can be read as well.
matplotlib is imported when a figure is drawn, and no window opens.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lorafa_prof.specs import METHODS
from lorafa_prof.units import GIB, MIB

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
Form = Literal["png", "svg"]
FORMS: tuple[Form, ...] = ("png", "svg")

#: From here on a size is no card's, and is written with an exponent.
LARGEST = 1e7
#: Figures of one kind; with more nobody is served.
MOST_PAGES = 12

#: A colour and a hatch for each part of the peak, bottom to top; dark and light alternate.
LOOKS: Mapping[str, tuple[str, str]] = {
    "weights_bytes": ("#004c7a", ""),
    "adapter_bytes": ("#f0e442", "..."),
    "gradients_bytes": ("#d55e00", "///"),
    "optimizer_bytes": ("#9fd7f5", "---"),
    "activations_bytes": ("#008060", "xx"),
    "logits_bytes": ("#f2c0dc", "\\\\\\"),
    "temporaries_bytes": ("#8a5a00", "++"),
    "workspace_bytes": ("#dddddd", "oo"),
}
#: What is outside the allocator, where a figure shows it.
CONTEXT_LOOK = ("#8c8c8c", "")
NO_PART = ("#ffffff", "")
#: Hatches and edges on these are white, on the others black.
DARK = ("#004c7a", "#d55e00", "#008060", "#8a5a00")

#: For lines that are no method's.
INK, FAINT, CAPACITY = "#000000", "#8c8c8c", "#555555"

Dashes = Literal["-", ":"] | tuple[int, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class MethodLook:
    """How a method's points and lines are drawn."""

    marker: str
    color: str
    dashes: Dashes


_COLORS = ("#000000", "#0072b2", "#d55e00", "#8a5a00", "#009e73", "#b0468a", "#3f8fc4", "#b07800")
_DASHES: tuple[Dashes, ...] = (
    "-", (0, (6, 2)), (0, (6, 2, 1, 2)), (0, (1, 1.4)), (0, (3, 1.5)), (0, (6, 2, 1, 2, 1, 2)), (0, (9, 3)),
    (0, (2, 3)), (0, (9, 2, 3, 2)), (0, (4, 1, 1, 1, 1, 1, 1, 1)), (0, (12, 2)), (0, (1, 3)), (0, (5, 5)),
    (0, (8, 2, 2, 2, 2, 2)), (0, (3, 1, 1, 3)),
)  # fmt: skip
_MARKERS = "os^v<>DdPXph*8H"
#: The methods that a prediction has by default come first, so that these are the furthest apart.
_ORDER = tuple(dict.fromkeys(("full", "lora", "lora-fa", "qlora", "vera", *METHODS)))
_SHAPES = dict(zip(("full", "lora", "lora-fa", "qlora", "vera"), "os^DP", strict=True))
_SHAPES |= dict(zip(_ORDER[5:], [m for m in _MARKERS if m not in _SHAPES.values()], strict=True))
METHOD_LOOKS: Mapping[str, MethodLook] = {
    name: MethodLook(marker=_SHAPES[name], color=_COLORS[number % len(_COLORS)], dashes=_DASHES[number])
    for number, name in enumerate(_ORDER)
}

Fill = Literal["full", "bottom", "none"]
#: What an engine's points are filled with: an observation is solid, what was computed by formula is hollow.
ENGINE_FILLS: Mapping[str, Fill] = {"observed": "full", "simulate": "bottom", "analytic": "none"}
#: And the dashes of a level that it predicts.
ENGINE_LINES: Mapping[str, Dashes] = {"simulate": (0, (6, 2, 1, 2)), "analytic": (0, (1, 1.5))}


def method_look(method: str) -> MethodLook:
    """Return the look of a method; what is no method of ours (a script of the user's own) is a grey cross."""
    return METHOD_LOOKS.get(method, MethodLook(marker="X", color=CAPACITY, dashes="-"))


def engine_fill(engine: str) -> Fill:
    """Return how the points of an engine are filled."""
    return ENGINE_FILLS.get(engine, "none")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure and the name of its file, without suffix."""

    name: str
    figure: Figure
    caption: str
    """What it shows, in a sentence or two, for those who do not see it."""
    note: str = ""
    """What the reader of the figures has to know beside them: that not all is drawn."""


def paged(
    items: Sequence[T], each: int, name: str, draw: Callable[[Sequence[T], str], Drawing], what: str
) -> list[Drawing]:
    """Return figures of so many items each, numbered where there are several; beyond `MOST_PAGES` no more are drawn.

    Args:
        items: panels, groups, ...
        each: items of one figure.
        name: of the figures' files.
        draw: returns the figure of some items, with the name that it is given.
        what: the items in words, for the note that some are left out.
    """
    pages = [items[start : start + each] for start in range(0, len(items), each)]
    drawings = [
        draw(page, name if len(pages) == 1 else f"{name}-{number}")
        for number, page in enumerate(pages[:MOST_PAGES], start=1)
    ]
    left = sum(map(len, pages[MOST_PAGES:]))
    if left:
        note = f"{name}: {left} of {len(items)} {what} are not drawn; draw fewer results at a time"
        drawings[-1] = replace(drawings[-1], note=note)
    return drawings


@contextmanager
def our_style() -> Iterator[None]:
    """Draw with our settings alone, whatever the user's matplotlibrc says.

    In an SVG text stays text and ids are the same each time: the same results give the same file. A name with a dollar
    sign is no formula.
    """
    import matplotlib as mpl

    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "lorafa-prof", "hatch.linewidth": 0.6, "text.parse_math": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11, "axes.titlelocation": "left",
        "legend.frameon": False, "legend.fontsize": 9, "axes.grid": False, "grid.color": "#d9d9d9",
        "grid.linewidth": 0.6, "axes.axisbelow": True, "figure.constrained_layout.use": True,
    }  # fmt: skip
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield


def rendered(figure: Figure, form: Form) -> bytes:
    """Return a figure as the bytes of a file, the same each time: no dates, no random names."""
    stream = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if form == "svg" else {"Software": None}
    with our_style():
        figure.savefig(stream, format=form, dpi=150, metadata=metadata)
    return _with_arcs(stream.getvalue()) if form == "svg" else stream.getvalue()


_PATTERN = re.compile(rb"<pattern .*?</pattern>", re.DOTALL)
_CIRCLE = re.compile(rb"M [-\d. ]+(?:C [-\d. ]+){8}Z", re.IGNORECASE)


def _with_arcs(svg: bytes) -> bytes:
    """Return the file with the circles of hatches as arcs, which are a seventh of the curves that matplotlib writes."""
    return _PATTERN.sub(lambda pattern: _CIRCLE.sub(_arcs, b" ".join(pattern.group().split())), svg)


def _arcs(circle: re.Match[bytes]) -> bytes:
    # Its leftmost, rightmost, highest and lowest points are ends of curves. A ring is two circles, the inner one the
    # other way round.
    numbers = [float(number) for number in re.findall(rb"-?[\d.]+", circle.group())]
    xs, ys = numbers[::2], numbers[1::2]
    x, y, r = min(xs), (min(ys) + max(ys)) / 2, (max(xs) - min(xs)) / 2
    area = sum(x0 * y1 - x1 * y0 for x0, y0, x1, y1 in zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True))
    way, across = int(area > 0), 2 * r
    return (
        f"M{x:.4g} {y:.4g}a{r:.4g} {r:.4g} 0 1 {way} {across:.4g} 0a{r:.4g} {r:.4g} 0 1 {way} {-across:.4g} 0z".encode()
    )


def scale_of(sizes: Iterable[float | None]) -> tuple[str, int]:
    """Return the unit that an axis of these bytes has, and its bytes: GiB, or MiB where none reaches one."""
    most = max((size for size in sizes if size is not None), default=0)
    return ("GiB", GIB) if most >= GIB else ("MiB", MIB)


def ceiling(values: Iterable[float | None]) -> float:
    """Return the most of some figures, for the upper end of an axis: above 0 also where no figure is."""
    most = max((value for value in values if value is not None), default=0)
    return most if most > 0 else 1.0


def amount(size: float) -> str:
    """Return a size with two decimals; one that is there is never shown as none."""
    if abs(size) >= LARGEST:
        return f"{size:.3g}"
    return "<0.01" if 0 < size < 0.005 else f"{size:,.2f}"


def wrapped(text: str, inches: float, size: float = 11) -> str:
    """Return text in lines that fit a width, for letters of so many points."""
    letters = max(20, int(inches * 72 / (0.56 * size)))
    return "\n".join(textwrap.fill(line, letters) for line in text.splitlines())
