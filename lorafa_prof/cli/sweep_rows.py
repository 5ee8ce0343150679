"""The rows of a sweep as lines of CSV: what a task of a sweep is, and the rows of one by simulation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorafa_prof.cli.sweep_grid import KEYS, Block, Figures
from lorafa_prof.errors import LorafaProfError
from lorafa_prof.reports.prediction import record
from lorafa_prof.reports.table import csv_line

if TYPE_CHECKING:
    from lorafa_prof.results import Prediction
    from lorafa_prof.specs import DeviceSpec, RunSpec

END = "\r\n"


@dataclass(frozen=True, kw_only=True)
class Task:
    """Configurations of one block that are computed together: those from `start` up to `stop`."""

    block: Block
    start: int
    stop: int


Rows = Callable[[Task], bytes]
"""What makes the lines of a task's rows, in UTF-8."""


def failed_rows(task: Task, text: str, asked: Figures) -> bytes:
    """Return the rows of a task that came to nothing, each with `text` as its error."""
    figures = csv_line([text if name == "error" else None for name in asked.columns[len(KEYS) :]])
    keys = itertools.islice(task.block.keys(task.start), (task.stop - task.start) * len(task.block.devices))
    return "".join(f"{key}{figures}" for key in keys).encode()


class SimulatedRows:
    """Rows by a function that predicts one run on one device."""

    def __init__(self, predict: Callable[[RunSpec, DeviceSpec | None], Prediction], asked: Figures) -> None:
        self._predict = predict
        self._figures = asked.columns[len(KEYS) :]

    def __call__(self, task: Task) -> bytes:
        """Return the lines of a task's rows."""
        block, lines = task.block, []
        for number in range(task.start, task.stop):
            bs, seq = block.sizes(number)
            for device, (head, tail) in zip(block.devices, block.key_parts, strict=True):
                lines.append(f"{head}{bs},{seq}{tail}{self._row(block, bs, seq, device)}")
        return "".join(lines).encode()

    def _row(self, block: Block, bs: int, seq: int, device: DeviceSpec | None) -> str:
        try:
            prediction = self._predict(block.run(bs, seq), device)
            values = record(prediction, prediction.fit[0] if prediction.fit else None)
        except LorafaProfError as error:
            values = {"error": in_one_line(error)}
        return csv_line([values.get(name) for name in self._figures])


def in_one_line(error: LorafaProfError) -> str:
    """Return an error as it stands in the column error."""
    return " ".join(str(error).split())
