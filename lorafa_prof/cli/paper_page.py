"""The page of the paper's figures and claims: the engines asked, the figures drawn, all written into a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lorafa_prof.cli.program import tell
from lorafa_prof.cli.progress import Progress, describe
from lorafa_prof.engines import simulating_on_cards
from lorafa_prof.reports.table import Table

if TYPE_CHECKING:
    from lorafa_prof.claims import Predict
    from lorafa_prof.results import Prediction
    from lorafa_prof.results.claims import Examined
    from lorafa_prof.specs import DeviceSpec, RunSpec

ENGINES = ("analytic", "simulate")
PAGE, FIGURES = "paper.md", "figures"


def write_page(folder: str, engines: Sequence[str], tables: Sequence[Table]) -> None:
    """Ask the engines, and write the page and its figures into a folder.

    Args:
        folder: it, or at least the folder that it lies in, exists; figures go into its folder "figures".
        engines: of `ENGINES`.
        tables: the paper's own tables, computed.

    Raises:
        MissingComponentError: the packages of an engine are not installed.
        BadInputError: the folder cannot be written.
    """
    from lorafa_prof.claims import ASSUMPTIONS, examine
    from lorafa_prof.reports.figures import rendered
    from lorafa_prof.reports.figures.paper import draw_examined
    from lorafa_prof.reports.folder import write_files
    from lorafa_prof.reports.paper_page import paper_page

    progress = Progress(None, "simulating")
    try:
        groups = list(examine({name: _predict(name, progress) for name in engines}))
    finally:
        progress.clear()
    drawings = [draw_examined(group) for group in groups if group.figure and group.points]
    files = {f"paper-{each.name}.svg": rendered(each.figure, "svg") for each in drawings}
    page = paper_page(
        groups, tables, assumptions=ASSUMPTIONS, versions=_versions(groups, engines),
        command="lorafa-prof paper -o docs/",
        pictures={each.name: f"{FIGURES}/paper-{each.name}.svg" for each in drawings},
    )  # fmt: skip
    for path in (*write_files(folder, {PAGE: page.encode()}), *write_files(f"{folder.rstrip('/')}/{FIGURES}", files)):
        tell(str(path))


def _predict(engine: str, progress: Progress) -> Predict:
    if engine == "analytic":
        return _by_closed_forms()
    simulated = simulating_on_cards()

    def predict(run: RunSpec, device: DeviceSpec | None, *, largest_batch: bool, timed: bool = False) -> Prediction:
        progress.begin(describe(run))
        return simulated(run, device, largest_batch=largest_batch, timed=timed)

    return predict


def _by_closed_forms() -> Predict:
    from lorafa_prof.analytic import predict as closed_forms
    from lorafa_prof.analytic.frontier import Plans

    plans = Plans()

    def predict(run: RunSpec, device: DeviceSpec | None, *, largest_batch: bool, timed: bool = False) -> Prediction:
        return closed_forms(
            run, [device] if device else [], plans=plans, largest_batch=largest_batch, timed=timed
        )  # fmt: skip

    return predict


def _versions(groups: Sequence[Examined], engines: Sequence[str]) -> dict[str, Mapping[str, str]]:
    """Return the releases that each engine's predictions are for: not each needs every library."""
    found: dict[str, dict[str, str]] = {engine: {} for engine in engines}
    for point in (point for group in groups for point in group.points):
        found[point.prediction.engine].update(point.prediction.versions)
    return dict(found.items())
