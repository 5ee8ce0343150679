"""The figures that a prediction and a measurement have in common: memory at the peak, time and arithmetic of a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from lorafa_prof.ledger import Category, Ledger
from lorafa_prof.units import format_bytes

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
    peak_blocks_bytes: int | None = None
    """What `torch.cuda.max_memory_allocated` would show, what is not split off of blocks above 1 MiB among it. Closed
    forms count tensors in `peak_allocated_bytes`, a simulation counts these blocks."""
    fragmentation_bytes: int | None = None
    """Peak reserved less peak allocated: what the allocator took beyond the most that was ever in use at once."""
    saved_activations_bytes: int | None = None
    """What autograd keeps at the end of the forward, whether or not that is the peak; unrounded."""
    trained_gradients_bytes: int | None = None
    """Gradients of all trained parameters, there at the optimizer step, whether or not that is the peak."""
    managed_bytes: int | None = None
    """Optimizer states in CUDA's managed memory, which are outside the allocator and move between card and host; None
    where the optimizer is not a paged one."""
    moments: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Largest allocated bytes in each phase of the step."""

    @classmethod
    def parts_from(cls, ledger: Ledger) -> dict[str, int]:
        """Return the parts as fields of this class, from the ledger of the peak."""
        return {name: ledger.total(category) for name, category in PART_FIELDS.items()}


def managed_lines(managed_bytes: int | None) -> tuple[str, ...]:
    """Return what is in managed memory as a line of what a prediction rests on; none where nothing is."""
    if managed_bytes is None:
        return ()
    line = (
        f"{managed_bytes:,} bytes of optimizer states in CUDA's managed memory: outside the allocator and all other "
        "figures, on the card while there is room and on the host otherwise"
    )
    return (line,)


def sequences_line(padded: bool) -> str:
    """Return what a prediction assumes of the sequences in a batch."""
    about = (
        "some of the batch is padding, and the attention mask says so"
        if padded
        else "every sequence is full, nothing is padded"
    )
    return f"{about}; labels are a tensor of their own"


#: What a prediction with the fused loss rests on, in every engine.
FUSED_LOSS = "head and loss in one, chunk by chunk, with the buffers that liger-kernel 0.8 makes"
#: What one with int8 weights rests on.
NO_OUTLIERS = "no column of a layer's input has outliers"
FP16_INPUTS = "bitsandbytes takes the inputs of int8 layers in fp16, whatever the dtype"
#: What nobody has compared of the fused loss, and of FSDP2 on CUDA.
LIGER_ITSELF = "liger-kernel itself: the buffers follow its source, and no run of it has been compared"
FSDP_TABLES = "FSDP2 on CUDA: the small tables of addresses inside chunk_cat and split_with_sizes_copy"
MANAGED_ITSELF = "managed memory itself: its bytes follow bitsandbytes' source, and no card has confirmed them"
LORA_GA_ITSELF = "LoRA-GA's decompositions on CUDA: no card has confirmed the peak of its initialisation"


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
    model_flops_causal: int | None = None
    """As `model_flops`, but of attention by a causal kernel only the scores up to the diagonal."""
    executed_flops_causal: int | None = None
    """As `executed_flops`, but of attention by a causal kernel only the scores up to the diagonal; the kernel computes
    whole blocks, and so a little more."""
    mfu: float | None = None
    mfu_6n: float | None = None
    hfu: float | None = None


def pass_and_training(before: int, training: int) -> str:
    """Say which of LoRA-GA's peaks is whose, bytes: the verdict goes by the larger one."""
    return (
        f"LoRA-GA's gradient pass before training allocates up to {format_bytes(before)}, "
        f"training up to {format_bytes(training)}"
    )
