"""The words that options take, the limits of their numbers, and what complains of others."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

from lorafa_prof.errors import BadInputError, UnknownNameError

Dtype = Literal["bf16", "fp16", "fp32"]
AdapterDtype = Literal["auto", "bf16", "fp16", "fp32"]
Attention = Literal["sdpa", "flash", "eager"]
Checkpointing = Literal["none", "full", "selective"]
KeptGroup = Literal["products", "attention", "functions", "softmax", "casts"]
Quantization = Literal["none", "nf4", "nf4-dq", "int8"]
Optimizer = Literal[
    "auto", "adamw", "adamw-fused", "adamw-8bit", "paged-adamw", "paged-adamw-8bit", "sgd", "adafactor", "lorafa",
    "lorafa-peft", "lora-pro", "lora-pro-full",
]  # fmt: skip
#: bitsandbytes' optimizers whose large states are in CUDA's managed memory.
PAGED = ("paged-adamw", "paged-adamw-8bit")
KbitPreparation = Literal["none", "peft", "trl"]
Loss = Literal["hf", "fused"]
Shard = Literal["none", "ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp-grad-op", "frozen"]
Task = Literal["causal-lm", "seq-cls", "seq2seq-lm"]

#: Bytes of one element.
ITEMSIZE: Mapping[str, int] = MappingProxyType(
    {"bf16": 2, "fp16": 2, "fp32": 4, "int64": 8, "int32": 4, "uint8": 1, "int8": 1, "bool": 1}
)

#: The methods of the command-line contract, in the order in which they are listed.
METHODS = (
    "full", "lora", "lora-fa", "lora-fa-peft", "lora-fb", "lora-qv", "qlora", "qlora-fa", "vera", "dora", "pissa",
    "lora-plus", "adalora", "lora-ga", "lora-pro",
)  # fmt: skip

#: What selective checkpointing keeps unless something else is asked for: what is dear to compute again.
KEPT_BY_DEFAULT: tuple[str, ...] = ("products", "attention")
#: The name of an operator of torch, without its overload: aten.mm.
OPERATOR = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*", re.ASCII)

#: LoRA-FA's methods: ours, PEFT's, and ours over 4-bit weights.
LORA_FA = ("lora-fa", "lora-fa-peft", "qlora-fa")
#: Those whose adapters `lorafa_prof.lorafa` prepares.
PREPARED = ("lora-fa", "qlora-fa")

#: The methods that an optimizer of adapters goes with: LoRA-FA's hold A still, LoRA-Pro's moves both matrices at once.
OPTIMIZERS_OF_ADAPTERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "lorafa": LORA_FA,
        "lorafa-peft": LORA_FA,
        "lora-pro": ("lora-pro", "lora", "lora-qv", "qlora", "pissa"),
        "lora-pro-full": ("lora-pro", "lora", "lora-qv", "qlora", "pissa"),
    }
)

#: No size of a real run comes near this; what lies beyond is a mistake, and would only overflow further on.
LARGEST_SIZE = 2**40
LARGEST_BATCH, LARGEST_SEQUENCE, LARGEST_RANK, MOST_GPUS = 2**20, 2**30, 2**16, 2**20
MOST_MICRO_BATCHES = 2**20


def require_int(what: str, value: object, low: int = 1, high: int = LARGEST_SIZE) -> int:
    """Return `value` if it is an integer in [low, high], else raise `BadInputError` naming `what`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadInputError(f"{what} must be an integer, not {short(value)}")
    if not low <= value <= high:
        raise BadInputError(f"{what} must be between {low} and {high}, not {short(value)}")
    return value


def require_number(what: str, value: object, low: float, high: float) -> float:
    """Return `value` as a finite float in [low, high], else raise `BadInputError` naming `what`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadInputError(f"{what} must be a number, not {short(value)}")
    if not low <= value <= high or not math.isfinite(value):
        raise BadInputError(f"{what} must be between {low:g} and {high:g}, not {short(value)}")
    return float(value)


def require_choice(what: str, value: object, choices: object) -> None:
    """Raise `UnknownNameError` unless `value` is one of the strings of the Literal (or tuple) `choices`."""
    known = choices if isinstance(choices, tuple) else get_args(choices)
    if value not in known:
        raise UnknownNameError(what, str(value), known, f"Known: {', '.join(known)}.")


def short(value: object) -> str:
    """Return a value as messages show it: no more than 60 characters of it."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer past 4300 digits inside, or nesting without end
        text = f"this {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
