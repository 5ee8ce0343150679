"""What one call of an operator does on the device: its arithmetic, the bytes that it moves, its kernels.

`works_of` is a pure function of the call. Products and attention have their shapes; of all else what counts is the
bytes: each distinct element of an argument is read once, each element of a result written once. Floating-point
operations are those of PyTorch's counter (`lorafa_prof.workload.arithmetic`), where it counts the operator.

Known limitations: a tensor that is given twice counts twice; elements that a kernel reads again (norms wider than a
block, split reductions) count once, as if a cache kept them; reductions that take two passes count as one kernel.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from lorafa_prof.simulate.calls import CallSpec
from lorafa_prof.simulate.kernels.work import attention, memory, optimizers, products
from lorafa_prof.simulate.kernels.work.foreach import is_foreach, kernels, lists_of
from lorafa_prof.simulate.kernels.work.registry import Part, dtype_name, formula_of, size, whole
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits, KernelCall
from lorafa_prof.speed.work import OpWork
from lorafa_prof.workload import arithmetic
from lorafa_prof.workload.naming import tensors_in

#: The modules whose import fills the registry.
TABLES = (attention, memory, optimizers, products)

__all__ = ["TABLES", "counts", "is_device_work", "is_view", "table_flops", "works_of"]

#: Operators that return a view without saying so in their schema.
_VIEWS = frozenset({"aten._unsafe_view", "aten._reshape_alias", "aten.lift_fresh", "aten._unsafe_split"})
#: Namespaces of operators that are not the device's: marks of the profiler, what ranks tell each other.
_NO_WORK = frozenset({"profiler", "c10d", "_c10d_functional"})
#: Writes each tensor of a list over.
_COPIES = "aten._foreach_copy_"
#: Gradients, which fused optimizers may write to, and do only where these are scaled.
_GRADS = "grads"


@functools.cache
def packet_name(func: Any) -> str:
    """Return an operator's name without its overload: "aten.mm"."""
    return str(getattr(func, "_overloadpacket", func))


@functools.cache
def counts(func: Any) -> bool:
    """Say whether an operator's floating-point operations are counted."""
    return arithmetic.formula_of(func) is not None


@functools.cache
def is_device_work(func: Any) -> bool:
    """Say whether an operator is the host's or the device's work at all."""
    return getattr(func, "namespace", "") not in _NO_WORK


@functools.cache
def is_view(func: Any) -> bool:
    """Say whether an operator returns its argument's storage, and does nothing on the device."""
    if packet_name(func) in _VIEWS:
        return True
    returned = [value.alias_info for value in func._schema.returns]
    return any(info is not None and not info.is_write for info in returned)


def works_of(spec: CallSpec, device: DeviceTraits) -> tuple[OpWork, ...]:
    """Return the work of a call, one entry a part that is a kernel of its own kind; phase and module are left empty.

    Args:
        spec: the call.
        device: where it runs: which kernel it is may depend on that.
    """
    func, packet = spec.func, packet_name(spec.func)
    name = str(func).removesuffix(".default")
    if is_view(func):
        return (_entry(name, Part(read=0, written=0, kernels=0), ""),)
    call = spec.kernel_call(str(func), device)
    formula = formula_of(packet)
    parts = [_by_arguments(func, call)] if formula is None else list(formula(call))
    if not parts:
        parts = [Part(read=0, written=0, kernels=0)]
    own = _dtype(call)
    return tuple(_entry(name, part, own) for part in parts)


def table_flops(func: Any, call: KernelCall) -> int | None:
    """Return the operations of a call by the table; None: it has no entry."""
    formula = arithmetic.formula_of(func)
    if formula is None:
        return None
    out = call.outputs if len(call.outputs) > 1 else call.outputs[0]
    return int(formula(*call.args, **call.kwargs, out_val=out))


def _entry(name: str, part: Part, dtype: str) -> OpWork:
    return OpWork(
        op=f"{name}: {part.what}" if part.what else name, kind=part.kind, phase="", module="",
        dtype=dtype if part.dtype is None else dtype_name(part.dtype), flops=part.flops, read_bytes=part.read,
        written_bytes=part.written, product=part.product, attention=part.attention, kernels=part.kernels,
        waits=part.waits,
    )  # fmt: skip


def _dtype(call: KernelCall) -> str:
    """Return the dtype of what a call returns, or else of its first tensor; of floating-point ones, where there are."""
    tensors = [*call.outputs, *tensors_in(list(call.args))]
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    return dtype_name((floating or tensors)[0].dtype) if tensors else ""


def _by_arguments(func: Any, call: KernelCall) -> Part:
    """Return the work of an operator that reads its arguments and writes its results, in one kernel."""
    read = written = 0
    packet = packet_name(func)
    fused = is_foreach(packet)
    for number, argument in enumerate(func._schema.arguments):
        value = call.args[number] if number < len(call.args) else call.kwargs.get(argument.name)
        given = list(tensors_in(value))
        if not given:
            continue
        is_result = argument.alias_info is not None and argument.alias_info.is_write
        if not argument.is_out and not (is_result and packet == _COPIES):  # what is written over is not read
            read += sum(map(size, given))
        if is_result and not (fused and argument.name == _GRADS):
            written += sum(map(whole, given))
    returned = func._schema.returns
    if not any(value.alias_info is not None for value in returned):
        written += sum(map(whole, call.outputs))
    flops = table_flops(func, call) if counts(func) else 0
    return Part(
        kind="matmul" if flops else "memory", read=read, written=written, flops=flops or 0,
        kernels=_kernels(func, call, fused) if read + written else 0,
    )  # fmt: skip


def _kernels(func: Any, call: KernelCall, fused: bool) -> int:
    if not fused or not call.args or not isinstance(call.args[0], (list, tuple)):
        return 1
    tensors = [value for value in call.args[0] if isinstance(value, torch.Tensor)]
    if not tensors:
        return 0
    lists = lists_of(call.args, call.outputs, len(tensors))
    if _is_optimizer(func):  # the steps, one number a tensor, go beside the lists
        lists = lists[:-1]
    return kernels(lists, scalars=str(func).endswith(".ScalarList"))


def _is_optimizer(func: Any) -> bool:
    return packet_name(func).startswith("aten._fused_adam")
