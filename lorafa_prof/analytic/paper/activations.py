"""Table 7: what one GPT block keeps for its backward pass under full fine-tuning, in three data types.

Each operation is described by the tensors that it saves; the corrected cells follow from those. The printed cells are
the paper's, and every difference between the two is explained in `_REMARKS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lorafa_prof.analytic.paper.cells import Certainty, PaperCell, PaperTable
from lorafa_prof.analytic.paper.dims import Dims
from lorafa_prof.analytic.paper.formula import Formula

DATA_TYPES = ("FP32", "Pure-FP16", "Autocast-BF16")
PRINTED, CORRECTED = "printed", "corrected"
SUMS = "sum"


@dataclass(frozen=True)
class Saved:
    """One kind of tensor that an operation saves."""

    elements: str
    bytes_each: tuple[int, int, int]
    """Bytes of an element under each of `DATA_TYPES`."""


@dataclass(frozen=True)
class Operation:
    """One column of the printed table."""

    part: str
    name: str
    printed: tuple[str, str, str]
    saved: tuple[Saved, ...]


_PLAIN = (4, 2, 2)  # computed and kept in the data type of the row
_UPCAST = (4, 2, 4)  # autocast runs it in fp32
_MASK = (1, 1, 1)  # a dropout mask holds a byte an element

# GELU as the first GPT-2 code writes it, 0.5x(1 + tanh(...)), one kernel an operation: pow keeps x, the products keep
# 0.5x and 1 + tanh, and tanh its own result. Autocast computes pow in fp32, and what follows from it stays there.
_UNFUSED_GELU = (Saved("4bsd", _UPCAST), Saved("4bsd", _UPCAST), Saved("4bsd", _UPCAST), Saved("4bsd", _PLAIN))
_FUSED_GELU = (Saved("4bsd", _PLAIN),)

OPERATIONS = (
    Operation("Attention", "LN", ("4bsd", "2bsd", "4bsd"), (Saved("bsd", _UPCAST),)),
    Operation("Attention", "QKV-i", ("4bsd", "2bsd", "2bsd"), (Saved("bsd", _PLAIN),)),
    Operation("Attention", "QKV", ("12bsd", "6bsd", "6bsd"), (Saved("3bsd", _PLAIN),)),
    Operation("Attention", "softmax", ("4bhss", "2bhss", "4bhss"), (Saved("bhss", _UPCAST),)),
    Operation("Attention", "dropout (scores)", ("bhss", "bhss", "bhss"), (Saved("bhss", _MASK),)),
    Operation("Attention", "matmul V", ("4bhss", "2bhss", "2bhss"), (Saved("bhss", _PLAIN),)),
    Operation("Attention", "output", ("4bsd", "2bsd", "2bsd"), (Saved("bsd", _PLAIN),)),
    Operation("Attention", "dropout", ("bsd", "bsd", "bsd"), (Saved("bsd", _MASK),)),
    Operation("MLP", "LN", ("4bsd", "2bsd", "4bsd"), (Saved("bsd", _UPCAST),)),
    Operation("MLP", "up", ("4bsd", "2bsd", "2bsd"), (Saved("bsd", _PLAIN),)),
    Operation("MLP", "gelu", ("64bsd", "8bsd", "5sd"), _UNFUSED_GELU),
    Operation("MLP", "down", ("16bsd", "8bsd", "8bsd"), (Saved("4bsd", _PLAIN),)),
    Operation("MLP", "dropout", ("bsd", "bsd", "bsd"), (Saved("bsd", _MASK),)),
)
PRINTED_SUMS = ("114bsd+9bhss", "58bsd+5bhss", "86bsd+7bhss")

_REMARKS = (
    (
        "Pure-FP16 gelu: with the printed 8bsd the row adds up to 34bsd, not to the printed 58bsd. 32bsd "
        "(four tensors, 4d wide, 2 bytes) gives 58; 8bsd is what a fused GELU keeps, which is not what the "
        "other two rows count."
    ),
    (
        'Autocast-BF16 gelu: "5sd" lacks the batch and a digit. 56bsd gives the printed 86: x, tanh and 1 + '
        "tanh in fp32 (16bsd each), 0.5x in bf16 (8bsd)."
    ),
    "FP32: 64bsd for gelu is right for a GELU of separate kernels, four tensors 4d wide; the row adds up as printed.",
    "up is no misprint: what it keeps is its input, which is d wide; down's input is 4d wide.",
    "With one fused GELU kernel, as in current PyTorch code, only its input stays: 66, 34 and 38 bsd.",
    (
        "What dropout keeps is a mask of one byte an element. bhss is the whole matrix of attention scores: "
        "fused attention kernels do not keep it, and its terms vanish."
    ),
    "Not in the table: the norms' means and deviations, autocast's cached weight copies, embedding, head and loss.",
)


def sum_of(cells: Iterator[Formula]) -> Formula:
    """Return the sum of formulas."""
    return sum(cells, Formula(()))


def corrected(operation: Operation, data_type: int) -> Formula:
    """Return what the operation keeps, computed from the tensors that it saves."""
    return _bytes(operation.saved, data_type)


def with_fused_gelu(operation: Operation, data_type: int) -> Formula:
    """Return what the operation keeps where GELU is one kernel."""
    return _bytes(_FUSED_GELU if operation.name == "gelu" else operation.saved, data_type)


def _bytes(saved: tuple[Saved, ...], data_type: int) -> Formula:
    return sum_of(Formula.parse(tensor.elements) * tensor.bytes_each[data_type] for tensor in saved)


def table_7(dims: Dims, *, bs: int = 8, seq: int = 1024) -> PaperTable:
    """Return Table 7 for a GPT block with this model's hidden size and heads: every cell and every sum."""
    symbols = dims.symbols(bs, seq, 1)
    shown = {name: symbols[name] for name in "bsdh"}
    cells = [cell for data_type in range(3) for cell in _column(data_type, shown)]
    return PaperTable(
        model=dims.name, key="7", title="Table 7: activations of one GPT block, full fine-tuning",
        symbols=shown, cells=tuple(cells), remarks=_REMARKS,
    )  # fmt: skip


def _column(data_type: int, symbols: Mapping[str, int]) -> Iterator[PaperCell]:
    def cell(group: str, row: str, kind: str, formula: Formula, certainty: Certainty) -> PaperCell:
        return PaperCell(
            row=row, column=f"{DATA_TYPES[data_type]} {kind}", formula=formula, values=symbols,
            unit="bytes", certainty=certainty, group=group,
        )  # fmt: skip

    for operation in OPERATIONS:
        printed = Formula.parse(operation.printed[data_type])
        yield cell(operation.part, operation.name, PRINTED, printed, "as printed")
        yield cell(operation.part, operation.name, CORRECTED, corrected(operation, data_type), "derived")
    printed_cells = sum_of(Formula.parse(operation.printed[data_type]) for operation in OPERATIONS)
    right = sum_of(corrected(operation, data_type) for operation in OPERATIONS)
    fused = sum_of(with_fused_gelu(operation, data_type) for operation in OPERATIONS)
    yield cell(SUMS, "sum", PRINTED, Formula.parse(PRINTED_SUMS[data_type]), "as printed")
    yield cell(SUMS, "sum", CORRECTED, right, "derived")
    yield cell(SUMS, "printed cells added up", PRINTED, printed_cells, "derived")
    yield cell(SUMS, "with a fused GELU", CORRECTED, fused, "derived")
