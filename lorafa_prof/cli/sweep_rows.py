"""The rows of a sweep as lines of CSV: by closed forms for thousands of configurations at once, or by simulation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorafa_prof.cli.sweep_grid import KEYS, Block, columns
from lorafa_prof.errors import LorafaProfError
from lorafa_prof.reports.prediction import record
from lorafa_prof.reports.table import Scalar, csv_line

if TYPE_CHECKING:
    from lorafa_prof.analytic.figures import Figures, Numbers, RunFigures
    from lorafa_prof.analytic.plan import ParameterCount
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
            values = {"error": " ".join(str(error).split())}
        return csv_line([values.get(name) for name in self._figures])


class AnalyticRows:
    """Rows by closed forms; what has been worked out for a block serves for its next task."""

    def __init__(self, *, max_bs: bool) -> None:
        self._figures = columns(max_bs=max_bs)[len(KEYS) :]
        self._known: tuple[object, RunFigures] | None = None

    def __call__(self, task: Task) -> str:
        """Return the lines of a task's rows."""
        import numpy as np

        block = task.block
        row, column = np.divmod(np.arange(task.start, task.stop), len(block.bs))
        bs, seq = np.array(block.bs)[column], np.array(block.seq)[row]
        lines = np.empty((bs.size, len(block.devices)), dtype=object)
        for where, values in self._answers(block, bs, seq):
            for number, device in enumerate(block.devices):
                head, tail = block.key_parts[number]
                sizes = (bs[where].tolist(), seq[where].tolist())
                lines[where, number] = self._lines(head, sizes, tail, values(device))
        return "".join(lines.ravel().tolist())

    def _answers(self, block: Block, bs: Numbers, seq: Numbers) -> list[tuple[Any, _Values]]:
        """Return the answers for groups of the configurations, each with where in the arrays they are."""
        import numpy as np

        answers: list[tuple[Any, _Values]] = []
        limit = block.model.max_positions
        left = np.arange(seq.size)
        if limit is not None and seq.max() > limit:
            too_long = np.unique(seq[seq > limit]).tolist()
            answers += [(np.nonzero(seq == length)[0], _refusal_of(block, length)) for length in too_long]
            left = np.nonzero(seq <= limit)[0]
        if not left.size:
            return answers
        try:
            figures = self._figures_of(block, int(bs[left[0]]), int(seq[left[0]]))
        except LorafaProfError as error:
            return [*answers, (left, _refused(error))]
        for group in figures.groups(bs[left], seq[left]):
            where = left[group]
            try:
                values = _values(
                    figures.at(bs[where], seq[where]), figures.parameters(int(bs[where[0]]), int(seq[where[0]]))
                )
            except LorafaProfError as error:
                values = _refused(error)
            answers.append((where, values))
        return answers

    def _figures_of(self, block: Block, bs: int, seq: int) -> RunFigures:
        from lorafa_prof.analytic.figures import RunFigures

        if self._known is None or self._known[0] != block.key_parts:
            self._known = block.key_parts, RunFigures(block.run(bs, seq))
        return self._known[1]

    def _lines(self, head: str, sizes: tuple[list[int], list[int]], tail: str, values: Mapping[str, Any]) -> list[str]:
        """Return lines in one form: values that are lists differ from line to line, others are the same in all."""
        columns = [values.get(name) for name in self._figures]
        texts = ["%s" if isinstance(value, list) else _field(value) for value in columns]
        form = f"{_literal(head)}%d,%d{_literal(tail)}{','.join(texts)}{END}"
        varying = [value for value in columns if isinstance(value, list)]
        return [form % row for row in zip(*sizes, *varying, strict=True)]


_Values = Callable[["DeviceSpec | None"], Mapping[str, Any]]
"""From a device to figures by column: lists, one value a configuration, or one value for all."""


def _values(figures: Figures, parameters: ParameterCount) -> _Values:
    import numpy as np

    from lorafa_prof.analytic.workspaces import cublas_workspaces

    moments = np.array([csv_line([moment, None])[: -len(END) - 1] for moment in figures.moments], dtype=object)[
        figures.moment
    ]
    alike = {
        **{name: _column(part) for name, part in figures.parts.items()},
        "peak_moment": moments.tolist(), "saved_activations_bytes": _column(figures.saved_activations),
        "model_flops": _column(figures.model_flops), "executed_flops": _column(figures.executed_flops),
        "parameters_total": parameters.total, "parameters_trainable": parameters.trainable,
    }  # fmt: skip

    def on(device: DeviceSpec | None) -> Mapping[str, Any]:
        workspace = cublas_workspaces(device)
        peak = figures.peak_allocated + workspace
        values = {**alike, "workspace_bytes": workspace, "peak_allocated_bytes": _column(peak)}
        if device is not None:
            headroom = device.total_bytes - (device.context_bytes or 0) - peak
            values.update(
                capacity_bytes=device.total_bytes, context_bytes=device.context_bytes, headroom_bytes=_column(headroom),
                fits=np.where(headroom >= 0, "true", "false").tolist(),
            )  # fmt: skip
        return values

    return on


def _column(array: Numbers) -> Any:
    """Return an array as a list, or its one value if they are all the same."""
    return int(array[0]) if (array == array[0]).all() else array.tolist()


def _refused(error: LorafaProfError) -> _Values:
    return lambda device: {"error": " ".join(str(error).split())}


def _refusal_of(block: Block, length: int) -> _Values:
    """Return what a sequence beyond the model's positions is refused with."""
    try:
        block.run(1, length)
    except LorafaProfError as error:
        return _refused(error)
    raise AssertionError(f"{length} tokens are beyond the positions of {block.model.name}")


def _field(value: Scalar) -> str:
    """Return one value as it stands in a line, in a form's constant part."""
    return _literal(csv_line([value, None])[: -len(END) - 1])


def _literal(text: str) -> str:
    return text.replace("%", "%%")
