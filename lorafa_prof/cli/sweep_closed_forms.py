"""The rows of a sweep by closed forms, for thousands of configurations at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lorafa_prof.analytic.figures import Figures, Numbers, RunFigures
from lorafa_prof.analytic.thresholds import ClosedForms
from lorafa_prof.analytic.timer import Timer
from lorafa_prof.analytic.workspaces import cublas_workspaces
from lorafa_prof.cli.sweep_grid import KEYS, Block, Figures as Asked
from lorafa_prof.cli.sweep_lines import Bytes, choices, in_order, integers, side_by_side
from lorafa_prof.cli.sweep_rows import END, Task, in_one_line
from lorafa_prof.errors import LorafaProfError
from lorafa_prof.reports.prediction import TIME_COLUMNS
from lorafa_prof.reports.table import Scalar, csv_line
from lorafa_prof.specs import DeviceSpec, RunSpec

_Values = Mapping[str, Sequence[str | Bytes]]
"""Fields by column, each in parts: a text is the same for all configurations."""
_Group = tuple[npt.NDArray[np.intp], list[_Values]]
"""Which configurations, and the values for each device."""


class AnalyticRows:
    """Rows by closed forms; what has been worked out for a block serves for its next task."""

    def __init__(self, asked: Asked) -> None:
        self._columns = asked.columns[len(KEYS) :]
        self._max_bs = asked.max_bs
        self._timer = Timer(asked.profile, link=asked.link) if asked.timed else None
        self._known: tuple[object, RunFigures] | None = None
        self._forms = ClosedForms()

    def __call__(self, task: Task) -> bytes:
        """Return the lines of a task's rows."""
        block = task.block
        row, column = np.divmod(np.arange(task.start, task.stop), len(block.bs))
        bs, seq = np.array(block.bs)[column], np.array(block.seq)[row]
        groups = []
        for where, answers in self._answers(block, bs, seq):
            sizes: list[str | Bytes] = [*integers(bs[where]), ",", *integers(seq[where])]
            parts = []
            for key, values in zip(block.key_parts, answers, strict=True):
                parts += [key[0], *sizes, key[1], *self._fields(values)]
            groups.append((where, side_by_side(where.size, parts)))
        return in_order(bs.size, groups)

    def _fields(self, values: _Values) -> list[str | Bytes]:
        parts: list[str | Bytes] = []
        for name in self._columns:
            parts += [*values.get(name, ()), ","]
        return [*parts[:-1], END]

    def _answers(self, block: Block, bs: Numbers, seq: Numbers) -> Iterator[_Group]:
        """Yield the answers for groups of the configurations: where they are, and the figures for each device."""
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
                yield where, list(self._values(figures, block, bs[where], seq[where]))
            except LorafaProfError as error:
                yield where, [_refused(error)] * refused

    def _figures_of(self, block: Block, bs: int, seq: int) -> RunFigures:
        if self._known is None or self._known[0] != block.key_parts:
            self._known, self._forms = (block.key_parts, RunFigures(block.run(bs, seq))), ClosedForms()
        return self._known[1]

    def _values(self, figures: RunFigures, block: Block, bs: Numbers, seq: Numbers) -> Iterator[_Values]:
        """Yield the figures of configurations of one group, for each device."""
        found, parameters = figures.at(bs, seq), figures.parameters(int(bs[0]), int(seq[0]))
        alike = {
            **{name: _column(part) for name, part in found.parts.items()}, "peak_moment": _moments(found),
            "saved_activations_bytes": _column(found.saved_activations), "model_flops": _column(found.model_flops),
            "executed_flops": _column(found.executed_flops), "parameters_total": _same(parameters.total),
            "parameters_trainable": _same(parameters.trainable),
            "communication_bytes": _same(figures.communicated(int(bs[0]), int(seq[0]))),
        }  # fmt: skip
        for device in block.devices:
            workspace = cublas_workspaces(device)
            peak = found.peak_allocated + workspace
            shown = _column(found.parts["workspace_bytes"] + workspace)
            values: dict[str, Sequence[str | Bytes]] = {
                **alike, "workspace_bytes": shown, "peak_allocated_bytes": _column(peak),
            }  # fmt: skip
            if device is not None:
                room = device.total_bytes - (device.context_bytes or 0)
                values |= {
                    "capacity_bytes": _same(device.total_bytes), "context_bytes": _same(device.context_bytes),
                    "headroom_bytes": _column(room - peak), "fits": _verdicts(peak <= room),
                }  # fmt: skip
                if self._timer is not None:
                    runs = [block.run(*map(int, sizes)) for sizes in zip(bs, seq, strict=True)]
                    values |= self._times(self._timer, runs, device)
                if self._max_bs:
                    values["max_bs"] = _column(figures.largest_batches(seq, room - workspace))
            yield values

    def _times(self, timer: Timer, runs: Sequence[RunSpec], device: DeviceSpec) -> _Values:
        """Return the time columns of runs on a card: of each an answer of its own."""
        rows = [self._time(timer, run, device) for run in runs]
        each = np.arange(len(runs))
        return {
            name: [choices([csv_line([row[name], None])[: -len(END) - 1] for row in rows], each)]
            for name in TIME_COLUMNS
        }

    def _time(self, timer: Timer, run: RunSpec, device: DeviceSpec) -> dict[str, Scalar]:
        time = timer.step_time(run, device)
        rates = time.throughput(self._forms.arithmetic(run), run)
        return {
            **{name: getattr(rates, name, None) for name in TIME_COLUMNS}, "profile": time.profile.label,
            "why_no_time": time.why_not,
        }  # fmt: skip


def _same(value: Scalar) -> list[str | Bytes]:
    """Return a value that all lines have, as it stands in a line."""
    return [csv_line([value, None])[: -len(END) - 1]]


def _column(array: Numbers) -> list[str | Bytes]:
    """Return integers as they stand in the lines."""
    if (array == array[0]).all():
        return _same(int(array[0]))
    if array.dtype == object:  # Python's own, which may be beyond 64 bits
        return [choices([str(value) for value in array], np.arange(array.size))]
    return [*integers(array)]


def _moments(found: Figures) -> list[str | Bytes]:
    return _one_of([*found.moments], found.moment)


def _verdicts(fits: Numbers) -> list[str | Bytes]:
    return _one_of([False, True], np.asarray(fits, dtype=np.int64))


def _one_of(values: Sequence[Scalar], which: npt.NDArray[np.int64]) -> list[str | Bytes]:
    """Return of each line the one of a few values that it has."""
    if (which == which[0]).all():
        return _same(values[which[0]])
    return [choices([csv_line([value, None])[: -len(END) - 1] for value in values], which)]


def _refused(error: LorafaProfError) -> _Values:
    return {"error": _same(in_one_line(error))}


def _refusal_of(block: Block, length: int) -> _Values:
    """Return what a sequence beyond the model's positions is refused with."""
    try:
        block.run(1, length)
    except LorafaProfError as error:
        return _refused(error)
    raise AssertionError(f"{length} tokens are beyond the positions of {block.model.name}")
