"""LoRA-Pro's optimizer: its states, and the births and deaths of what its step makes for one pair after the other.

The step is written as `lorafa_prof.workload.lora_pro` runs it, with symbolic tensors. Pairs of one shape are alike, so
each shape is recorded once; nothing of one pair is left when the next begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorafa_prof.analytic.builder import Held
from lorafa_prof.analytic.sizes import Dim, Shape
from lorafa_prof.analytic.tape import Tape
from lorafa_prof.analytic.tensors import Tensor
from lorafa_prof.errors import UnsupportedError

#: What eigenvalues are found in.
WIDE = "fp32"

#: What is not counted.
NOTE = "eigenvalues of each module's A A^T and B^T B in LoRA-Pro's optimizer: cuSOLVER's workspace"


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair of adapters, and how many real ones it stands for."""

    b: str
    """Name of B."""
    rank: Dim
    wide: tuple[Dim, Dim]
    """Shape of the weight, (k, m)."""
    dtype: str
    count: int


def paired(trained: Sequence[Held]) -> tuple[list[Pair], list[Held]]:
    """Return the pairs of adapters among the trained parameters, and what belongs to none.

    Raises:
        UnsupportedError: one over fused experts, which is no pair of matrices for one weight.
    """
    named = {held.parameter.name: held for held in trained}
    pairs, others = [], []
    for name, held in named.items():
        partner = named.get(name.replace(".lora_B.", ".lora_A."))
        if ".experts." in name and ".lora_B." in name:
            path = name.partition(".lora_B.")[0]
            raise UnsupportedError(f"LoRA-Pro's optimizer knows adapters of a single matrix, not that of {path}")
        if ".lora_B." in name and partner is not None:
            (rank, m), k = partner.parameter.shape, held.parameter.shape[0]
            pairs.append(Pair(name, rank, (k, m), held.parameter.dtype, held.count))
        elif ".lora_A." not in name or name.replace(".lora_A.", ".lora_B.") not in named:
            others.append(held)
    return pairs, others


def step_of_adapters(pairs: Sequence[Pair], others: Sequence[Held]) -> Tape:
    """Record a step whose moments are those of the adjusted gradients."""
    tape = Tape()
    for pair in _distinct(pairs):
        _Pair(tape, pair).along_adapters()
    _step_others(tape, others)
    return tape


def step_of_weights(pairs: Sequence[Pair], others: Sequence[Held], dtype: str) -> Tape:
    """Record a step whose moments are those of the weights' equivalent gradients, in `dtype`."""
    tape = Tape()
    for pair in _distinct(pairs):
        _Pair(tape, pair).along_weight(dtype)
    _step_others(tape, others)
    return tape


def _distinct(pairs: Sequence[Pair]) -> list[Pair]:
    return list({(pair.rank, pair.wide, pair.dtype): pair for pair in pairs}.values())


def _step_others(tape: Tape, others: Sequence[Held]) -> None:
    for shape, dtype in dict.fromkeys((held.parameter.shape, held.parameter.dtype) for held in others):
        tape.new("denominator", shape, dtype)


class _Pair:
    """One pair's part of a step."""

    def __init__(self, tape: Tape, pair: Pair) -> None:
        self._tape, self._dtype, self._wide = tape, pair.dtype, pair.wide
        k, m = pair.wide
        self._of_a, self._of_b, self._square = (pair.rank, m), (k, pair.rank), (pair.rank, pair.rank)

    def _new(self, name: str, shape: Shape, dtype: str = WIDE) -> Tensor:
        return self._tape.new(name, shape, dtype)

    def _cast(self, name: str, shape: Shape, source: str, to: str) -> Tensor | None:
        """Return a copy in another dtype; none where it is that already."""
        return None if source == to else self._new(f"{name} in {to}", shape, to)

    def along_adapters(self) -> None:
        """Adjust both gradients, then step A and B."""
        shapes = {"A": self._of_a, "B": self._of_b, "gradient of A": self._of_a, "gradient of B": self._of_b}
        wide = [self._cast(name, shape, self._dtype, WIDE) for name, shape in shapes.items()]
        adjusted = self._adjusted()
        del wide
        for name, shape in (("A", self._of_a), ("B", self._of_b)):
            cast = self._cast(f"adjusted gradient of {name}", shape, WIDE, self._dtype)
            self._new("denominator", shape, self._dtype)
            del cast
        del adjusted

    def along_weight(self, dtype: str) -> None:
        """Find Adam's direction for the weight, then adjust what LoRA's gradients would be along it."""
        a, b = self._cast("A", self._of_a, self._dtype, WIDE), self._cast("B", self._of_b, self._dtype, WIDE)
        direction = self._direction(dtype)
        along = self._new("direction of A", self._of_a), self._new("direction of B", self._of_b)
        del direction
        adjusted = self._adjusted()
        for name, shape in (("A", self._of_a), ("B", self._of_b)):
            self._cast(f"adjusted gradient of {name}", shape, WIDE, self._dtype)
        del a, b, along, adjusted

    def _direction(self, dtype: str) -> Tensor:
        shapes = {"gradient of A": self._of_a, "gradient of B": self._of_b}
        gradients = [self._cast(name, shape, self._dtype, WIDE) for name, shape in shapes.items()]
        equivalent = self._equivalent()
        cast = self._cast("equivalent gradient", self._wide, WIDE, dtype)
        del equivalent, cast, gradients
        direction = self._new("direction of the weight", self._wide, dtype)
        return self._cast("direction of the weight", self._wide, dtype, WIDE) or direction

    def _equivalent(self) -> Tensor:
        grams = _Grams(self)
        g_a, g_b = self._apart(grams)
        del grams
        equivalent = self._new("equivalent gradient", self._wide)
        del g_a, g_b
        return equivalent

    def _adjusted(self) -> tuple[Tensor, Tensor]:
        grams = _Grams(self)
        g_a, g_b = self._apart(grams)
        right = self._new("g_A A^T", self._square)
        x = self._sylvester(grams)
        del right, x
        return g_a, g_b

    def _apart(self, grams: _Grams) -> tuple[Tensor, Tensor]:
        inverse_b = self._inverse(grams.values_b)
        g_a = self._new("adjusted gradient of A", self._of_a)
        inverse_a = self._inverse(grams.values_a)
        g_b = self._new("adjusted gradient of B", self._of_b)
        del inverse_a
        onto = self._new("B^T g_B", self._square)
        projected = self._new("(B^T B)+ B^T g_B", self._square)
        del onto, projected, inverse_b
        return g_a, g_b

    def _sylvester(self, grams: _Grams) -> Tensor:
        sums = self._new("sums of eigenvalues", self._square)
        half = self._new("right side, turned", self._square)
        turned = self._new("right side, turned", self._square)
        del half
        self._reciprocal(sums)
        half = self._new("X, turned", self._square)
        x = self._new("X", self._square)
        del half, turned, sums
        return x

    def _inverse(self, values: Tensor) -> Tensor:
        reciprocal = self._reciprocal(values)
        scaled = self._new("scaled eigenvectors", self._square)
        del reciprocal
        inverse = self._new("inverse", self._square)
        del scaled
        return inverse

    def _reciprocal(self, values: Tensor) -> Tensor:
        largest = self._new("largest eigenvalue", ())
        smallest = self._new("smallest eigenvalue that counts", ())
        del largest
        reciprocal = self._new("reciprocal eigenvalues", values.shape)
        self._new("eigenvalues that do not count", values.shape, "bool")
        del smallest
        return reciprocal

    def gram(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the eigenvalues and the eigenvectors of a Gram matrix."""
        gram = self._new(name, self._square)
        values = self._new(f"eigenvalues of {name}", self._square[:1])
        vectors = self._new(f"eigenvectors of {name}", self._square)
        del gram
        return values, vectors


class _Grams:
    """Eigenvalues and eigenvectors of both Gram matrices."""

    def __init__(self, pair: _Pair) -> None:
        self.values_a, self.vectors_a = pair.gram("A A^T")
        self.values_b, self.vectors_b = pair.gram("B^T B")
