"""The run options of the Python interface, and the runs that they describe, with or without configuration files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from lorafa_prof.configs import read_configs
from lorafa_prof.configs.applied import Applied, applied
from lorafa_prof.engines import model_for
from lorafa_prof.errors import BadInputError, UnknownNameError
from lorafa_prof.runs import name_list, run_spec
from lorafa_prof.specs import (
    AdapterDtype,
    Attention,
    Checkpointing,
    Dtype,
    KbitPreparation,
    Loss,
    ModelSpec,
    Optimizer,
    Quantization,
    RunnableModel,
    RunSpec,
    Shard,
)

Path = str | os.PathLike[str]


class RunOptions(TypedDict, total=False):
    """What a run is beside its model and method; the defaults are those of the command line."""

    bs: int
    """Micro-batch: sequences in one forward, on each GPU. 1."""
    seq: int
    """Tokens of a sequence. 1024."""
    rank: int
    """Rank r of the adapters. 64."""
    targets: str | Sequence[str]
    """"all-linear", "qv", suffixes of module names, or a pattern of whole names. "all-linear"."""
    layers: str | int | Sequence[int]
    """Layers with adapters: "all", the last so many (8, "50%"), or their numbers from 0 on. "all"."""
    dtype: Dtype
    """Of the base weights. "bf16"."""
    amp: bool
    """bf16 autocast around the forward. False."""
    adapter_dtype: AdapterDtype
    """"auto": what PEFT does."""
    attn: Attention
    """"sdpa"."""
    checkpointing: Checkpointing
    """"none"."""
    keep: str | Sequence[str]
    """What selective checkpointing keeps: groups of results, or operators as "aten.mm". "products,attention"."""
    dropout: float
    """On the adapters' input, a probability below 1. 0."""
    optimizer: Optimizer
    """"auto"."""
    quant: Quantization
    """"none"; the q-methods take "nf4"."""
    prepare_kbit: KbitPreparation
    """"none"."""
    loss: Loss
    """"hf"."""
    accumulation: int
    """Micro-batches before a step. 1."""
    clip: bool
    """Gradients are clipped by their common norm. False."""
    padded: bool
    """Some of the batch is padding, and its mask says so. False."""
    world_size: int
    """GPUs that train together, `--gpus` of the command line. 1."""
    shard: Shard
    """How they share the state. "none"."""


#: What the command line takes where nothing is said and `RunSpec` has no default.
_DEFAULTS = {"rank": 64, "targets": "all-linear", "dropout": 0.0, "layers": "all"}


def defaults() -> dict[str, Any]:
    """Return what counts where nothing is said and `RunSpec` has no default."""
    return dict(_DEFAULTS)


#: `RunSpec` calls it otherwise: here, as on the command line, gpus are cards to hold a run against.
_WORLD = "world_size"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The runs that a call asks for."""

    model: ModelSpec | RunnableModel
    methods: list[str]
    """[]: the default ones."""
    options: dict[str, Any]
    files: Applied

    def run(self, method: str) -> RunSpec:
        """Return the run of one method.

        Raises:
            LorafaProfError: options that are no options' values, or exclude each other.
        """
        return run_spec(self.model, method, **self.options)


def asked(
    model: str | None,
    method: str | Sequence[str] | None,
    config: Path | Sequence[Path],
    options: Mapping[str, Any],
    *,
    engine: str,
    trust: bool,
) -> Asked:
    """Return the runs that a call asks for: what it says counts before what files say, and that before defaults.

    Raises:
        BadInputError: an option that there is not, a value that is none, no model, a file that cannot be read.
        UnsupportedError: what no engine models.
    """
    methods = [] if method is None else name_list([method] if isinstance(method, str) else list(method), "method")
    paths = [config] if isinstance(config, (str, os.PathLike)) else list(config)
    reading = read_configs([os.fspath(path) for path in paths]) if paths else None
    said = as_said(options)
    given = [*said, *(["model"] if model is not None else []), *(["method"] if methods else [])]
    files = applied(reading, given)
    values = {**_DEFAULTS, **(reading.options if reading is not None else {}), **said}
    name, of_file = values.pop("model", None), values.pop("method", None)
    wanted = model if model is not None else name
    if not isinstance(wanted, str):
        raise BadInputError("which model? Name it (llama2-7b, a hub id, a path), or a configuration file that does")
    return Asked(
        model=model_for(engine, wanted, trust=trust), methods=methods or ([str(of_file)] if of_file else []),
        options=values, files=files,
    )  # fmt: skip


def as_said(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by the names that `RunSpec` has for them, and with values as the command line would have them.

    Raises:
        BadInputError: an option that there is not, or a list of something else than names or numbers.
    """
    _refuse_unknown(options)
    return {("gpus" if name == _WORLD else name): _plain(name, value) for name, value in options.items()}


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    """Refuse an option that there is not.

    Raises:
        UnknownNameError: the text offers the nearest ones.
    """
    known = RunOptions.__annotations__
    for name in options:
        if name not in known:
            raise UnknownNameError("option", name, known, f"Options: {', '.join(known)}.")


def _plain(name: str, value: Any) -> Any:
    """Return a value as the command line would have it.

    Raises:
        BadInputError: targets, layers or what is kept that are neither a text nor a list of them.
    """
    if name == "layers" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if name not in ("targets", "layers", "keep") or isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or not value:
        raise BadInputError(f"{name} must be a text or a list, not {type(value).__name__}")
    parts = [str(part) for part in value]
    return f"{parts[0]}-{parts[0]}" if name == "layers" and len(parts) == 1 else ",".join(parts)
