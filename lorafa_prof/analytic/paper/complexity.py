"""Table 1 (one linear layer under each method) and Table 6 (parameters, gradients and optimizer states of a model).

The letters: a linear layer has m inputs and k outputs, so W is m x k, A is m x r and B is r x k.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lorafa_prof.analytic.paper.cells import Certainty, PaperCell, PaperTable, Unit
from lorafa_prof.analytic.paper.dims import Dims
from lorafa_prof.analytic.paper.formula import Formula
from lorafa_prof.errors import UnsupportedError


@dataclass(frozen=True, kw_only=True)
class _LinearMethod:
    """What one method adds to, trains in and keeps for one linear layer; everything else follows from it."""

    adapters: str
    """Parameters added."""
    trainable: str
    """Parameters trained."""
    saved: str
    """Elements of the activations kept for the backward pass."""
    saved_certainty: Certainty = "reconstructed"


# Full: dW = x^T g needs x. LoRA: dA needs x, dB needs xA. Freezing A (FA) drops x, freezing B (FB) drops xA.
LINEAR_METHODS: Mapping[str, _LinearMethod] = {
    "Full-FT": _LinearMethod(adapters="", trainable="mk", saved="bsm"),
    "LoRA": _LinearMethod(adapters="rm+rk", trainable="rm+rk", saved="bsm+bsr", saved_certainty="as printed"),
    "LoRA-FB": _LinearMethod(adapters="rm+rk", trainable="rm", saved="bsm"),
    "LoRA-FA": _LinearMethod(adapters="rm+rk", trainable="rk", saved="bsr", saved_certainty="as printed"),
}

_REMARKS_1 = (
    (
        "16-bit weights, gradients and activations; Adam's two moments in fp32 are 8 bytes a trainable "
        "parameter, with an fp32 master copy 12. Which of the two the paper prints is not known."
    ),
    (
        "The A cells of LoRA and LoRA-FA are the paper's, printed there with d for both widths (m = k = d); "
        "the others are reconstructed."
    ),
    "LoRA-FA's frozen A still occupies its 2rm bytes of W; it has no gradient and no state.",
    "Table 1 counts each layer's own input; where layers share one input storage it is kept once (see C.3).",
)


def table_1(dims: Dims, *, bs: int = 8, seq: int = 1024, rank: int = 64) -> PaperTable:
    """Return Table 1: trainable parameters, W, G, O and A of one linear layer, for each shape in a block."""
    symbols = dims.symbols(bs, seq, rank)
    shapes: dict[tuple[int, int], list[str]] = {}
    for linear in dims.linears:
        shapes.setdefault((linear.m, linear.k), []).append(linear.name)
    cells = [
        cell
        for (m, k), names in shapes.items()
        for cell in _linear_cells({**symbols, "m": m, "k": k}, f"{', '.join(names)}: m = {m}, k = {k}")
    ]
    shown = {name: symbols[name] for name in "bsr"}
    return PaperTable(
        model=dims.name,
        key="1",
        title="Table 1: one linear layer",
        symbols=shown,
        cells=tuple(cells),
        remarks=_REMARKS_1,
    )


def _linear_cells(symbols: Mapping[str, int], group: str) -> Iterator[PaperCell]:
    for name, method in LINEAR_METHODS.items():
        trainable = Formula.parse(method.trainable)
        columns: tuple[tuple[str, Formula, Unit, Certainty], ...] = (
            ("#TP", trainable, "parameters", "reconstructed"),
            ("W", (Formula.parse("mk") + Formula.parse(method.adapters)) * 2, "bytes", "reconstructed"),
            ("G", trainable * 2, "bytes", "reconstructed"),
            ("O", trainable * 8, "bytes", "reconstructed"),
            ("O + master", trainable * 12, "bytes", "reconstructed"),
            ("A", Formula.parse(method.saved) * 2, "bytes", method.saved_certainty),
        )
        for column, formula, unit, certainty in columns:
            yield PaperCell(
                row=name, column=column, formula=formula, values=symbols, unit=unit,
                certainty=certainty, group=group,
            )  # fmt: skip


# Table 6. Of each method: added parameters and trained parameters, first as the paper can count them (every linear
# layer d x d, written with L, l and d), then with each layer's own widths. "" trains everything.
_COUNTS: Mapping[str, tuple[str, str, str, str]] = {
    "Full-FT": ("", "", "", ""),
    "LoRA": ("2Lldr", "2Lldr", "LrΣm+LrΣk", "LrΣm+LrΣk"),
    "LoRA-FA": ("2Lldr", "Lldr", "LrΣm+LrΣk", "LrΣk"),
    "QLoRA": ("2Lldr", "2Lldr", "LrΣm+LrΣk", "LrΣm+LrΣk"),
    # One frozen pair for the whole model, as wide as the widest layer; a vector of k and one of r for each layer.
    "VeRA": ("2dr+Lld+Llr", "Lld+Llr", "rM+rK+LΣk+Llr", "LΣk+Llr"),
}
SQUARE = "Lld²+vd"


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Bytes of each kind of state under one way to train."""

    name: str
    base: int
    """Bytes of a base parameter."""
    adapter: int
    """Bytes of an adapter's parameter."""
    gradient: int
    optimizer: int
    """Bytes of optimizer state for a trainable parameter."""
    rest: int
    """Bytes of a parameter that QLoRA leaves unquantised."""


PEFT_DEFAULT = "PEFT default"
PRECISIONS = (
    Precision(name="FP32", base=4, adapter=4, gradient=4, optimizer=8, rest=4),
    Precision(name="pure 16-bit", base=2, adapter=2, gradient=2, optimizer=4, rest=2),
    Precision(name="autocast", base=4, adapter=4, gradient=4, optimizer=8, rest=4),
    Precision(name="mixed with master", base=2, adapter=2, gradient=2, optimizer=12, rest=2),
    # peft casts the adapters over a 16-bit base to fp32, and what stays unquantised under QLoRA as well.
    Precision(name=PEFT_DEFAULT, base=2, adapter=4, gradient=4, optimizer=8, rest=4),
)
# 4 bits, an 8-bit scale for 64 parameters, an fp32 scale for 256 of those: QLoRA with double quantisation.
NF4 = "Q/2+Q/64+Q/4096"

_REMARKS_6 = (
    (
        "The paper's cells of this table were not available. 'square' takes every linear layer as d x d, as "
        "the paper's list of symbols suggests; 'exact' uses each layer's own widths m and k, summed over one "
        "block."
    ),
    "LoRA-FA trains half of LoRA's parameters only where layers are square.",
    (
        "QLoRA keeps the blocks' linear layers in NF4 with double quantisation: 1/2 + 1/64 + 1/4096 bytes a "
        "parameter (4 bits, an 8-bit scale for 64 of them, an fp32 scale for 256 of those). PEFT's "
        "preparation casts the rest to fp32."
    ),
    "VeRA: one frozen pair of matrices (rM+rK, the widest m and k) shared by all layers, and two vectors a layer.",
    "Autocast keeps fp32 weights; their 16-bit copies, cached during a forward pass, come on top (up to 2P).",
    (
        "PEFT's default puts fp32 adapters, with fp32 gradients and moments, over a 16-bit base; full "
        "fine-tuning has no adapters and no such row."
    ),
)


def table_6(dims: Dims, *, rank: int = 64) -> PaperTable:
    """Return Table 6: #P and #TP of each method, then M_P, M_G and M_O under each precision.

    Raises:
        UnsupportedError: it is not known how many parameters the model has.
    """
    if dims.parameters is None:
        raise UnsupportedError(
            f"Table 6 needs the number of parameters of {dims.name}, which is in no catalog entry: "
            "use --table 1, 7, c3 or text, or predict"
        )
    symbols = dims.symbols(1, 1, rank)
    counts = [cell for name in _COUNTS for cell in _count_cells(dims.parameters, name, symbols)]
    states = [
        cell
        for precision in PRECISIONS
        for name in _COUNTS
        if (precision.name, name) != (PEFT_DEFAULT, "Full-FT")
        for cell in _state_cells(precision, name, symbols)
    ]
    shown = {name: value for name, value in symbols.items() if name not in "bsfah"}
    return PaperTable(
        model=dims.name, key="6", title="Table 6: parameters, gradients and optimizer states", symbols=shown,
        cells=(*counts, *states), remarks=_REMARKS_6,
    )  # fmt: skip


def _count_cells(everything: Formula, name: str, symbols: Mapping[str, int]) -> Iterator[PaperCell]:
    square_added, square_trained, added, trained = (Formula.parse(text) for text in _COUNTS[name])
    square = Formula.parse(SQUARE)
    full = name == "Full-FT"
    columns: tuple[tuple[str, Formula, Certainty], ...] = (
        ("#P square", square + square_added, "reconstructed"),
        ("#TP square", square if full else square_trained, "reconstructed"),
        ("#P exact", everything if full else Formula.parse("P") + added, "derived"),
        ("#TP exact", Formula.parse("P") if full else trained, "derived"),
    )
    for column, formula, certainty in columns:
        yield PaperCell(
            row=name, column=column, formula=formula, values=symbols, unit="parameters",
            certainty=certainty, group="counts",
        )  # fmt: skip


def _state_cells(precision: Precision, name: str, symbols: Mapping[str, int]) -> Iterator[PaperCell]:
    _, _, added, trained = (Formula.parse(text) for text in _COUNTS[name])
    trained = Formula.parse("P") if name == "Full-FT" else trained
    base = Formula.parse(f"{NF4}+{precision.rest}U" if name == "QLoRA" else f"{precision.base}P")
    parts = {
        "M_P": base + added * precision.adapter,
        "M_G": trained * precision.gradient,
        "M_O": trained * precision.optimizer,
    }
    total = parts["M_P"] + parts["M_G"] + parts["M_O"]
    for column, formula in {**parts, "sum": total}.items():
        yield PaperCell(
            row=name, column=column, formula=formula, values=symbols, unit="bytes",
            certainty="derived" if precision.name == PEFT_DEFAULT else "reconstructed", group=precision.name,
        )  # fmt: skip
