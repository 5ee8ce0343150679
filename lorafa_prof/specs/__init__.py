"""What a run is: the model, the method, the device and the options, as frozen values checked when they are made.

Every engine takes the same `RunSpec`, so that a prediction and a measurement of one run can be held side by side.
"""

from __future__ import annotations

from lorafa_prof.specs.model import MlaSpec, ModelSpec, MoeSpec, RunnableModel
from lorafa_prof.specs.run import DeviceSpec, MethodSpec, RunSpec
from lorafa_prof.specs.values import (
    ITEMSIZE,
    KEPT_BY_DEFAULT,
    LARGEST_BATCH,
    LARGEST_RANK,
    LARGEST_SEQUENCE,
    LARGEST_SIZE,
    LORA_FA,
    METHODS,
    MOST_GPUS,
    MOST_MICRO_BATCHES,
    PAGED,
    PREPARED,
    AdapterDtype,
    Attention,
    Checkpointing,
    Dtype,
    KbitPreparation,
    KeptGroup,
    Loss,
    Optimizer,
    Quantization,
    Shard,
    Task,
    require_choice,
    require_int,
    require_number,
)

__all__ = [
    "ITEMSIZE",
    "KEPT_BY_DEFAULT",
    "LARGEST_BATCH",
    "LARGEST_RANK",
    "LARGEST_SEQUENCE",
    "LARGEST_SIZE",
    "LORA_FA",
    "METHODS",
    "MOST_GPUS",
    "MOST_MICRO_BATCHES",
    "PAGED",
    "PREPARED",
    "AdapterDtype",
    "Attention",
    "Checkpointing",
    "DeviceSpec",
    "Dtype",
    "KbitPreparation",
    "KeptGroup",
    "Loss",
    "MethodSpec",
    "MlaSpec",
    "ModelSpec",
    "MoeSpec",
    "Optimizer",
    "Quantization",
    "RunSpec",
    "RunnableModel",
    "Shard",
    "Task",
    "require_choice",
    "require_int",
    "require_number",
]
