"""Batches of different lengths by closed forms: the peak of every shape of an epoch, and whose is the largest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lorafa_prof.analytic.engine import outside_plan, predict, refuse_unmodelled
from lorafa_prof.analytic.figures import Numbers, RunFigures
from lorafa_prof.analytic.grid import CHUNK
from lorafa_prof.analytic.thresholds import ClosedForms
from lorafa_prof.analytic.workspaces import cublas_workspaces
from lorafa_prof.errors import LorafaProfError
from lorafa_prof.lengths.epoch import Epoch, Lengths, Shapes
from lorafa_prof.lengths.summary import assumed, largest_of, not_counted, run_at, shape_ranks, summary
from lorafa_prof.results import Axis, Prediction, Throughput, along
from lorafa_prof.search import largest
from lorafa_prof.specs import LARGEST_BATCH, DeviceSpec, RunSpec
from lorafa_prof.thresholds import Verdict


class EpochForms(ClosedForms):
    """Judges and searches by the largest batch of an epoch; closed forms are kept from one question to the next.

    Args:
        lengths: the data set. What a run says of batch and sequence is how many sequences are in a batch, and what
            they are truncated to.
    """

    def __init__(self, lengths: Lengths) -> None:
        super().__init__()
        self._lengths = lengths
        self._figures: dict[tuple[RunSpec, int], RunFigures] = {}
        self.largest_batch = min(LARGEST_BATCH, lengths.largest_batch)

    def epoch(self, run: RunSpec) -> Epoch:
        """Return the batches of the run's epoch."""
        return self._lengths.epoch(run.bs, run.seq, run.accumulation)

    def predict(self, run: RunSpec, devices: Sequence[DeviceSpec] = (), *, largest_batch: bool = True) -> Prediction:
        """Predict the largest batch of an epoch, and say of the others what is known.

        Raises:
            UnsupportedError, ContradictionError: as `predict` of a single run.
            BadInputError: batches that cannot be made, or that the model has not the positions for.
        """
        epoch = self.epoch(run)
        peaks = self.peaks(run, epoch.shapes)
        worst = largest_of(epoch, peaks)
        workspace = cublas_workspaces(devices[0] if devices else None)
        quantiles = {name: int(peaks[i]) + workspace for name, i in shape_ranks(epoch, peaks).items()}
        said = summary(self._lengths, run, epoch, worst, quantiles)
        found = predict(run_at(run, epoch.shapes, worst), devices, largest_batch=False)
        fits = [replace(fit, max_bs=self._most(run, device)) for fit, device in zip(found.fit, devices, strict=True)]
        return replace(
            found, lengths=said, fit=tuple(fits) if largest_batch else found.fit,
            throughput=self._throughput(run, epoch, found),
            assumptions=(*assumed(said, run), *found.assumptions, "FLOPs are the mean of the epoch's steps"),
            unmodelled=(*found.unmodelled, *not_counted(said, run)),
        )  # fmt: skip

    def peaks(self, run: RunSpec, shapes: Shapes) -> Numbers:
        """Return the peak of each shape, bytes, library workspaces not counted: (shapes,)."""
        peaks = np.empty(len(shapes), dtype=object)
        for forms, where in self._chunks(run, shapes):
            peaks[where] = forms.allocated(shapes.bs[where], shapes.seq[where])
        return peaks

    def estimate(self, run: RunSpec, shapes: Shapes) -> Numbers | None:
        """Return the peaks for other engines to go by; None for what closed forms do not model."""
        try:
            return self.peaks(run, shapes)
        except LorafaProfError:
            return None

    def _chunks(self, run: RunSpec, shapes: Shapes) -> Iterator[tuple[RunFigures, npt.NDArray[np.intp]]]:
        """Yield shapes that have closed forms in common, some at a time."""
        longest = int(shapes.seq.argmax())
        run_at(run, shapes, longest)  # refuses what the model has not the positions for
        padded = shapes.padded if run.attn != "flash" else np.zeros(len(shapes), dtype=bool)
        for flag in (False, True):
            there = np.nonzero(padded == flag)[0]
            if not there.size:
                continue
            forms = self._forms(run.replace(padded=flag))
            for start in range(0, there.size, CHUNK):
                yield forms, there[start : start + CHUNK]

    def _forms(self, run: RunSpec) -> RunFigures:
        same = run.replace(bs=1, seq=1)
        key = (same, id(run.model.config))  # a model's configuration is no part of its equality
        if key not in self._figures:
            self._figures[key] = RunFigures(same)
        return self._figures[key]

    def _throughput(self, run: RunSpec, epoch: Epoch, found: Prediction) -> Throughput:
        """Return the mean of the epoch's steps, rounded to whole operations."""
        shapes, model, executed = epoch.shapes, 0, 0
        for forms, where in self._chunks(run, shapes):
            bs, seq, count = shapes.bs[where], shapes.seq[where], shapes.count[where].astype(object)
            for group in forms.groups(bs, seq):
                figures = forms.at(bs[group], seq[group])
                model += int((figures.model_flops.astype(object) * count[group]).sum())
                executed += int((figures.executed_flops.astype(object) * count[group]).sum())
        times = run.accumulation / len(epoch)
        at_worst = found.throughput.model_flops_6n
        tokens = float((epoch.bs * epoch.seq).mean()) * run.accumulation
        each = None if at_worst is None else round(at_worst / found.run.tokens * tokens)
        return Throughput(model_flops=round(model * times), executed_flops=round(executed * times), model_flops_6n=each)

    # -- thresholds: see `lorafa_prof.thresholds.Engine` -----------------------------------------------------------

    def verdict(self, run: RunSpec, device: DeviceSpec) -> Verdict:
        """Judge the epoch by its largest batch."""
        return Verdict.predicted(self.predict(run, [device], largest_batch=False))

    def headroom(self, run: RunSpec, device: DeviceSpec) -> int:
        """Return the headroom of the epoch's largest batch."""
        refuse_unmodelled(run)
        return device.total_bytes - outside_plan(device) - int(self.peaks(run, self.epoch(run).shapes).max())

    def largest(self, run: RunSpec, axis: Axis, device: DeviceSpec, most: int) -> int:
        """Return the largest value along an axis that fits; a batch is then of that many sequences, as the rule says.

        Raises:
            BadInputError: the batch size of a rule that has none.
        """
        self._lengths.require_axis(axis)
        return largest(lambda value: self.headroom(along(run, axis, value), device) >= 0, most=most)

    def gap(self, run: RunSpec, axis: Axis, device: DeviceSpec, below: int) -> int | None:
        """Not looked for: with each batch size the batches are others."""
        return None

    def _most(self, run: RunSpec, device: DeviceSpec) -> int | None:
        if self._lengths.batching.rule == "tokens":
            return None
        return self.largest(run, "bs", device, self.largest_batch)
