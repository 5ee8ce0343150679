"""The padded batches of one epoch: how many sequences, how long, how much of it padding."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from lorafa_prof.errors import BadInputError
from lorafa_prof.lengths.batching import Batching, order_of, token_batches
from lorafa_prof.lengths.reading import Integers


@dataclass(frozen=True, kw_only=True, eq=False)
class Epoch:
    """Batches in their order; each array has a number a batch: (batches,)."""

    bs: Integers
    """Sequences."""
    seq: Integers
    """Tokens that each of them is padded to."""
    tokens: Integers
    """Tokens that are no padding."""

    def __len__(self) -> int:
        return int(self.bs.size)

    @cached_property
    def padded(self) -> npt.NDArray[np.bool_]:
        """Which batches have padding."""
        return np.asarray(self.bs * self.seq != self.tokens)

    @property
    def padding_share(self) -> float:
        """Padding as a share of all tokens of the epoch."""
        return 1.0 - float(self.tokens.sum()) / float((self.bs * self.seq).sum())

    @cached_property
    def shapes(self) -> Shapes:
        """The different shapes."""
        key = (self.bs << 32) | (self.seq << 1) | self.padded  # a batch is below 2**20, a sequence up to 2**30
        found, first, shape, count = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
        return Shapes(
            bs=found >> 32, seq=(found >> 1) & (2**31 - 1), padded=(found & 1).astype(bool), first=first, count=count,
            of_batch=shape.reshape(-1),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Shapes:
    """The different shapes of an epoch's batches: (shapes,)."""

    bs: Integers
    seq: Integers
    padded: npt.NDArray[np.bool_]
    """A batch with padding has a mask, and is another step than one without."""
    first: Integers
    """The first batch of each."""
    count: Integers
    """How many batches have it."""
    of_batch: Integers
    """The shape of each batch: (batches,)."""

    def __len__(self) -> int:
        return int(self.bs.size)


@dataclass(frozen=True, kw_only=True, eq=False)
class Lengths:
    """A data set by the lengths of its sequences, and how batches are made of them."""

    source: str
    """Name of the file that they are from, without its folder."""
    lengths: Integers = field(repr=False)
    """(sequences,), before anything is truncated."""
    batching: Batching

    def __len__(self) -> int:
        return int(self.lengths.size)

    @property
    def largest_batch(self) -> int:
        """No larger one is another: it has all that there is."""
        return MOST_ROWS if self.batching.rule == "packed" else len(self)

    def require_axis(self, axis: str) -> None:
        """Refuse to raise the batch size where there is none.

        Raises:
            BadInputError: batches are made by a budget of tokens.
        """
        if axis == "bs" and self.batching.rule == "tokens":
            raise BadInputError("a budget of tokens has no batch size that could be raised: --axis seq or rank")

    def truncated(self, limit: int) -> int:
        """Return how many sequences are longer; packing cuts where a row is full, and throws nothing away."""
        return 0 if self.batching.rule == "packed" else int((self.lengths > limit).sum())

    def epoch(self, bs: int, limit: int, accumulation: int = 1) -> Epoch:
        """Return the batches of one epoch; the last one has what is left (`dataloader_drop_last=False`).

        Args:
            bs: sequences in a batch; not asked for by the rule `tokens`.
            limit: longer sequences are truncated to so many tokens (max_length); packed rows have as many.
            accumulation: batches in a step, which the rule `grouped` groups by.

        Raises:
            BadInputError: a budget of tokens that the longest sequence is beyond.
        """
        batching = self.batching
        if batching.rule == "packed":
            return self._packed(bs, limit)
        kept = np.minimum(self.lengths, limit)
        if batching.rule == "tokens":
            order, counts = token_batches(kept, batching)
        else:
            order = order_of(kept, batching, bs * accumulation)
            full, rest = divmod(order.size, bs)
            counts = np.array([bs] * full + [rest] * (rest > 0), dtype=np.int64)
        ordered, starts = kept[order], np.cumsum(counts) - counts
        longest = np.maximum.reduceat(ordered, starts)
        return Epoch(bs=counts, seq=batching.padded(longest), tokens=np.add.reduceat(ordered, starts))

    def _packed(self, bs: int, limit: int) -> Epoch:
        """Return the batches of full rows; what is left of the tokens is the last row, and shorter."""
        full, rest = divmod(int(self.lengths.sum()), limit)
        if full >= MOST_ROWS:
            raise BadInputError(f"{full:,} rows of {limit} tokens are too many: at most {MOST_ROWS:,}")
        rows = np.full(full + (rest > 0), limit, dtype=np.int64)
        rows[full:] = rest
        starts = np.arange(0, rows.size, bs)
        counts = np.minimum(bs, rows.size - starts)
        return Epoch(
            bs=counts, seq=self.batching.padded(np.maximum.reduceat(rows, starts)), tokens=np.add.reduceat(rows, starts)
        )


#: Rows of the largest packed data set.
MOST_ROWS = 10_000_000
