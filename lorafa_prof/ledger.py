"""What occupies memory, at which moment, and why: a list of items, from which every total is a query."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lorafa_prof.errors import BadInputError

#: The phases of LoRA-GA's pass before training: its forward and backward, and the decomposition of the gradients.
PRE_PASS, PRE_PASS_BACKWARD, INITIALISATION = "pre-pass", "pre-pass backward", "initialisation"
PASS = (PRE_PASS, PRE_PASS_BACKWARD, INITIALISATION)


class Category(enum.Enum):
    """What a piece of memory is for. Closed: every byte belongs to exactly one of these."""

    WEIGHTS = "weights"
    """Base model parameters and buffers, quantised or not."""
    ADAPTERS = "adapters"
    """Adapter parameters and the buffers that adapters share, trained or frozen."""
    GRADIENTS = "gradients"
    """Gradients of trained parameters."""
    OPTIMIZER = "optimizer"
    """Optimizer states that live from step to step."""
    ACTIVATIONS = "activations"
    """Storages that autograd keeps for backward, and the batch itself."""
    LOGITS = "logits"
    """Logits, the loss and what its forward and backward make."""
    TEMPORARIES = "temporaries"
    """What an operation or a Python variable holds for a moment."""
    WORKSPACES = "workspaces"
    """Buffers that libraries keep inside the allocator (cuBLAS)."""
    CONTEXT = "context"
    """Outside the allocator: CUDA context and libraries."""

    @property
    def in_allocator(self) -> bool:
        """Whether PyTorch's allocator counts it."""
        return self is not Category.CONTEXT


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryItem:
    """One tensor, or `count` alike ones in as many layers, alive at the moment that the ledger describes."""

    module: str
    """Module path; "*" stands for the layer's number."""
    tensor: str
    """What it is: "weight", "norm input to fp32", ..."""
    category: Category
    shape: str
    """Shape as text, with b and s for batch and sequence length."""
    dtype: str
    formula: str
    """Bytes of one, unrounded, as a formula in b and s."""
    count: int
    nbytes: int
    """Bytes of all of them together, each rounded as the allocator rounds."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "module": self.module, "tensor": self.tensor, "category": self.category.value, "shape": self.shape,
            "dtype": self.dtype, "formula": self.formula, "count": self.count, "bytes": self.nbytes,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MemoryItem:
        """Read what `to_json` wrote.

        Raises:
            BadInputError: a key is missing or has the wrong type.
        """
        try:
            texts = {k: _text(data[k]) for k in ("module", "tensor", "shape", "dtype", "formula")}
            category = Category(data["category"])
            return cls(category=category, count=_integer(data["count"]), nbytes=_integer(data["bytes"]), **texts)
        except (KeyError, ValueError, TypeError) as error:
            raise BadInputError(f"not a ledger item: {error}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, not {type(value).__name__}")
    return value


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected an integer, not {type(value).__name__}")
    return value


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is alive at one moment."""

    moment: str
    items: tuple[MemoryItem, ...]

    def total(self, category: Category | None = None) -> int:
        """Return the bytes of one category, or of all that the allocator counts."""
        if category is None:
            return sum(item.nbytes for item in self.items if item.category.in_allocator)
        return sum(item.nbytes for item in self.items if item.category is category)

    def parts(self) -> dict[Category, int]:
        """Return the bytes of every category, in the order of `Category`."""
        return {category: self.total(category) for category in Category}

    def largest(self, categories: Iterable[Category] | None = None) -> list[MemoryItem]:
        """Return the items (of some categories), largest first."""
        wanted = set(Category if categories is None else categories)
        return sorted((i for i in self.items if i.category in wanted), key=lambda i: (-i.nbytes, i.module, i.tensor))
