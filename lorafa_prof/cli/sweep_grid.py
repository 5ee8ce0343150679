"""The configurations of a sweep: every combination of some axes, in an order in which a file can be continued."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lorafa_prof.errors import BadInputError
from lorafa_prof.layers import ALL
from lorafa_prof.reports.prediction import RECORD_COLUMNS, TIME_COLUMNS, run_record
from lorafa_prof.reports.table import csv_line
from lorafa_prof.runs import layers_of, run_spec
from lorafa_prof.specs import KEPT_BY_DEFAULT, DeviceSpec, ModelSpec, RunnableModel, RunSpec
from lorafa_prof.speed.links import Link
from lorafa_prof.speed.profile import DeviceProfile

#: Rows of the largest sweep: some 30 GB of CSV.
MOST_ROWS = 10**8
#: Columns that say which configuration a row is of; no two rows of a sweep are alike in all of them.
KEYS = (
    "model", "method", "engine", "bs", "seq", "rank", "dtype", "adapter_dtype", "attn", "checkpointing", "optimizer",
    "quant", "targets", "layers", "dropout", "amp", "prepare_kbit", "loss", "accumulation", "clip", "gpus", "shard",
    "keep", "device",
)  # fmt: skip
#: Columns of words, of yes or no, and of fractions; all others hold integers.
TEXTS = frozenset(
    {"model", "method", "engine", "dtype", "adapter_dtype", "attn", "checkpointing", "optimizer", "quant", "targets",
     "layers", "prepare_kbit", "loss", "shard", "keep", "device", "peak_moment", "profile", "why_no_time", "error"}
)  # fmt: skip
SWITCHES = frozenset({"amp", "clip", "fits"})
FRACTIONS = frozenset({"dropout", "step_s", "tokens_per_s", "mfu", "mfu_6n", "hfu"})
#: Options that full fine-tuning does not have: of each the first value is taken.
_OF_ADAPTERS = ("rank", "targets", "dropout", "adapter_dtype")
#: The axes around the blocks, outermost first, in whatever order a command names its options; those within a block
#: are the sequence lengths, the batch sizes and the devices.
_AROUND = (
    "dtype", "adapter_dtype", "attn", "checkpointing", "optimizer", "quant", "targets", "layers", "dropout",
    "amp", "prepare_kbit", "loss", "accumulation", "clip", "gpus", "shard", "keep", "rank",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a row has beside the memory of its configuration."""

    max_bs: bool = False
    """The largest batch that fits on the card."""
    timed: bool = False
    """How long the step takes there."""
    profile: DeviceProfile | None = None
    """Of the card of its name, by which steps are timed; the others have their default profiles."""
    link: Link | None = None
    """Between several cards; None: theirs, where it is known."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a sweep's rows: the keys, the figures, and why a configuration was refused."""
        figures = [name for name in RECORD_COLUMNS if name not in KEYS and (self.max_bs or name != "max_bs")]
        return (*KEYS, *figures, *(TIME_COLUMNS if self.timed else ()), "error")

    def definition(self) -> dict[str, Any]:
        """Return what makes these figures the same as others, as plain data."""
        found: dict[str, Any] = {"columns": list(self.columns)}
        if self.profile is not None:
            text = json.dumps(self.profile.to_json(), sort_keys=True)
            found["profile"] = f"{self.profile.name} {hashlib.sha256(text.encode()).hexdigest()}"
        if self.link is not None:
            found["link_bytes_per_s"] = self.link.bytes_per_s
        return found


@dataclass(frozen=True, kw_only=True)
class Block:
    """Configurations that differ in batch size, sequence length and device alone."""

    model: ModelSpec | RunnableModel
    method: str
    engine: str
    options: Mapping[str, Any]
    """Every run option but the batch size and the sequence length, one value each."""
    bs: tuple[int, ...]
    seq: tuple[int, ...]
    devices: tuple[DeviceSpec | None, ...]
    """Cards to hold the runs against; (None,) where there are none."""

    @property
    def configurations(self) -> int:
        """How many there are, the devices not counted."""
        return len(self.bs) * len(self.seq)

    def sizes(self, number: int) -> tuple[int, int]:
        """Return batch size and sequence length of a configuration."""
        row, column = divmod(number, len(self.bs))
        return self.bs[column], self.seq[row]

    def run(self, bs: int, seq: int) -> RunSpec:
        """Return one configuration.

        Raises:
            LorafaProfError: the options exclude each other, or the model does not take so long a sequence.
        """
        return run_spec(self.model, self.method, bs=bs, seq=seq, **self.options)

    @cached_property
    def key_parts(self) -> list[tuple[str, str]]:
        """What a row's line begins with, for each device: before batch size and sequence length, and after them."""
        probe = run_spec(self.model, self.method, seq=1, **{**self.options, **_HARMLESS})
        known = {**self.options, "engine": self.engine, **run_record(probe)}
        known |= {"dropout": self.options["dropout"], "layers": probe.adapted_layers}
        parts = []
        for device in self.devices:
            known["device"] = device.name if device else None
            at = KEYS.index("bs")
            head, tail = csv_line([known[k] for k in KEYS[:at]]), csv_line([known[k] for k in KEYS[at + 2 :]])
            parts.append((head.rstrip("\r\n") + ",", "," + tail.rstrip("\r\n") + ","))
        return parts

    def keys(self, start: int = 0) -> Iterator[str]:
        """Yield what the lines of the rows begin with, those of configuration `start` first."""
        for number in range(start, self.configurations):
            bs, seq = self.sizes(number)
            for head, tail in self.key_parts:
                yield f"{head}{bs},{seq}{tail}"


@dataclass(frozen=True, kw_only=True)
class SweepGrid:
    """All configurations of a sweep."""

    models: tuple[ModelSpec | RunnableModel, ...]
    methods: tuple[str, ...]
    engine: str
    axes: Mapping[str, tuple[Any, ...]]
    """The values of each run option, "seq" and "bs" among them."""
    devices: tuple[DeviceSpec | None, ...]

    @cached_property
    def rows(self) -> int:
        """How many rows the sweep has: counted, not listed."""
        within = len(self.axes["bs"]) * len(self.axes["seq"]) * len(self.devices)
        blocks = sum(
            math.prod(len(values) for values in self._axes_of(model, method).values())
            for model, method in itertools.product(self.models, self.methods)
        )
        return blocks * within

    def refuse_too_many(self) -> None:
        """Refuse a sweep that nobody can have meant.

        Raises:
            BadInputError: too many rows; the text names how many, and which options make them.
        """
        if self.rows > MOST_ROWS:
            axes = {"model": self.models, "method": self.methods, **self.axes, "gpu": self.devices}
            makers = ", ".join(f"{len(v):,} of --{k.replace('_', '-')}" for k, v in axes.items() if len(v) > 1)
            raise BadInputError(f"{self.rows:,} rows ({makers}) are more than the {MOST_ROWS:,} of one sweep")

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks in their order."""
        for model, method in itertools.product(self.models, self.methods):
            axes = self._axes_of(model, method)
            for values in itertools.product(*axes.values()):
                yield Block(
                    model=model, method=method, engine=self.engine, options=dict(zip(axes, values, strict=True)),
                    bs=self.axes["bs"], seq=self.axes["seq"], devices=self.devices,
                )  # fmt: skip

    def definition(self) -> dict[str, Any]:
        """Return what makes this sweep the same as another, as plain data."""
        axes = {name: list(values) for name, values in self.axes.items()}
        devices = [device.name for device in self.devices if device]
        models = [model.name for model in self.models]
        return {"model": models, "method": list(self.methods), "engine": self.engine, **axes, "gpu": devices}

    def _axes_of(self, model: ModelSpec | RunnableModel, method: str) -> dict[str, tuple[Any, ...]]:
        """Return the axes around the blocks of a method: of values that mean the same for it the first alone."""
        axes = {name: self.axes[name] for name in _AROUND}
        axes["layers"] = _distinct_layers(model, axes["layers"]) if method != "full" else (ALL,)
        first = {name: values[0] for name, values in axes.items()} | _HARMLESS
        for targets in axes["targets"]:  # that no name is empty is for the whole sweep; what contradicts layers is not
            run_spec(model, method, seq=1, **first | {"targets": targets, "layers": ALL})
        probe = run_spec(model, method, seq=1, **first)
        for name in ("adapter_dtype", "optimizer", "quant"):
            distinct: dict[str, Any] = {}
            for value in axes[name]:
                distinct.setdefault(getattr(replace(probe, **{name: value}), f"resolved_{name}"), value)
            axes[name] = tuple(distinct.values())
        if method == "full":
            axes.update({name: axes[name][:1] for name in _OF_ADAPTERS})
        return axes


def _distinct_layers(model: ModelSpec | RunnableModel, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return texts that name different layers of the model, each the first that does."""
    distinct: dict[object, str] = {}
    for text in texts:
        distinct.setdefault(layers_of(text, model), text)
    return tuple(distinct.values())


#: What other options could contradict.
_HARMLESS = {"prepare_kbit": "none", "targets": "all-linear", "keep": ",".join(KEPT_BY_DEFAULT)}
