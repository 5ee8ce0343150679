"""The options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import click
from click.core import ParameterSource

from lorafa_prof.cli.configuration import config_option, require_model
from lorafa_prof.cli.ranges import integers
from lorafa_prof.errors import BadInputError
from lorafa_prof.layers import shares_of
from lorafa_prof.runs import DEFAULT_METHODS, name_list
from lorafa_prof.specs import (
    KEPT_BY_DEFAULT,
    LARGEST_BATCH,
    LARGEST_RANK,
    LARGEST_SEQUENCE,
    MOST_GPUS,
    MOST_MICRO_BATCHES,
    AdapterDtype,
    Attention,
    Checkpointing,
    Dtype,
    KbitPreparation,
    KeptGroup,
    Loss,
    MethodSpec,
    Optimizer,
    Quantization,
    Shard,
    require_choice,
)

Function = TypeVar("Function", bound=Callable[..., object])


def _integers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Return the integers of a comma list, each once; a click callback."""
    try:
        return tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        text = f"{value[:60]!r} is not a comma list of integers, for example 1,2,4"
        raise click.BadParameter(text, ctx, param) from None


@dataclass(frozen=True, kw_only=True)
class _Option:
    """One run option: of one value for most commands, of many for a grid."""

    names: tuple[str, ...]
    """Flags, and last the parameter's name."""
    default: Any
    help: str
    kind: Any = None
    """A `Literal` to choose from, int, float or str; None: a switch."""
    most: int = 0
    """The largest integer."""
    what: str = ""
    """What an integer is, in words."""

    def single(self, **kind: Any) -> Callable[[Any], Any]:
        """Return the option of one value, or as `kind` says."""
        flags = self.names if self.kind is not None else (f"{self.names[0]}/--no-{self.names[0][2:]}", self.names[-1])
        kind = kind or {"type": self._type()}
        return click.option(*flags, default=self.default, show_default=True, help=self.help, **kind)

    def _type(self) -> Any:
        return click.Choice(get_args(self.kind)) if get_args(self.kind) else self.kind

    def many(self) -> tuple[Callable[[Any], Any], ...]:
        """Return the option whose values make an axis of a grid, as a tuple; for a switch also its denial."""
        about, flag, metavar = self.help, dict[str, Any](), "VALUE,..."
        if self.kind is int:
            metavar = "RANGE,..."
        elif get_args(self.kind):
            metavar = f"[{'|'.join(get_args(self.kind))}],..."
        elif self.kind is None:
            about, flag = f"{about[:-1]}: on, off, or both as on,off.", {"is_flag": False, "flag_value": "on"}
        elif self.kind is str:
            about = f"{about[:-1]}; once for each value."
        option = click.option(
            *self.names, multiple=True, callback=self._values, default=None, metavar=metavar, type=str,
            help=f"{about}  [default: {self._shown_default()}]", **flag,
        )  # fmt: skip
        return (option, self._denial()) if self.kind is None else (option,)

    def _denial(self) -> Callable[[Any], Any]:
        return click.option(
            f"--no-{self.names[0][2:]}", is_flag=True, expose_value=False, callback=self._deny,
            help=f"The same as {self.names[0]} off.",
        )  # fmt: skip

    def _deny(self, ctx: click.Context, param: click.Parameter, denied: bool) -> None:
        if denied:
            self._refuse_both(ctx, ctx.params.get(self.names[-1], ()))
            ctx.meta[self.names[0]] = "off"

    def _refuse_both(self, ctx: click.Context, values: Sequence[Any]) -> None:
        if True in values:
            flag = self.names[0]
            raise click.UsageError(
                f"{flag} and --no-{flag[2:]} contradict each other; for both write {flag} on,off", ctx
            )

    def _shown_default(self) -> str:
        return ("on" if self.default else "off") if self.kind is None else str(self.default)

    def _values(self, ctx: click.Context, param: click.Parameter, texts: Sequence[str]) -> tuple[Any, ...]:
        """Return the values of an axis, each once; a click callback."""
        if not texts:
            return (self.default,)
        if self.names[0] in ctx.meta and ctx.get_parameter_source(self.names[-1]) is ParameterSource.DEFAULT_MAP:
            return (False,)  # the denial on the command line counts before a configuration file
        try:
            if self.kind is int:
                return integers(self.what, ",".join(texts), most=self.most)
            parts = self._parts(texts)
            values = tuple(dict.fromkeys(self._value(part) for part in parts))
            if self.names[0] in ctx.meta:
                self._refuse_both(ctx, values)
            return values
        except BadInputError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    def _parts(self, texts: Sequence[str]) -> Sequence[str]:
        """Return the texts of single values; lists of targets and of numbers of layers are one value each."""
        if self.kind is not str:
            return name_list(texts, self.names[0])
        if self.names[0] == "--layers":
            return [part.strip() for text in texts for part in shares_of(text)]
        return list(texts)

    def _value(self, text: str) -> Any:
        if self.kind is None:
            require_choice(self.names[0], text, ("on", "off"))
            return text == "on"
        if self.kind is str:
            return ",".join(name.strip() for name in text.split(","))
        if self.kind is float:
            return MethodSpec(name="lora", dropout=_float(text)).dropout
        require_choice(self.names[0], text, self.kind)
        return text


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadInputError(f"{text[:40]!r} is not a number; write a comma list as 0,0.05,0.1") from None


_MODEL = click.option(
    "--model", callback=require_model, help="Alias, hub id, or path to a config.json or model folder.  [required]"
)
#: Says `trust_remote_code`: how a model is found, and so no part of what a run is.
trust_option = click.option(
    "--trust-remote-code", is_flag=True,
    help="Run Python code that lies in the model's folder, where its config.json names some (auto_map).",
)  # fmt: skip
#: The options that every sweep takes lists of.
_SIZES = (
    _Option(
        names=("--bs", "--batch-size", "bs"), default=1, help="Sequences in a batch.", kind=int, most=LARGEST_BATCH,
        what="batch size",
    ),
    _Option(
        names=("--seq", "--seq-len", "seq"), default=1024, help="Tokens a sequence.", kind=int, most=LARGEST_SEQUENCE,
        what="sequence length",
    ),
    _Option(
        names=("--rank", "rank"), default=64, help="Rank of the adapters.", kind=int, most=LARGEST_RANK, what="rank"
    ),
)  # fmt: skip
_OPTIONS = (
    _Option(
        names=("--targets", "targets"), default="all-linear", kind=str,
        help="all-linear, qv, a comma list of module-name suffixes, or a regular expression of whole names.",
    ),
    _Option(
        names=("--layers", "layers"), default="all", kind=str,
        help="Layers that are adapted: all, 8 (the last 8), 50% (the last half), or by number as 0-15 or 0,8,16.",
    ),
    _Option(names=("--dtype", "dtype"), kind=Dtype, default="bf16", help="Dtype of the base weights."),
    _Option(names=("--amp", "amp"), default=False, help="bf16 autocast around the forward."),
    _Option(
        names=("--adapter-dtype", "adapter_dtype"), kind=AdapterDtype, default="auto",
        help="Dtype of the adapters; auto is what PEFT does.",
    ),
    _Option(names=("--attn", "attn"), kind=Attention, default="sdpa", help="Attention code."),
    _Option(
        names=("--checkpointing", "checkpointing"), kind=Checkpointing, default="none", help="Recompute activations."
    ),
    _Option(
        names=("--keep", "keep"), default=",".join(KEPT_BY_DEFAULT), kind=str,
        help=f"Results that selective checkpointing keeps: {', '.join(get_args(KeptGroup))}, or operators as aten.mm.",
    ),
    _Option(names=("--dropout", "dropout"), kind=float, default=0.0, help="Dropout on the adapters' input."),
    _Option(
        names=("--optimizer", "optimizer"), kind=Optimizer, default="auto",
        help="auto: adamw, for LoRA-FA lorafa (for PEFT's lorafa-peft), for LoRA-Pro lora-pro; lora-pro-full has the "
        "weights' moments.",
    ),
    _Option(
        names=("--quant", "quant"), kind=Quantization, default="none",
        help="How base weights are stored; the q-methods take nf4.",
    ),
    _Option(
        names=("--prepare-kbit", "prepare_kbit"), kind=KbitPreparation, default="none",
        help="What is cast to fp32 beside quantised weights: peft norms, embeddings and head, trl norms alone.",
    ),
    _Option(
        names=("--loss", "loss"), kind=Loss, default="hf",
        help="hf: transformers' own; fused: head and loss in one, chunk by chunk.",
    ),
    _Option(
        names=("--accumulation", "accumulation"), kind=int, default=1, help="Micro-batches before a step.",
        most=MOST_MICRO_BATCHES, what="accumulation",
    ),
    _Option(names=("--clip", "clip"), default=False, help="Clip gradients by their common norm."),
    _Option(names=("--gpus", "gpus"), kind=int, default=1, help="Number of GPUs.", most=MOST_GPUS, what="gpus"),
    _Option(names=("--shard", "shard"), kind=Shard, default="none", help="How GPUs share the state."),
)  # fmt: skip

#: Of one batch: a sweep over batches and lengths has none of it.
_PADDED = _Option(
    names=("--padded", "padded"), default=False,
    help="Some of the batch is padding, and its mask says so: sdpa then runs another kernel.",
)  # fmt: skip
#: All that describes one run, beside its model and method.
RUN = (*_SIZES, *_OPTIONS, _PADDED)


def run_options(function: Function) -> Function:
    """Add the run options to a command."""
    options = (option.single() for option in RUN)
    return _with(function, _MODEL, config_option, *options, trust_option)


def optional_run_options(function: Function) -> Function:
    """Add the run options to a command that may take its run from a file, and then has the model None."""
    model = click.option("--model", help="Alias, hub id, or path to a config.json or model folder.")
    options = (option.single() for option in RUN)
    return _with(function, model, config_option, *options, trust_option)


def run_parameters() -> frozenset[str]:
    """Return the names of the parameters that describe a run."""
    return frozenset({"model", "methods", "config", "trust_remote_code", *(option.names[-1] for option in RUN)})


def sweep_options(function: Function) -> Function:
    """Add the run options to a command that takes comma lists for `bs`, `seq` and `rank`, as tuples."""
    sizes = (option.single(type=str, callback=_integers, metavar="N,...") for option in _SIZES)
    rest = (option.single() for option in (*_OPTIONS, _PADDED))
    return _with(function, _MODEL, config_option, *sizes, *rest, trust_option)


def grid_options(function: Function) -> Function:
    """Add the run options, but the model, to a command that takes many values of each, as tuples."""
    return _with(function, config_option, *(one for option in (*_SIZES, *_OPTIONS) for one in option.many()))


def _with(function: Function, *options: Callable[[Any], Any]) -> Function:
    for option in reversed(options):
        function = option(function)
    return function


def link_option(function: Function) -> Function:
    """Add what links several cards, as `link`, a text."""
    return click.option(
        "--link", metavar="RATE",
        help="What each card can send to the others, as in 25GB/s; known for cards with NVLink.",
    )(function)  # fmt: skip


def allocator_options(function: Function) -> Function:
    """Add the allocator's settings, which the engine simulate takes, as `expandable_segments` and `alloc_conf`."""
    function = click.option(
        "--alloc-conf", metavar="TEXT", help="Allocator settings as PYTORCH_CUDA_ALLOC_CONF has them (engine simulate)."
    )(function)
    return click.option(
        "--expandable-segments", is_flag=True,
        help="The allocator setting; it changes reserved memory only (engine simulate).",
    )(function)  # fmt: skip


def methods_option(about: str = "Method", default: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Return `--method`, repeatable and with comma lists, passed to the command as `methods` (see `name_list`).

    Args:
        about: what a method is to the command.
        default: what the command is passed where none is named; (): nothing, and it takes `DEFAULT_METHODS`.
    """
    return click.option(
        "--method", "methods", multiple=True, default=default, metavar="M",
        help=f"{about}; may be repeated or a comma list.  [default: {', '.join(default or DEFAULT_METHODS)}]",
    )  # fmt: skip


def cards_option(about: str, more: str = "") -> Callable[[Function], Function]:
    """Return `--gpu`, repeatable and with comma lists, passed to the command as `gpus_asked` (see `name_list`).

    Args:
        about: what a card is to the command.
        more: what else is to be said of the names.
    """
    return click.option(
        "--gpu", "gpus_asked", multiple=True, metavar="G",
        help=f"{about} (alias or JSON file); may be repeated or a comma list{more}",
    )  # fmt: skip


def profile_option(what: str) -> Callable[[Function], Function]:
    """Return `--profile`, passed to the command as `profile`; `what` is what is timed by it."""
    return click.option(
        "--profile", metavar="FILE",
        help=f"Profile that calibrate wrote, for {what}.  [default: published shares of the card's peaks]",
    )  # fmt: skip


def step_options(fewest: int) -> Callable[[Function], Function]:
    """Return the options that say which steps are looked at, as `steps` (at least `fewest`), `warmup` and `trace`."""
    options = (
        click.option(
            "--steps", type=click.IntRange(fewest), default=10, show_default=True, help="Steps that are timed."
        ),
        click.option("--warmup", type=click.IntRange(1), default=3, show_default=True, help="Steps before these."),
        click.option(
            "--trace/--no-trace", default=True, show_default=True,
            help="After the timed steps, record what each block of one step's memory is for.",
        ),
    )  # fmt: skip
    return lambda function: _with(function, *options)


def limit_options(what: str) -> Callable[[Function], Function]:
    """Return the limits of a real step, as `cap` (see `parse_bytes`) and `timeout_s`; `what` is what takes the time."""
    options = (
        click.option("--cap", metavar="SIZE", help="Memory of a smaller card to emulate, for example 24GiB."),
        click.option(
            "--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
            help=f"End {what} that takes longer.  [default: never]",
        ),
    )  # fmt: skip
    return lambda function: _with(function, *options)


def allocator_conf(conf: str | None, expandable_segments: bool) -> str | None:
    """Return the allocator's settings that --alloc-conf and --expandable-segments ask for together.

    Raises:
        BadInputError: one says the opposite of the other.
    """
    if expandable_segments and "expandable_segments:False" in re.sub(r"\s", "", conf or ""):
        raise BadInputError("--expandable-segments and expandable_segments:False in --alloc-conf contradict each other")
    parts = [conf or "", "expandable_segments:True" if expandable_segments else ""]
    return ",".join(filter(None, parts)) or None
