"""The rows of a sweep as lines of CSV: by closed forms for thousands of configurations at once, or by simulation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorafa_prof.cli.sweep_grid import KEYS, Block, columns
from lorafa_prof.errors import LorafaProfError
from lorafa_prof.reports.prediction import record
from lorafa_prof.reports.table import Scalar, csv_line

if TYPE_CHECKING:
    from lorafa_prof.analytic.figures import Figures, Numbers, RunFigures
    from lorafa_prof.results import Prediction
    from lorafa_prof.specs import DeviceSpec, RunSpec

END = "\r\n"


@dataclass(frozen=True, kw_only=True)
class Task:
    """Configurations of one block that are computed together: those from `start` up to `stop`."""

    block: Block
    start: int
    stop: int


Rows = Callable[[Task], str]
"""What makes the lines of a task's rows."""


def failed_rows(task: Task, text: str, *, max_bs: bool) -> str:
    """Return the rows of a task that came to nothing, each with `text` as its error."""
    figures = csv_line([text if name == "error" else None for name in columns(max_bs=max_bs)[len(KEYS) :]])
    keys = itertools.islice(task.block.keys(task.start), (task.stop - task.start) * len(task.block.devices))
    return "".join(f"{key}{figures}" for key in keys)


class SimulatedRows:
    """Rows by a function that predicts one run on one device."""

    def __init__(self, predict: Callable[[RunSpec, DeviceSpec | None], Prediction], *, max_bs: bool) -> None:
        self._predict = predict
        self._figures = columns(max_bs=max_bs)[len(KEYS) :]

    def __call__(self, task: Task) -> str:
        """Return the lines of a task's rows."""
        block, lines = task.block, []
        for number in range(task.start, task.stop):
            bs, seq = block.sizes(number)
            for device, (head, tail) in zip(block.devices, block.key_parts, strict=True):
                lines.append(f"{head}{bs},{seq}{tail}{self._row(block, bs, seq, device)}")
        return "".join(lines)

    def _row(self, block: Block, bs: int, seq: int, device: DeviceSpec | None) -> str:
        try:
            prediction = self._predict(block.run(bs, seq), device)
            values = record(prediction, prediction.fit[0] if prediction.fit else None)
        except LorafaProfError as error:
            values = {"error": _in_one_line(error)}
        return csv_line([values.get(name) for name in self._figures])


_Values = Mapping[str, Any]
"""Figures by column: lists, one value a configuration, or one value for all."""
_Places = Any
"""Where in arrays some configurations are."""


class AnalyticRows:
    """Rows by closed forms; what has been worked out for a block serves for its next task."""

    def __init__(self, *, max_bs: bool) -> None:
        self._columns = columns(max_bs=max_bs)[len(KEYS) :]
        self._max_bs = max_bs
        self._known: tuple[object, RunFigures] | None = None

    def __call__(self, task: Task) -> str:
        """Return the lines of a task's rows."""
        import numpy as np

        block = task.block
        row, column = np.divmod(np.arange(task.start, task.stop), len(block.bs))
        bs, seq = np.array(block.bs)[column], np.array(block.seq)[row]
        lines = np.empty((bs.size, len(block.devices)), dtype=object)
        for where, answers in self._answers(block, bs, seq):
            sizes = (bs[where].tolist(), seq[where].tolist())
            for number, values in enumerate(answers):
                lines[where, number] = self._lines(block.key_parts[number], sizes, values)
        return "".join(lines.ravel().tolist())

    def _answers(self, block: Block, bs: Numbers, seq: Numbers) -> Iterator[tuple[_Places, Sequence[_Values]]]:
        """Yield the answers for groups of the configurations: where they are, and the figures for each device."""
        import numpy as np

        refused = len(block.devices)
        limit = block.model.max_positions or int(seq.max())
        for length in np.unique(seq[seq > limit]).tolist():
            yield np.nonzero(seq == length)[0], [_refusal_of(block, length)] * refused
        left = np.nonzero(seq <= limit)[0]
        if not left.size:
            return
        try:
            figures = self._figures_of(block, int(bs[left[0]]), int(seq[left[0]]))
        except LorafaProfError as error:
            yield left, [_refused(error)] * refused
            return
        for group in figures.groups(bs[left], seq[left]):
            where = left[group]
            try:
                yield where, list(self._values(figures, block.devices, bs[where], seq[where]))
            except LorafaProfError as error:
                yield where, [_refused(error)] * refused

    def _figures_of(self, block: Block, bs: int, seq: int) -> RunFigures:
        from lorafa_prof.analytic.figures import RunFigures

        if self._known is None or self._known[0] != block.key_parts:
            self._known = block.key_parts, RunFigures(block.run(bs, seq))
        return self._known[1]

    def _values(
        self, figures: RunFigures, devices: Sequence[DeviceSpec | None], bs: Numbers, seq: Numbers
    ) -> Iterator[_Values]:
        """Yield the figures of configurations of one group, for each device."""
        from lorafa_prof.analytic.workspaces import cublas_workspaces

        found, parameters = figures.at(bs, seq), figures.parameters(int(bs[0]), int(seq[0]))
        alike = {
            **{name: _column(part) for name, part in found.parts.items()}, "peak_moment": _moments(found),
            "saved_activations_bytes": _column(found.saved_activations), "model_flops": _column(found.model_flops),
            "executed_flops": _column(found.executed_flops), "parameters_total": parameters.total,
            "parameters_trainable": parameters.trainable,
            "communication_bytes": figures.communicated(int(bs[0]), int(seq[0])),
        }  # fmt: skip
        for device in devices:
            workspace = cublas_workspaces(device)
            peak = found.peak_allocated + workspace
            shown = _column(found.parts["workspace_bytes"] + workspace)
            values = {**alike, "workspace_bytes": shown, "peak_allocated_bytes": _column(peak)}
            if device is not None:
                room = device.total_bytes - (device.context_bytes or 0)
                values |= {
                    "capacity_bytes": device.total_bytes, "context_bytes": device.context_bytes,
                    "headroom_bytes": _column(room - peak), "fits": [_YES if fits else _NO for fits in peak <= room],
                }  # fmt: skip
                if self._max_bs:
                    values["max_bs"] = _column(figures.largest_batches(seq, room - workspace))
            yield values

    def _lines(self, key: tuple[str, str], sizes: tuple[list[int], list[int]], values: _Values) -> list[str]:
        """Return lines in one form: values that are lists differ from line to line, others are the same in all."""
        columns = [values.get(name) for name in self._columns]
        texts = ["%s" if isinstance(value, list) else _literal(_field(value)) for value in columns]
        form = f"{_literal(key[0])}%d,%d{_literal(key[1])}{','.join(texts)}{END}"
        varying = [value for value in columns if isinstance(value, list)]
        return [form % row for row in zip(*sizes, *varying, strict=True)]


def _moments(figures: Figures) -> list[str]:
    fields = [_field(moment) for moment in figures.moments]
    return [fields[number] for number in figures.moment.tolist()]


def _column(array: Numbers) -> Any:
    """Return an array as a list, or its one value if they are all the same."""
    return int(array[0]) if (array == array[0]).all() else array.tolist()


def _refused(error: LorafaProfError) -> _Values:
    return {"error": _in_one_line(error)}


def _refusal_of(block: Block, length: int) -> _Values:
    """Return what a sequence beyond the model's positions is refused with."""
    try:
        block.run(1, length)
    except LorafaProfError as error:
        return _refused(error)
    raise AssertionError(f"{length} tokens are beyond the positions of {block.model.name}")


def _in_one_line(error: LorafaProfError) -> str:
    return " ".join(str(error).split())


def _field(value: Scalar) -> str:
    """Return one value as it stands in a line."""
    return csv_line([value, None])[: -len(END) - 1]


def _literal(text: str) -> str:
    """Return what stands for a text in a form of the operator %."""
    return text.replace("%", "%%")


_YES, _NO = _field(True), _field(False)
