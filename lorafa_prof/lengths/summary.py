"""From an epoch and the peaks of its batches to what a prediction says of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from lorafa_prof.lengths.epoch import Epoch, Lengths, Shapes
from lorafa_prof.results.lengths import QUANTILES, BatchLengths
from lorafa_prof.specs import RunSpec


def run_at(run: RunSpec, shapes: Shapes, number: int) -> RunSpec:
    """Return the run whose every batch has a shape of an epoch.

    Flash attention gets no padding, so that there is no mask (see `not_counted`).

    Raises:
        BadInputError: padded to more tokens than the model has positions.
    """
    padded = bool(shapes.padded[number]) and run.attn != "flash"
    return run.replace(bs=int(shapes.bs[number]), seq=int(shapes.seq[number]), padded=padded)


def largest_of(epoch: Epoch, peaks: npt.NDArray[Any]) -> int:
    """Return the shape with the largest peak; of several the one that comes first in the epoch.

    Args:
        epoch: the batches.
        peaks: one a shape: (shapes,).
    """
    largest = np.nonzero(peaks == peaks.max())[0]
    return int(largest[np.argmin(epoch.shapes.first[largest])])


def shape_ranks(epoch: Epoch, peaks: npt.NDArray[Any]) -> dict[str, int]:
    """Return the shapes whose peaks are the quantiles over all batches: the smallest that as many stay within."""
    rising = np.argsort(peaks, kind="stable")
    within = np.cumsum(epoch.shapes.count[rising])
    ranks = {name: math.ceil(share * len(epoch)) for name, share in QUANTILES.items()}
    return {name: int(rising[np.searchsorted(within, rank)]) for name, rank in ranks.items()}


def summary(
    lengths: Lengths, run: RunSpec, epoch: Epoch, worst: int, quantiles: dict[str, int], **played: int
) -> BatchLengths:
    """Return what is said of an epoch.

    Args:
        lengths: the data set.
        run: as asked for: `bs` sequences in a batch, truncated to `seq` tokens.
        epoch: its batches.
        worst: the shape with the largest peak.
        quantiles: of the batches' peaks, bytes.
        played: `steps_played` and `shapes_recorded`, where an engine has them.
    """
    batching, shapes = lengths.batching, epoch.shapes
    return BatchLengths(
        file=lengths.source, sequences=len(lengths), truncated=lengths.truncated(run.seq), max_length=run.seq,
        rule=batching.spelled, seed=batching.seed if batching.shuffles else None,
        pad_to_multiple_of=batching.pad_to_multiple_of, batch_size=None if batching.rule == "tokens" else run.bs,
        batches=len(epoch), shapes=len(shapes), tokens_per_batch=float((epoch.bs * epoch.seq).mean()),
        padding_share=epoch.padding_share, worst_batch=int(shapes.first[worst]), worst_bs=int(shapes.bs[worst]),
        worst_seq=int(shapes.seq[worst]), peak_allocated_bytes=quantiles, **played,
    )  # fmt: skip


def assumed(said: BatchLengths, run: RunSpec) -> tuple[str, ...]:
    """Return what a prediction of an epoch rests on, beside what one of its largest batch does."""
    seed = "" if said.seed is None else f", seed {said.seed}"
    place = f"number {said.worst_batch} of {said.batches:,} from 0 on"
    lines = [
        f"the run is the largest batch of an epoch, {place}: {said.worst_bs} x {said.worst_seq} tokens",
        f"batches by the rule {said.rule}{seed}; the last one has what is left",
    ]
    if said.rule == "packed":
        lines.append("sequences in a packed row attend to each other as one would: no positions or masks keep them off")
    else:
        unit = f" and a multiple of {said.pad_to_multiple_of}" if said.pad_to_multiple_of > 1 else ""
        lines.append(f"each batch is padded to its longest sequence{unit}, truncated to {said.max_length:,} tokens")
    if run.accumulation > 1:
        lines.append("all micro-batches of a step are like its largest")
    if run.gpus > 1:
        lines.append("the GPU that has the largest batch; what a sampler adds so that all have as many is not counted")
    return tuple(lines)


def not_counted(said: BatchLengths, run: RunSpec) -> tuple[str, ...]:
    """Return what is not modelled of padded batches."""
    if run.attn != "flash" or not said.padding_share:
        return ()
    return ("flash attention of padded batches, whose q, k and v transformers copies without the padding",)
