"""What an engine answers, as plain data: JSON in and out, with a schema version.

A figure that an engine does not produce is None (null), never 0. Bytes and FLOPs are integers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorafa_prof.errors import BadInputError
from lorafa_prof.ledger import Category, Ledger, MemoryItem
from lorafa_prof.specs import MethodSpec, MlaSpec, ModelSpec, MoeSpec, RunSpec

#: Version of the JSON layout; raised when a reader of the old one would misread the new one.
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of one step at its peak, bytes: the parts add up to `peak_allocated_bytes`."""

    weights_bytes: int | None
    adapter_bytes: int | None
    gradients_bytes: int | None
    optimizer_bytes: int | None
    activations_bytes: int | None
    logits_bytes: int | None
    temporaries_bytes: int | None
    workspace_bytes: int | None
    peak_allocated_bytes: int | None
    """What `torch.cuda.max_memory_allocated` would show."""
    peak_reserved_bytes: int | None
    """What `torch.cuda.max_memory_reserved` would show."""
    context_bytes: int | None
    """CUDA context and libraries, outside the allocator."""
    peak_device_bytes: int | None
    """What nvidia-smi would show: reserved and context."""
    peak_moment: str
    peak_requested_bytes: int | None = None
    """What `torch.cuda.memory_stats()["requested_bytes.all.peak"]` would show: before any rounding."""
    fragmentation_bytes: int | None = None
    """Peak reserved less peak allocated: what the allocator took beyond the most that was ever in use at once."""
    saved_activations_bytes: int | None = None
    """What autograd keeps at the end of the forward, whether or not that is the peak; unrounded."""
    trained_gradients_bytes: int | None = None
    """Gradients of all trained parameters, there at the optimizer step, whether or not that is the peak."""
    moments: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Largest allocated bytes in each phase of the step."""

    @classmethod
    def parts_from(cls, ledger: Ledger) -> dict[str, int]:
        """Return the parts as fields of this class, from the ledger of the peak."""
        return {name: ledger.total(category) for name, category in PART_FIELDS.items()}


#: The parts in the order in which they are shown, and the category each one sums.
PART_FIELDS: Mapping[str, Category] = {
    "weights_bytes": Category.WEIGHTS,
    "adapter_bytes": Category.ADAPTERS,
    "gradients_bytes": Category.GRADIENTS,
    "optimizer_bytes": Category.OPTIMIZER,
    "activations_bytes": Category.ACTIVATIONS,
    "logits_bytes": Category.LOGITS,
    "temporaries_bytes": Category.TEMPORARIES,
    "workspace_bytes": Category.WORKSPACES,
}


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Time and arithmetic of one step."""

    step_s: float | None = None
    tokens_per_s: float | None = None
    model_flops: int | None = None
    """Operations that the method needs in forward and backward, recomputation not counted, full attention."""
    executed_flops: int | None = None
    """Operations that run, with recomputation and what flash attention's backward repeats."""
    model_flops_6n: int | None = None
    """The 6 N convention: 6 * parameters without the embedding table * tokens, whatever the method trains."""
    mfu: float | None = None
    mfu_6n: float | None = None
    hfu: float | None = None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether a run fits on one device."""

    device: str
    capacity_bytes: int
    """What torch sees of the card's memory."""
    context_bytes: int | None
    """CUDA context and libraries on that card, counted in the verdict; None: not known, and so not counted."""
    fits: bool
    headroom_bytes: int
    """Capacity less the peak; negative where it does not fit."""
    max_bs: int | None
    """Largest batch that fits at this sequence length; 0 where none does; None where it was not looked for."""
    oom: str | None = None
    """PyTorch's message, where the engine knows which allocation fails."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One engine's answer for one run."""

    engine: str
    run: RunSpec
    versions: Mapping[str, str]
    """Versions of the libraries that the figures are for."""
    memory: Memory
    throughput: Throughput
    parameters: Mapping[str, int]
    """"total" and "trainable" elements."""
    fit: tuple[Fit, ...] = ()
    assumptions: tuple[str, ...] = ()
    unmodelled: tuple[str, ...] = ()
    ledger: Ledger | None = None
    """What is alive at the peak."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        data = {
            "schema": SCHEMA,
            "engine": self.engine,
            "run": run_to_json(self.run),
            "versions": dict(self.versions),
            "memory": _plain(self.memory),
            "throughput": _plain(self.throughput),
            "parameters": dict(self.parameters),
            "fit": [_plain(fit) for fit in self.fit],
            "assumptions": list(self.assumptions),
            "unmodelled": list(self.unmodelled),
        }
        if self.ledger is not None:
            data["ledger"] = {
                "moment": self.ledger.moment,
                "items": [item.to_json() for item in self.ledger.items],
            }
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Prediction:
        """Read what `to_json` wrote.

        Raises:
            BadInputError: a newer schema, a missing key, or a value of the wrong type.
        """
        schema = data.get("schema")
        if schema != SCHEMA:
            raise BadInputError(f"a prediction of schema {schema!r}; this version reads schema {SCHEMA}")
        try:
            ledger = data.get("ledger")
            return cls(
                engine=data["engine"],
                run=run_from_json(data["run"]),
                versions=dict(data["versions"]),
                memory=Memory(**data["memory"]),
                throughput=Throughput(**data["throughput"]),
                parameters=dict(data["parameters"]),
                fit=tuple(Fit(**fit) for fit in data["fit"]),
                assumptions=tuple(data["assumptions"]),
                unmodelled=tuple(data["unmodelled"]),
                ledger=None if ledger is None else _ledger_from_json(ledger),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInputError(f"not a prediction: {type(error).__name__}: {error}") from error


def _ledger_from_json(data: Mapping[str, Any]) -> Ledger:
    return Ledger(data["moment"], tuple(MemoryItem.from_json(item) for item in data["items"]))


def predictions_to_json(predictions: list[Prediction]) -> str:
    """Return the document that `predict --format json` prints."""
    return json.dumps({"predictions": [p.to_json() for p in predictions]}, indent=2, allow_nan=False) + "\n"


def run_to_json(run: RunSpec) -> dict[str, Any]:
    """Return a run as plain data, model and method included."""
    data: dict[str, Any] = _plain(run)
    return data


def run_from_json(data: Mapping[str, Any]) -> RunSpec:
    """Read what `run_to_json` wrote, checked like a run from the command line.

    Raises:
        BadInputError: a value out of range.
        TypeError, KeyError: not a run.
    """
    model = dict(data["model"])
    for name, kind in (("moe", MoeSpec), ("mla", MlaSpec)):
        if model.get(name) is not None:
            model[name] = kind(**model[name])
    model["layer_types"] = tuple(model["layer_types"])
    method = dict(data["method"])
    method["targets"] = tuple(method["targets"])
    rest = {key: value for key, value in data.items() if key not in ("model", "method")}
    return RunSpec(model=ModelSpec(**model), method=MethodSpec(**method), **rest)


def _plain(value: Any) -> Any:
    """Return dataclasses as dictionaries, tuples as lists, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
