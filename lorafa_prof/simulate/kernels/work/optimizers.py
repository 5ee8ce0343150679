"""Optimizers of bitsandbytes 0.50 (csrc/kernels.cu): one kernel a parameter, in which gradients are read alone.

States in managed memory are read and written like all others; what the driver moves for that between card and host is
not in it.
"""

from __future__ import annotations

from lorafa_prof.simulate.kernels.work.registry import Part, register, whole
from lorafa_prof.simulate.kernels.workspaces import KernelCall

#: Places of the arguments in the operators' schemas.
_GRADIENT, _PARAMETER = (1, "g"), (2, "p")
_MOMENTS = ((3, "state1"), (4, "state2"))
_SCALES, _TABLES = ((14, "absmax1"), (15, "absmax2")), ((12, "qmap1"), (13, "qmap2"))

Place = tuple[int, str]


@register("bitsandbytes.optimizer_update_32bit")
def update_32bit(call: KernelCall) -> list[Part]:
    """Parameter and moments, read and written."""
    return _update(call, (_PARAMETER, *_MOMENTS))


@register("bitsandbytes.optimizer_update_8bit_blockwise")
def update_8bit(call: KernelCall) -> list[Part]:
    """The same with a scale for each block of a moment, and the tables of what a byte stands for, which are read."""
    return _update(call, (_PARAMETER, *_MOMENTS, *_SCALES), _TABLES)


def _update(call: KernelCall, updated: tuple[Place, ...], tables: tuple[Place, ...] = ()) -> list[Part]:
    # managed memory is one element here that stands for all, so that sizes are those of all elements
    both = sum(whole(call.argument(*place)) for place in updated)
    read = sum(whole(call.argument(*place)) for place in (_GRADIENT, *tables))
    return [Part(read=read + both, written=both, dtype=call.argument(*_PARAMETER).dtype)]
