"""Which sequences an epoch puts into which batch.

Sequences are numbers from 0 on. The rules that shuffle take the very permutation that PyTorch makes from the same seed,
so that the batches are those of a real epoch: `random` is the first epoch of transformers' Trainer, whose `seed` is 42
unless it is told otherwise, `grouped` is its LengthGroupedSampler.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from lorafa_prof.errors import BadInputError
from lorafa_prof.lengths.reading import Integers
from lorafa_prof.specs import LARGEST_SIZE, require_choice, require_int

Rule = Literal["random", "sorted", "grouped", "file", "tokens", "packed"]
#: How rules are written on a command line.
RULES = tuple("tokens:N" if rule == "tokens" else rule for rule in get_args(Rule))
#: The seed of transformers' TrainingArguments.
DEFAULT_SEED = 42
MOST_SEED = 2**32 - 1
#: Batches that LengthGroupedSampler sorts together, at most.
MEGA_BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How sequences become batches."""

    rule: Rule = "random"
    """random: shuffled. sorted: longest first. grouped: shuffled, then sorted within mega-batches. file: as they come.
    tokens: batches of as many sequences as `tokens` hold, padding counted. packed: all tokens in one row after the
    other, each row full."""
    seed: int = DEFAULT_SEED
    """Of `random`, `grouped` and `tokens`; the others do not shuffle."""
    tokens: int | None = None
    """The budget of a batch, for `tokens` alone."""
    pad_to_multiple_of: int = 1
    """Batches are padded to the next multiple of so many tokens."""

    def __post_init__(self) -> None:
        require_choice("batching", self.rule, Rule)
        require_int("batching seed", self.seed, 0, MOST_SEED)
        require_int("pad to multiple of", self.pad_to_multiple_of, 1, 2**20)
        if (self.tokens is None) != (self.rule != "tokens"):
            raise BadInputError("a budget of tokens goes with the rule tokens:N, and that rule with a budget")
        if self.tokens is not None:
            require_int("tokens of a batch", self.tokens, 1, LARGEST_SIZE)

    @classmethod
    def parse(cls, text: str, **options: Any) -> Batching:
        """Return the batching that a rule in words stands for: "random", "tokens:16384", ...

        Raises:
            BadInputError: no such rule, a budget that is no integer, or an option out of range.
        """
        rule, colon, number = text.partition(":")
        if rule != "tokens" or not colon:
            require_choice("batching", text, RULES)
            return cls(rule=text, **options)  # type: ignore[arg-type]  # one of RULES
        if not number.isascii() or not number.isdecimal() or len(number) > 20:
            raise BadInputError(f"tokens:{number[:40]} has no whole number of tokens: write it as tokens:16384")
        return cls(rule="tokens", tokens=int(number), **options)

    @property
    def shuffles(self) -> bool:
        """Whether the seed matters."""
        return self.rule in ("random", "grouped", "tokens")

    @property
    def spelled(self) -> str:
        """The rule as a command line has it."""
        return self.rule if self.tokens is None else f"{self.rule}:{self.tokens}"

    def padded(self, longest: Integers) -> Integers:
        """Return what batches are padded to whose longest sequences are these."""
        unit = self.pad_to_multiple_of
        return -(-longest // unit) * unit


def order_of(lengths: Integers, batching: Batching, group: int) -> Integers:
    """Return all sequences in the order in which batches take them.

    Args:
        lengths: as the sampler sees them: truncated.
        batching: the rule; not `tokens` or `packed`, whose batches are made otherwise.
        group: sequences that `grouped` sorts mega-batches of: those of a step, all micro-batches together.
    """
    count = lengths.size
    if batching.rule == "sorted":
        return np.argsort(-lengths, kind="stable")
    if batching.rule == "file":
        return np.arange(count)
    shuffled = permutation(count, batching.seed)
    return shuffled if batching.rule == "random" else _grouped(lengths, shuffled, group)


def _grouped(lengths: Integers, shuffled: Integers, group: int) -> Integers:
    """Return the order of transformers' `get_length_grouped_indices`.

    Mega-batches of up to 50 batches, each sorted from the longest on; then the longest sequence of all changes places
    with the very first.
    """
    mega = max(1, min(lengths.size // (group * 4), MEGA_BATCH)) * group
    parts = [shuffled[start : start + mega] for start in range(0, lengths.size, mega)]
    parts = [part[np.argsort(-lengths[part], kind="stable")] for part in parts]
    longest = int(np.argmax([lengths[part[0]] for part in parts]))
    parts[0][0], parts[longest][0] = parts[longest][0], parts[0][0]
    return np.concatenate(parts)


def token_batches(lengths: Integers, batching: Batching) -> tuple[Integers, Integers]:
    """Return (all sequences in order, how many each batch takes) for batches within a budget of tokens.

    Sequences are shuffled, sorted by length, and put into a batch as long as the padded batch stays within the budget;
    then the batches are shuffled.

    Raises:
        BadInputError: the longest sequence alone is beyond the budget.
    """
    budget = batching.tokens
    assert budget is not None, "the rule tokens has a budget"
    shuffled = permutation(lengths.size, batching.seed)
    order = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    widths = batching.padded(lengths[order])
    if widths[-1] > budget:
        raise BadInputError(
            f"a sequence of {widths[-1]} tokens, padding counted, is beyond the batch's budget of {budget}: raise "
            f"tokens:N, or truncate with --seq"
        )
    counts = _within(widths, budget)
    starts = np.cumsum(counts) - counts
    batches = permutation(counts.size, batching.seed)
    return np.concatenate([order[starts[i] : starts[i] + counts[i]] for i in batches]), counts[batches]


def _within(widths: Integers, budget: int) -> Integers:
    """Return how many of rising widths go into each batch: as many as their number times the last keeps in budget."""
    counts, start = [], 0
    while start < widths.size:
        taken = np.arange(1, min(widths.size - start, budget // int(widths[start])) + 1)
        fits = taken * widths[start : start + taken.size] <= budget  # rising: true up to a place, false from there on
        counts.append(int(fits.sum()))
        start += counts[-1]
    return np.array(counts, dtype=np.int64)


@functools.lru_cache(maxsize=4)
def permutation(count: int, seed: int) -> Integers:
    """Return `torch.randperm(count, generator=torch.Generator().manual_seed(seed))` without PyTorch, to be read alone.

    Both PyTorch's generator on the CPU and NumPy's legacy one are MT19937 with the same seeding. PyTorch walks from the
    first place on and changes each with one drawn among itself and those behind (Fisher and Yates), by a 32-bit number
    modulo how many these are (`randperm_cpu` in ATen/native/TensorFactories.cpp).
    """
    places = list(range(count))
    if count > 1:
        drawn = np.random.RandomState(seed).randint(0, 2**32, size=count - 1, dtype=np.uint32)
        others = (np.arange(count - 1) + drawn % np.arange(count, 1, -1)).tolist()
        for here, there in enumerate(others):
            places[here], places[there] = places[there], places[here]
    result = np.array(places, dtype=np.int64)
    result.setflags(write=False)
    return result
