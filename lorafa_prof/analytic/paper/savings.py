"""Appendix C.3 (what LoRA-FA keeps less than LoRA) and the figures that the paper's running text claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorafa_prof.analytic.paper.cells import Certainty, PaperCell, PaperTable
from lorafa_prof.analytic.paper.dims import LLAMA3_70B, LLAMA_65B, Dims, Source
from lorafa_prof.analytic.paper.formula import Formula


@dataclass(frozen=True, kw_only=True)
class SharingRule:
    """Which inputs of the adapted layers are storages of their own, and how wide their elements are."""

    name: str
    when: str
    itemsize: int
    shared: bool
    """Layers that read one tensor keep it once."""
    context_is_free: bool = False
    """The output projection's input is the attention output, which the attention kernel keeps anyway."""
    certainty: Certainty = "derived"


OWN_INPUTS = "own inputs, 16-bit"
SHARED_EAGER = "shared once, eager attention"
SHARED_FUSED = "shared once, SDPA or flash"
FP32_ADAPTERS = "own inputs, fp32"

RULES = (
    SharingRule(
        name=OWN_INPUTS, when="fp32 adapters under bf16 autocast: every layer makes a private 16-bit copy",
        itemsize=2, shared=False, certainty="reconstructed",
    ),
    SharingRule(name=SHARED_EAGER, when="16-bit adapters, eager attention", itemsize=2, shared=True),
    SharingRule(
        name=SHARED_FUSED, when="16-bit adapters, SDPA or flash attention", itemsize=2, shared=True,
        context_is_free=True,
    ),
    SharingRule(
        name=FP32_ADAPTERS, when="PEFT's fp32 adapters without autocast: every layer makes a private fp32 copy",
        itemsize=4, shared=False,
    ),
)  # fmt: skip

_REMARKS_C3 = (
    (
        "LoRA keeps each adapted layer's input for the gradient of A; LoRA-FA does not, so the difference is "
        "those inputs (both keep xA)."
    ),
    (
        "The paper's 18 GB is the first rule, in which query, key and value count their common input three "
        "times, gate and up twice. Its printed formula was not available."
    ),
    (
        "PyTorch keeps a storage that several layers save once, so with 16-bit adapters the saving is "
        "smaller; with PEFT's default fp32 adapters the paper's count is right under autocast, and doubles "
        "without it."
    ),
    "The sharing is that of Llama's blocks, where it agrees with what autograd saves to the byte.",
    "Adapter dropout above 0 also gives every layer an input of its own.",
)


def saving(dims: Dims, rule: SharingRule) -> Formula:
    """Return the bytes that LoRA-FA keeps less than LoRA in one block under a sharing rule."""
    total = Formula(())
    seen: set[Source] = set()
    for linear in dims.linears:
        free = rule.shared and (linear.source in seen or (rule.context_is_free and linear.source == "context"))
        if not free:
            total += Formula.parse(f"{rule.itemsize}bs{dims.input_symbol(linear.source)}")
        seen.add(linear.source)
    return total


def table_c3(dims: Dims, *, bs: int = 8, seq: int = 1024) -> PaperTable:
    """Return the saving of C.3 under the four sharing rules, for one block and for all of them."""
    symbols = dims.symbols(bs, seq, 1)
    cells = []
    for rule in RULES:
        block = saving(dims, rule)
        for column, formula in (("per block", block), ("all blocks", block * Formula.parse("L"))):
            cells.append(
                PaperCell(
                    row=rule.name,
                    column=column,
                    formula=formula,
                    values=symbols,
                    unit="bytes",
                    certainty=rule.certainty,
                    group=rule.when,
                    paper=_paper_says(dims, rule, bs, seq, column),
                )
            )
    return PaperTable(
        model=dims.name, key="c3", title="C.3: activations that LoRA-FA saves over LoRA",
        symbols={name: symbols[name] for name in "bsdfaL"}, cells=tuple(cells), remarks=_REMARKS_C3,
    )  # fmt: skip


def _paper_says(dims: Dims, rule: SharingRule, bs: int, seq: int, column: str) -> str:
    """Return the paper's figure where these are the sizes that it speaks of: Llama2-7B, 8 sequences of 1024."""
    sizes = (dims.hidden, dims.ffn, dims.layers, bs, seq)
    same = sizes == (4096, 11008, 32, 8, 1024) and rule.name == OWN_INPUTS and column == "all blocks"
    return "at least 18 GB" if same else ""


def text_figures(dims: Dims, *, rank: int = 64) -> PaperTable:
    """Return the figures of the running text: 130 GB, 1 TB and the 8 KB of the cached inverse."""
    model = dims.symbols(1, 1, rank)
    figures: tuple[tuple[str, str, Mapping[str, int], str, str], ...] = (
        ("weights, 16-bit", "2P", LLAMA_65B.symbols(1, 1, rank), LLAMA_65B.name, "130 GB"),
        # weights 2, gradients 2, fp32 master 4, two fp32 moments 8: 16 bytes a parameter
        ("full fine-tuning: W, G, O with master", "16P", LLAMA3_70B.symbols(1, 1, rank), LLAMA3_70B.name, "> 1 TB"),
        ("inverse of AᵀA of one layer, 16-bit", "2r²", model, dims.name, "about 8 KB" if rank == 64 else ""),
        ("inverse of AᵀA of one layer, fp32", "4r²", model, dims.name, ""),
        ("inverses of every layer, 16-bit", "2Llr²", model, dims.name, ""),
    )
    cells = []
    for row, text, symbols, group, paper in figures:
        formula = Formula.parse(text)
        cells.append(
            PaperCell(
                row=row,
                column="bytes",
                formula=formula,
                values=symbols,
                unit="bytes",
                certainty="derived",
                group=group,
                paper=paper,
            )
        )
    remarks = (
        (
            f"P = {LLAMA_65B.parameters} is {_parameters(LLAMA_65B):,} for {LLAMA_65B.name} "
            f"and {_parameters(LLAMA3_70B):,} for {LLAMA3_70B.name}."
        ),
        "The 8 KB hold for the inverse in 16 bits; the released optimizers compute it anew in every step.",
    )
    return PaperTable(
        model=dims.name, key="text", title="Figures of the running text",
        symbols={"r": rank, "L": model["L"], "l": model["l"]}, cells=tuple(cells), remarks=remarks,
    )  # fmt: skip


def _parameters(dims: Dims) -> int:
    return dims.symbols(1, 1, 1)["P"]
