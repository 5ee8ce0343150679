"""From a Trainer that stands ready to the run that it will take: what its arguments say, and what its model is.

Nothing of transformers or PyTorch is imported: the model, its adapters and the arguments are asked for what they have.
What the model really is (dtypes, attention, what is trained, how weights are stored) counts before what files or
arguments could say of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from lorafa_prof.api.options import as_said, defaults
from lorafa_prof.api.trained_by import is_prepared, optimizer_name
from lorafa_prof.configs import Reading, peft, trainer
from lorafa_prof.configs.applied import Applied, applied
from lorafa_prof.configs.draft import Draft
from lorafa_prof.configs.merging import merged
from lorafa_prof.configs.shared import ATTENTION, DTYPES
from lorafa_prof.engines import model_of_config
from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.runs import run_spec
from lorafa_prof.specs import RunSpec, Task

#: Rows of a data set that are looked at for the longest sequence.
MOST_ROWS = 100_000
#: What a model is trained for, by the end of its class's name.
_TASKS: Mapping[str, Task] = {
    "ForCausalLM": "causal-lm", "LMHeadModel": "causal-lm", "ForSequenceClassification": "seq-cls",
    "ForConditionalGeneration": "seq2seq-lm",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a Trainer will do, in our words."""

    run: RunSpec
    files: Applied
    """What its arguments say beside that."""
    parameters: Mapping[str, int]
    """Elements of the model itself, as far as they can be counted: "total", "trainable"."""

    def require_alike(self, parameters: Mapping[str, int]) -> None:
        """Refuse a prediction for a model that has not as many parameters: the Trainer's is then another.

        Raises:
            UnsupportedError: the text has both numbers.
        """
        for name, number in self.parameters.items():
            if parameters[name] != number:
                raise UnsupportedError(
                    f"the model has {number:,} {name} elements, and as it was understood {parameters[name]:,}: it is "
                    "built otherwise than transformers and PEFT would build it from its configuration"
                )


def training_of(
    model: Any, args: Any, *, dataset: Any = None, optimizer: Any = None, options: Mapping[str, Any]
) -> Training:
    """Return the run of a Trainer.

    Args:
        model: a transformers model, or PEFT's around one.
        args: its `TrainingArguments`.
        dataset: what it trains on; asked for the longest sequence where nothing else says one.
        optimizer: the one that it has made, or was given; None: what `args` ask for.
        options: run options that count before what is read here; without `seq`, sequences are as long as `max_length`
            of `args` says, or as the longest of the data set.

    Raises:
        BadInputError: no sequence length to be had, an option that there is not.
        UnsupportedError: what no engine models.
    """
    _refuse_wrappers(model, args)
    adapter = _adapter(model)
    reading = _reading(args, None if adapter is None else model.peft_config[adapter])
    said = as_said(options)
    found = _observed(model, adapter is not None, args) | _of_ranks(args, reading)
    if optimizer is not None and "optimizer" not in said:
        found["optimizer"] = optimizer_name(optimizer)
    method = _method(model, str(reading.options.get("method", "lora")), adapter)
    if "seq" not in said and "seq" not in reading.options:
        found |= _lengths(dataset, found["bs"])
    values = {**defaults(), **reading.options, **found, **said}
    values = {name: value for name, value in values.items() if name not in ("model", "method")}
    files = applied(reading, ["model", "method", *found, *said])
    run = run_spec(_model_spec(model), method, **values)
    return Training(run=run, files=files, parameters=_parameters(model, run))


def _refuse_wrappers(model: Any, args: Any) -> None:
    if not hasattr(model, "config") or not hasattr(model, "named_parameters"):
        raise BadInputError(f"a {type(model).__name__} is no transformers model: it has no configuration")
    if getattr(args, "n_gpu", 1) > 1:
        raise UnsupportedError("DataParallel over several GPUs is not modelled: start a process a GPU (torchrun)")


def _adapter(model: Any) -> str | None:
    """Return the name of the active adapter; None where there is none.

    Raises:
        UnsupportedError: several are active.
    """
    configs = getattr(model, "peft_config", None)
    if not configs or not hasattr(model, "get_base_model"):
        return None
    active = model.active_adapter
    names = [active] if isinstance(active, str) else list(active)
    if len(names) != 1:
        raise UnsupportedError(f"{len(names)} adapters are active at once; every engine knows one")
    return names[0]


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _reading(args: Any, adapter: Any) -> Reading:
    """Return what the arguments say, and the adapter's configuration, as if they were files."""
    name = type(args).__name__
    readings = [trainer.read(Draft(name, trainer.TOOL, _plain(args.to_dict())))]
    if adapter is not None:
        readings.append(peft.read(Draft(type(adapter).__name__, peft.TOOL, _plain(adapter.to_dict()))))
    return merged(readings)


def _plain(value: Any) -> Any:
    """Return what a file would hold: sets as lists, members of an enumeration as their values."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


# -- what the model is -----------------------------------------------------------------------------------------------


def _model_spec(model: Any) -> Any:
    base = _base(model)
    config = _plain(base.config.to_dict())
    config["architectures"] = [type(base).__name__]
    name = getattr(base.config, "_name_or_path", "") or config.get("model_type") or type(base).__name__
    task = next((task for ending, task in _TASKS.items() if type(base).__name__.endswith(ending)), None)
    if task is None:
        raise UnsupportedError(f"{type(base).__name__} is not modelled: classes for {', '.join(_TASKS)} are")
    return model_of_config(str(name), config, task)


def _parameters(model: Any, run: RunSpec) -> dict[str, int]:
    """Return the elements of the model; packed weights and shards do not tell how many they stand for."""
    if run.shard not in ("none", "ddp"):
        return {}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if run.resolved_quant != "none":
        return {"trainable": trained}
    return {"total": sum(p.numel() for p in model.parameters()), "trainable": trained}


def _observed(model: Any, adapted: bool, args: Any) -> dict[str, Any]:
    """Return the options that the model itself answers."""
    base = _base(model)
    found: dict[str, Any] = {"bs": args.per_device_train_batch_size, **_stored(base)}
    dtype = _most_common(_dtype(p) for name, p in model.named_parameters() if not _is_adapter(name))
    if dtype is not None and "quant" not in found:
        found["dtype"] = dtype
    if adapted:
        found["adapter_dtype"] = (
            _most_common(_dtype(p) for n, p in model.named_parameters() if _is_adapter(n)) or "auto"
        )
    attention = ATTENTION.get(str(getattr(base.config, "_attn_implementation", None)))
    if attention is None:
        said = getattr(base.config, "_attn_implementation", None)
        raise UnsupportedError(f"attention code {said!r} is not modelled: {', '.join(ATTENTION)} are")
    found["attn"] = attention
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        found["checkpointing"] = "full"
    return found


def _stored(base: Any) -> dict[str, Any]:
    """Return how quantised weights are stored, and the dtype that they are computed in; {} where they are not."""
    if not (getattr(base, "is_loaded_in_4bit", False) or getattr(base, "is_loaded_in_8bit", False)):
        return {}
    said = base.config.quantization_config
    config = said if isinstance(said, Mapping) else said.to_dict()
    plain = _plain(config)
    if getattr(base, "is_loaded_in_8bit", False):
        return {"quant": "int8"}
    if str(plain.get("bnb_4bit_quant_type")) != "nf4":
        raise UnsupportedError(f"weights in {plain.get('bnb_4bit_quant_type')}: of 4 bits nf4 is modelled")
    found = {"quant": "nf4-dq" if plain.get("bnb_4bit_use_double_quant") else "nf4"}
    kept = DTYPES.get(str(plain.get("bnb_4bit_compute_dtype", "")))
    return found | ({"dtype": kept} if kept else {})


def _dtype(parameter: Any) -> str | None:
    return DTYPES.get(str(parameter.dtype))


def _most_common(names: Iterator[str | None]) -> str | None:
    counted = Counter(name for name in names if name is not None)
    return counted.most_common(1)[0][0] if counted else None


def _is_adapter(name: str) -> bool:
    return ".lora_" in name or ".vera_" in name


def _method(model: Any, said: str, adapter: str | None) -> str:
    """Return the method: as the adapter's configuration has it, and as its layers and what is trained show.

    Raises:
        UnsupportedError: without an adapter, some weights are frozen; or layers of LoRA-FA that are not modelled.
    """
    if adapter is None:
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        if frozen:
            raise UnsupportedError(
                f"{len(frozen)} weights are frozen ({frozen[0]}, ...) and there is no adapter: full fine-tuning trains "
                "all of them"
            )
        return "full"
    if is_prepared(model, adapter):
        return "lora-fa"
    trained = {part: _trains(model, part) for part in ("lora_A", "lora_B")}
    if said in ("lora", "qlora") and trained == {"lora_A": False, "lora_B": True}:
        return "lora-fa-peft"
    if said in ("lora", "qlora") and trained == {"lora_A": True, "lora_B": False}:
        return "lora-fb"
    return said


def _trains(model: Any, part: str) -> bool:
    return any(parameter.requires_grad for name, parameter in model.named_parameters() if f".{part}." in name)


# -- ranks and lengths -----------------------------------------------------------------------------------------------


def _of_ranks(args: Any, reading: Reading) -> dict[str, Any]:
    """Return how many processes train, and as DDP where nothing else is said."""
    world = int(getattr(args, "world_size", 1) or 1)
    if world == 1:
        return {}
    return {"gpus": world, "shard": reading.options.get("shard", "ddp")}


def _lengths(dataset: Any, bs: int) -> dict[str, Any]:
    """Return the tokens of the longest sequence of a data set, which a batch is padded to, and whether it has to be.

    Raises:
        BadInputError: it does not tell, or is too long to be looked through.
    """
    advice = "how long are the sequences? Say seq="
    try:
        number = len(dataset)
    except TypeError:
        raise BadInputError(f"{advice}: the data set does not tell how many there are") from None
    if not 0 < number <= MOST_ROWS:
        raise BadInputError(
            f"{advice}: of {number:,} rows not all are looked at ({MOST_ROWS:,} at most, and one at least)"
        )
    lengths = set[int]()
    for row in (dataset[index] for index in range(number)):
        if not isinstance(row, Mapping) or "input_ids" not in row:
            raise BadInputError(f"{advice}: the rows of the data set have no input_ids")
        lengths.add(len(row["input_ids"]))
    return {"seq": max(lengths), "padded": bs > 1 and len(lengths) > 1}
