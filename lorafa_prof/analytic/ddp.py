"""What DistributedDataParallel keeps beside the model: every gradient once more, in buckets that are reduced as wholes.

Sizes follow torch 2.13: `compute_bucket_assignment_by_size` and `Reducer::initialize_buckets` in
torch/csrc/distributed/c10d/reducer.cpp, the defaults of torch/nn/parallel/distributed.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from lorafa_prof.analytic.builder import BUFFERS
from lorafa_prof.analytic.optimizers import StateTensor
from lorafa_prof.analytic.sharing import Alone, from_the_last
from lorafa_prof.analytic.tensors import WORKSPACES
from lorafa_prof.sharding import Collective
from lorafa_prof.specs import ITEMSIZE

#: Bytes at which a bucket is full: the first one (`_DEFAULT_FIRST_BUCKET_BYTES`), which gradients reach soonest, and
#: any other (`bucket_cap_mb=25`).
FIRST, OTHERS = 2**20, 25 * 2**20

#: What bitsandbytes keeps of a 4-bit weight, of which modules know nothing.
_OF_NF4 = re.compile(r"\.(quant_state\.code|absmax|nested_absmax|nested_code|offset)$")


@dataclass(frozen=True)
class Bucket:
    """Gradients of one dtype that are reduced together."""

    elements: int
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of its buffer."""
        return self.elements * ITEMSIZE[self.dtype]


class Ddp(Alone):
    """DDP around a model: all is there as without it, and the buckets beside."""

    assumptions = ("torch's DistributedDataParallel with its defaults",)

    @cached_property
    def buckets(self) -> list[Bucket]:
        """The buckets of the trained parameters, each dtype's on their own.

        A bucket takes gradients until it is full, the one that fills it included. The order is that in which gradients
        come; taken here as that of the parameters from the last to the first, which moves no more than bucket borders.
        """
        unfilled: dict[str, int] = {}
        found: list[Bucket] = []
        begun: set[str] = set()
        for parameter in from_the_last([held for held in self.whole if held.parameter.requires_grad]):
            dtype = parameter.dtype
            unfilled[dtype] = unfilled.get(dtype, 0) + parameter.numel
            if unfilled[dtype] * ITEMSIZE[dtype] >= (OTHERS if dtype in begun else FIRST):
                begun.add(dtype)
                found.append(Bucket(unfilled.pop(dtype), dtype))
        return found + [Bucket(elements, dtype) for dtype, elements in unfilled.items()]

    def always(self) -> list[tuple[StateTensor, str]]:
        """See `Alone.always`."""
        return [(StateTensor("", "DDP bucket", (b.elements,), b.dtype, 1), WORKSPACES) for b in self.buckets]

    def collectives(self) -> list[Collective]:
        """Return the reductions of the buckets, and the broadcast of the modules' buffers before each forward."""
        buffers = (h for h in self.whole if h.parameter.kind == BUFFERS and not _OF_NF4.search(h.parameter.name))
        broadcast = sum(int(held.parameter.size[0]) * held.count for held in buffers)
        reduced: list[Collective] = [("all_reduce", bucket.nbytes) for bucket in self.buckets]
        return [*reduced, *([("broadcast", broadcast)] if broadcast else [])]
