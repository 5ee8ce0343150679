"""A run's model over several processes: DistributedDataParallel, or FSDP2's `fully_shard` per transformer block.

Of the LoRA-FA paper's variant (section E.4) FSDP2 shards the frozen base weights alone; gradients are averaged here.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.sharding import BY_FSDP, refuse_unshareable
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.naming import is_adapter

#: What `--shard` is built with.
BUILT = ("ddp", *BY_FSDP)


@dataclass(frozen=True, kw_only=True)
class Group:
    """This process among those that take the step together: the default process group of torch.distributed."""

    rank: int
    world_size: int


def refuse_in_group(run: RunSpec, group: Group) -> None:
    """Refuse what processes cannot do together.

    Raises:
        UnsupportedError: a way of sharding, or an option with it, that is not built.
        BadInputError: the run does not name as many GPUs as there are processes, or not how they share the work.
    """
    if run.shard.startswith("zero"):
        raise UnsupportedError(
            f"--shard {run.shard} is DeepSpeed's, and not built (`predict --engine analytic` has closed forms for it); "
            "--shard fsdp shards parameters, gradients and states"
        )
    if run.gpus != group.world_size:
        raise BadInputError(
            f"--gpus {run.gpus} is asked for, but {group.world_size} processes were started: let --gpus be the number "
            "of processes (torchrun's --nproc-per-node, times --nnodes)"
        )
    if run.shard not in BUILT:
        raise BadInputError(f"how are {group.world_size} GPUs to share the work? --shard {' or '.join(BUILT)}")
    refuse_unshareable(run)


def first_device(run: RunSpec, device: str) -> str:
    """Return where the whole model is made: FSDP2 moves it from the host to the device block by block."""
    return "cpu" if run.shard in BY_FSDP and device != "meta" else device


def distribute(model: torch.nn.Module, run: RunSpec, device: str) -> torch.nn.Module:
    """Return what is called in place of the model: a DDP wrapper, or the model itself, its parameters sharded.

    Args:
        model: of the run, whole, on `first_device`.
        run: says how.
        device: of this process: "cuda:1", "cpu".

    Raises:
        UnsupportedError: no transformer blocks are found in the model, or this torch has no FSDP2.
    """
    if run.shard == "ddp":
        ids = None if device in ("cpu", "meta") else [torch.device(device)]
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)
    whole = _left_whole(model) if run.shard == "frozen" else []
    _fully_shard(model, device, whole, keeps=run.shard == "fsdp-grad-op")
    for parameter in whole:  # which FSDP2 does not move
        parameter.data = parameter.data.to(device)
    return model


def _left_whole(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return what has no shards where only frozen base weights have: adapters, and all that is trained."""
    return [p for name, p in model.named_parameters() if p.requires_grad or is_adapter(name)]


@contextlib.contextmanager
def unreduced(entry: Any) -> Iterator[None]:
    """While entered, backwards leave each rank the gradients of its own batch, whole.

    Args:
        entry: from `distribute`, or a model that no others share.
    """
    if isinstance(entry, torch.nn.parallel.DistributedDataParallel):
        with entry.no_sync():
            yield
        return
    shards = hasattr(entry, "set_requires_gradient_sync")  # FSDP2's
    if shards:
        entry.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        if shards:
            entry.set_requires_gradient_sync(True)


def reduce_gradients(model: torch.nn.Module, group_size: int) -> None:
    """Average the gradients of whole parameters over all ranks, each in its own place."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad.div_(group_size)


def _fully_shard(model: Any, device: str, whole: Sequence[torch.nn.Parameter], *, keeps: bool) -> None:
    """Shard each block, then what is left, as PyTorch's own FSDP2 tutorial does; the module's options are defaults.

    Args:
        model: whole.
        device: of this process.
        whole: parameters that are left as they are.
        keeps: blocks stay gathered from their forward to their backward (`reshard_after_forward=False`).

    A group of parameters is gathered as a whole, in bytes where their dtypes differ: frozen bf16 weights and trained
    fp32 adapters may be in one. Only the trained ones of a group, whose gradients are reduced together, have to be of
    one dtype.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise UnsupportedError(
            f"torch {torch.__version__} has no FSDP2; 2.6 has it, --shard ddp works without"
        ) from None
    blocks = list(transformer_blocks(model))
    if not blocks:
        raise UnsupportedError(f"no transformer blocks are found in a {type(model).__name__}; --shard ddp needs none")
    mesh = init_device_mesh(device.partition(":")[0], (torch.distributed.get_world_size(),))
    options: dict[str, Any] = {"ignored_params": set(whole)} if whole else {}
    if options and "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise UnsupportedError(
            f"torch {torch.__version__}: FSDP2 cannot leave parameters whole, which --shard frozen needs; 2.7 can"
        )
    if keeps:
        options["reshard_after_forward"] = False
    for part in (*blocks, model):
        fully_shard(part, mesh=mesh, **options)


def transformer_blocks(model: Any) -> Iterator[torch.nn.Module]:
    """Yield the modules of a transformers model that it names as not to be split and keeps in a list: its layers."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(getattr(base, "_no_split_modules", None) or ())
    for module in base.modules():
        if isinstance(module, torch.nn.ModuleList):
            yield from (block for block in module if type(block).__name__ in names)
