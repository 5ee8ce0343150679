"""What a prediction says of batches of different lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Shares of an epoch's batches whose peaks are told.
QUANTILES: Mapping[str, float] = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, kw_only=True)
class BatchLengths:
    """An epoch of padded batches, made of a file of lengths; the prediction's run is its largest batch."""

    file: str
    """Name of the file, without its folder."""
    sequences: int
    truncated: int
    """Sequences that were longer than `max_length`."""
    max_length: int
    """What sequences are truncated to, or packed rows filled to."""
    rule: str
    """How batches are made: "random", "grouped", "tokens:16384", ..."""
    seed: int | None
    """Of the shuffle; None: nothing is shuffled."""
    pad_to_multiple_of: int
    batch_size: int | None
    """Sequences in a batch, as asked for; None: batches are made by a budget of tokens."""
    batches: int
    shapes: int
    """Different ones: sequences, padded length, padding or none."""
    tokens_per_batch: float
    """The mean over the epoch, padding counted."""
    padding_share: float
    """Padding as a share of all tokens."""
    worst_batch: int
    """Number of the batch with the largest peak, from 0 on, in the epoch's order: the first of several."""
    worst_bs: int
    worst_seq: int
    peak_allocated_bytes: Mapping[str, int]
    """Quantiles of the batches' peaks, by name ("p50", "p95", "p99", "max"): as many of the batches stay within. A
    simulation has the largest alone where batches of a budget of tokens are nearly alike."""
    steps_played: int | None = None
    """Steps whose allocations were played in their order to learn what is reserved; None: reserved is not known."""
    shapes_recorded: int | None = None
    """Shapes whose step was really recorded, sizes at others following from these; None: closed forms need none."""
