"""The run options that several commands share, and how they become a `RunSpec`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args

import click

from lorafa_prof.errors import BadInputError
from lorafa_prof.specs import (
    METHODS,
    AdapterDtype,
    Attention,
    Checkpointing,
    Dtype,
    KbitPreparation,
    Loss,
    MethodSpec,
    ModelSpec,
    Optimizer,
    Quantization,
    RunSpec,
    Shard,
    require_choice,
)

Function = TypeVar("Function", bound=Callable[..., object])


def _choice(literal: Any) -> click.Choice[str]:
    return click.Choice(get_args(literal))


def _integers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Return the integers of a comma list, each once; a click callback."""
    try:
        return tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        text = f"{value[:60]!r} is not a comma list of integers, for example 1,2,4"
        raise click.BadParameter(text, ctx, param) from None


def _sizes(**kind: Any) -> tuple[Callable[[Any], Any], ...]:
    """Return the options that a sweep takes lists of."""
    return (
        click.option("--bs", "--batch-size", "bs", default=1, show_default=True, help="Sequences in a batch.", **kind),
        click.option("--seq", "--seq-len", "seq", default=1024, show_default=True, help="Tokens a sequence.", **kind),
        click.option("--rank", default=64, show_default=True, help="Rank of the adapters.", **kind),
    )


_MODEL = click.option("--model", required=True, help="Alias, hub id, or path to a config.json or model folder.")
_OPTIONS = (
    click.option(
        "--targets", default="all-linear", show_default=True,
        help="all-linear, qv, or a comma list of module-name suffixes.",
    ),
    click.option("--dtype", type=_choice(Dtype), default="bf16", show_default=True, help="Dtype of the base weights."),
    click.option("--amp/--no-amp", default=False, show_default=True, help="bf16 autocast around the forward."),
    click.option(
        "--adapter-dtype", type=_choice(AdapterDtype), default="auto", show_default=True,
        help="Dtype of the adapters; auto is what PEFT does.",
    ),
    click.option("--attn", type=_choice(Attention), default="sdpa", show_default=True, help="Attention code."),
    click.option(
        "--checkpointing", type=_choice(Checkpointing), default="none", show_default=True, help="Recompute activations."
    ),
    click.option("--dropout", type=float, default=0.0, show_default=True, help="Dropout on the adapters' input."),
    click.option(
        "--optimizer", type=_choice(Optimizer), default="auto", show_default=True,
        help="auto: adamw, and for LoRA-FA PEFT's lorafa.",
    ),
    click.option(
        "--quant", type=_choice(Quantization), default="none", show_default=True,
        help="How base weights are stored; the q-methods take nf4.",
    ),
    click.option(
        "--prepare-kbit", type=_choice(KbitPreparation), default="none", show_default=True,
        help="What is cast to fp32 beside quantised weights: peft norms, embeddings and head, trl norms alone.",
    ),
    click.option("--loss", type=_choice(Loss), default="hf", show_default=True, help="Loss code."),
    click.option("--gpus", type=int, default=1, show_default=True, help="Number of GPUs."),
    click.option("--shard", type=_choice(Shard), default="none", show_default=True, help="How GPUs share the state."),
)  # fmt: skip


def run_options(function: Function) -> Function:
    """Add the run options to a command."""
    return _with_options(function, _sizes(type=int))


def sweep_options(function: Function) -> Function:
    """Add the run options to a command that takes comma lists for `bs`, `seq` and `rank`, as tuples."""
    return _with_options(function, _sizes(type=str, callback=_integers, metavar="N,..."))


def _with_options(function: Function, sizes: tuple[Callable[[Any], Any], ...]) -> Function:
    for option in reversed((_MODEL, *sizes, *_OPTIONS)):
        function = option(function)
    return function


def allocator_options(function: Function) -> Function:
    """Add the allocator's settings, which the engine simulate takes, as `expandable_segments` and `alloc_conf`."""
    function = click.option(
        "--alloc-conf", metavar="TEXT", help="Allocator settings as PYTORCH_CUDA_ALLOC_CONF has them (engine simulate)."
    )(function)
    return click.option(
        "--expandable-segments", is_flag=True,
        help="The allocator setting; it changes reserved memory only (engine simulate).",
    )(function)  # fmt: skip


def name_list(values: Sequence[str]) -> list[str]:
    """Return the names of a repeatable option whose values may be comma lists, each once.

    Raises:
        BadInputError: an empty name, as an unset variable of a script leaves it.
    """
    names = [name.strip() for value in values for name in value.split(",")]
    if not all(names):
        raise BadInputError("an empty name among the values of --method or --gpu")
    return list(dict.fromkeys(names))


def run_spec(model: ModelSpec, method: str, *, rank: int, targets: str, dropout: float, **options: Any) -> RunSpec:
    """Return the run that the options describe for one method.

    Raises:
        BadInputError: a value out of range, or an empty target.
    """
    require_choice("method", method, METHODS)
    names = tuple(name.strip() for name in targets.split(","))
    if not all(names):
        raise BadInputError(f"--targets holds an empty name: {targets[:60]!r}")
    return RunSpec(model=model, method=MethodSpec(name=method, rank=rank, targets=names, dropout=dropout), **options)


def allocator_conf(conf: str | None, expandable_segments: bool) -> str | None:
    """Return the allocator's settings that --alloc-conf and --expandable-segments ask for together.

    Raises:
        BadInputError: one says the opposite of the other.
    """
    if expandable_segments and "expandable_segments:False" in re.sub(r"\s", "", conf or ""):
        raise BadInputError("--expandable-segments and expandable_segments:False in --alloc-conf contradict each other")
    parts = [conf or "", "expandable_segments:True" if expandable_segments else ""]
    return ",".join(filter(None, parts)) or None
