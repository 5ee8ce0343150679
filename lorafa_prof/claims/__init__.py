"""The LoRA-FA paper's figures and claims, asked of the engines.

The paper's numbers are in `lorafa_prof.analytic.paper.statements`; ours are computed when they are asked for.
"""

from collections.abc import Iterator, Mapping

from lorafa_prof.claims import figure_2, figure_4, sizes
from lorafa_prof.claims.asking import ASSUMPTIONS, Panel, Predict
from lorafa_prof.results.claims import Examined

__all__ = ["ASSUMPTIONS", "GROUPS", "Panel", "Predict", "examine"]

#: What is asked, in the paper's order.
GROUPS = (
    figure_2.memory, figure_2.batches, figure_2.arithmetic, figure_4.sequences, figure_4.ranks, figure_4.layers,
    sizes.text_figures,
)  # fmt: skip


def examine(engines: Mapping[str, Predict]) -> Iterator[Examined]:
    """Yield each group of statements with the engines' answers.

    Raises:
        MissingComponentError: the packages of an engine are not installed.
    """
    panel = Panel(engines)
    for group in GROUPS:
        yield group(panel)
