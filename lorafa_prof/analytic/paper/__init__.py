"""The LoRA-FA paper's own tables (arXiv 2308.03303), computed from formulas: as printed, and as corrected.

Nothing here is a recorded result: each cell holds a formula that prints itself and evaluates, and says whether the
paper prints it, whether it was reconstructed, or whether it was derived here.
"""

from lorafa_prof.analytic.paper.activations import table_7
from lorafa_prof.analytic.paper.cells import CERTAINTY, PaperCell, PaperTable
from lorafa_prof.analytic.paper.complexity import PRECISIONS, Precision, table_1, table_6
from lorafa_prof.analytic.paper.dims import LETTERS, Dims, Linear, dims_of, llama_dims
from lorafa_prof.analytic.paper.formula import Formula
from lorafa_prof.analytic.paper.savings import table_c3, text_figures

#: What `paper_table` knows, in the paper's order.
TABLES = ("1", "6", "7", "c3", "text")


def paper_table(key: str, dims: Dims, *, bs: int = 8, seq: int = 1024, rank: int = 64) -> PaperTable:
    """Return the table `key` of `TABLES` for these sizes."""
    return {
        "1": lambda: table_1(dims, bs=bs, seq=seq, rank=rank),
        "6": lambda: table_6(dims, rank=rank),
        "7": lambda: table_7(dims, bs=bs, seq=seq),
        "c3": lambda: table_c3(dims, bs=bs, seq=seq),
        "text": lambda: text_figures(dims, rank=rank),
    }[key]()


__all__ = [
    "CERTAINTY", "LETTERS", "PRECISIONS", "TABLES", "Dims", "Formula", "Linear", "PaperCell", "PaperTable", "Precision",
    "dims_of", "llama_dims", "paper_table", "table_1", "table_6", "table_7", "table_c3", "text_figures",
]  # fmt: skip
