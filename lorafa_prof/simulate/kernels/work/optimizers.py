"""Optimizers of bitsandbytes 0.50 (csrc/kernels.cu): one kernel a parameter, in which gradients are read alone.

States in managed memory are read and written like all others; what the driver moves for that between card and host is
not in it.
"""

from __future__ import annotations

import torch

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
    return _update(call, 4)


@register("bitsandbytes.optimizer_update_8bit_blockwise")
def update_8bit(call: KernelCall) -> list[Part]:
    """The same with a scale for each block of a moment, and the tables of what a byte stands for, which are read."""
    return _update(call, 1)


def _update(call: KernelCall, itemsize: int) -> list[Part]:
    parameter = call.argument(*_PARAMETER)
    both = whole(parameter) + sum(whole(call.argument(*place)) for place in _SCALES if _is_given(call, place))
    for place in _MOMENTS:
        moment = call.argument(*place)
        # one in managed memory is the host's to PyTorch, and no tensor of the device's calls
        both += parameter.numel() * itemsize if moment is None else whole(moment)
    read = sum(whole(call.argument(*place)) for place in (_GRADIENT, *_TABLES) if _is_given(call, place))
    return [Part(read=read + both, written=both, dtype=parameter.dtype)]


def _is_given(call: KernelCall, place: Place) -> bool:
    return isinstance(call.argument(*place), torch.Tensor)
