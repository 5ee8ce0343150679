"""A run: the device, the method, and all that is asked of a training step."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from lorafa_prof.errors import BadInputError, ContradictionError, UnknownNameError, UnsupportedError
from lorafa_prof.layers import ALL, Layers, check_within, spelled
from lorafa_prof.specs.model import ModelSpec, RunnableModel
from lorafa_prof.specs.values import (
    KEPT_BY_DEFAULT,
    LARGEST_BATCH,
    LARGEST_RANK,
    LARGEST_SEQUENCE,
    LORA_FA,
    METHODS,
    MOST_GPUS,
    MOST_MICRO_BATCHES,
    OPERATOR,
    OPTIMIZERS_OF_ADAPTERS,
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
    require_choice,
    require_int,
    require_number,
    short,
)


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """One accelerator, as data; an unknown figure is None, never another card's."""

    name: str
    full_name: str
    vendor: str
    architecture: str
    compute_capability: tuple[int, int] | None
    total_bytes: int
    """Memory that torch sees (`torch.cuda.mem_get_info`), bytes."""
    bandwidth: float | None
    """Peak memory bandwidth, bytes per second."""
    peak_flops: Mapping[str, float | None]
    """Dense peak FLOP/s per dtype, tensor cores with fp32 accumulation; sparsity never counted."""
    multiprocessors: int | None = None
    """Streaming multiprocessors (compute units), on which some kernels' buffers depend; None where not known."""
    context_bytes: int | None = None
    """CUDA context and libraries outside the allocator, bytes; None where nobody has measured it."""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each figure comes from, by its key ("memory", "bandwidth", "peak_flops.bf16", "context", ...)."""

    def __post_init__(self) -> None:
        require_int(f"{self.name}: memory", self.total_bytes, 2**20, 2**50)


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """A fine-tuning method and its adapters."""

    name: str
    """One of `METHODS`."""
    rank: int = 64
    """Inner width r of the adapters; not used by full fine-tuning."""
    targets: tuple[str, ...] = ("all-linear",)
    """("all-linear",), ("qv",), or the suffixes of module names to adapt."""
    dropout: float = 0.0
    """Dropout on the adapter's input, a probability below 1."""
    layers: Layers | None = None
    """The layers that have adapters, by their numbers from 0 on, rising (PEFT's layers_to_transform); None: all."""

    def __post_init__(self) -> None:
        require_choice("method", self.name, METHODS)
        require_int("rank", self.rank, 1, LARGEST_RANK)
        if not 0.0 <= require_number("dropout", self.dropout, 0.0, 1.0) < 1.0:
            raise BadInputError("dropout must be below 1")
        if not self.targets or not all(isinstance(t, str) and t for t in self.targets):
            raise BadInputError("targets must name at least one module suffix, or be all-linear or qv")
        if self.layers is not None:
            self._check_layers(self.layers)

    def _check_layers(self, layers: Layers) -> None:
        for number in layers:
            require_int("layer", number, 0)
        if not layers or any(later <= earlier for earlier, later in itertools.pairwise(layers)):
            raise BadInputError("layers must be the numbers of one layer or more, in rising order")
        if self.name == "full":
            raise ContradictionError(
                "full fine-tuning has no adapters, of which --layers chooses some: leave it out, or name an adapter "
                "method"
            )
        numbered = next((t for t in self.targets if any(part.isdecimal() for part in t.split("."))), None)
        if numbered is not None:
            raise ContradictionError(
                f"the target {short(numbered)} names a layer, and PEFT adapts it whatever --layers says: "
                "name layers in one of the two"
            )

    def adapts(self, layer: int) -> bool:
        """Return whether a layer has adapters, by its number."""
        return self.name != "full" and (self.layers is None or layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training configuration: everything an engine needs to say what its step costs."""

    model: ModelSpec | RunnableModel
    method: MethodSpec
    bs: int = 1
    """Micro-batch: sequences in one forward."""
    seq: int = 1024
    """Tokens per sequence."""
    padded: bool = False
    """Some of these tokens are padding, that is, not all of the attention mask is set: sdpa takes another kernel."""
    dtype: Dtype = "bf16"
    """Dtype that the base weights are loaded in."""
    amp: bool = False
    """bf16 autocast around the forward (`TrainingArguments(bf16=True)`)."""
    adapter_dtype: AdapterDtype = "auto"
    """Dtype of the adapter weights; auto = fp32 over a 16-bit base, as PEFT does."""
    attn: Attention = "sdpa"
    checkpointing: Checkpointing = "none"
    keep: tuple[str, ...] = KEPT_BY_DEFAULT
    """The operators whose results selective checkpointing keeps: groups of them (`KeptGroup`), and such as aten.mm by
    their names in torch, without overload."""
    optimizer: Optimizer = "auto"
    """auto = LoRA-FA's for its methods (lorafa, for lora-fa-peft lorafa-peft), LoRA-Pro's with moments of the adapters'
    size for lora-pro, else AdamW (foreach)."""
    quant: Quantization = "none"
    prepare_kbit: KbitPreparation = "none"
    """What is done to the rest of a quantised model. peft: `prepare_model_for_kbit_training` casts norms, embeddings
    and head to fp32. trl: TRL's SFTTrainer with bf16 does that too, and casts embeddings and head back to bf16."""
    loss: Loss = "hf"
    """hf is transformers' own, after the head; fused is head and loss in one, chunk by chunk, as Liger has it."""
    accumulation: int = 1
    """Micro-batches of `bs` sequences whose gradients add up before the optimizer steps."""
    clip: bool = False
    """Gradients are clipped by their common norm before the optimizer steps (`torch.nn.utils.clip_grad_norm_`)."""
    gpus: int = 1
    shard: Shard = "none"

    def __post_init__(self) -> None:
        require_int("batch size", self.bs, 1, LARGEST_BATCH)
        require_int("sequence length", self.seq, 1, LARGEST_SEQUENCE)
        for what, value, choices in (
            ("dtype", self.dtype, Dtype), ("adapter dtype", self.adapter_dtype, AdapterDtype),
            ("attention", self.attn, Attention), ("checkpointing", self.checkpointing, Checkpointing),
            ("optimizer", self.optimizer, Optimizer), ("quantization", self.quant, Quantization),
            ("loss", self.loss, Loss), ("sharding", self.shard, Shard),
        ):  # fmt: skip
            require_choice(what, value, choices)
        self._check_kept()
        require_int("gpus", self.gpus, 1, MOST_GPUS)
        require_int("accumulation", self.accumulation, 1, MOST_MICRO_BATCHES)
        require_choice("k-bit preparation", self.prepare_kbit, KbitPreparation)
        if self.prepare_kbit != "none" and self.resolved_quant == "none":
            raise ContradictionError("the k-bit preparation is for quantised weights: add --quant, or a q-method")
        limit = self.model.max_positions
        if limit is not None and self.seq > limit:
            raise BadInputError(f"sequence length {self.seq} is beyond the {limit} positions of {self.model.name}")
        if self.padded and self.attn == "flash":
            raise UnsupportedError(
                "flash attention of padded batches is not modelled: transformers takes the padding out of what its "
                "kernel gets; --attn sdpa and eager are"
            )
        if self.method.layers is not None and self.model.depth is not None:
            check_within(self.method.layers, self.model.depth, self.model.name)

    def _check_kept(self) -> None:
        groups = get_args(KeptGroup)
        for name in self.keep:
            if name not in groups and not (isinstance(name, str) and OPERATOR.fullmatch(name)):
                hint = f"Groups: {', '.join(groups)}; an operator has its name in torch without overload, as aten.mm."
                raise UnknownNameError("group of operators to keep", str(name), groups, hint)
        if not self.keep or len(set(self.keep)) != len(self.keep):
            raise BadInputError(
                "selective checkpointing keeps at least one group of operators or operator, and each is named once; "
                "full checkpointing keeps none"
            )
        if self.keep != KEPT_BY_DEFAULT and self.checkpointing != "selective":
            raise ContradictionError(
                f"what is kept is chosen for selective checkpointing, not with --checkpointing {self.checkpointing}: "
                "add --checkpointing selective, or leave out --keep"
            )

    def replace(self, **changes: Any) -> RunSpec:
        """Return a copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)

    @property
    def products_dtype(self) -> Dtype:
        """In which most matrix products are: under autocast, and of 4-bit weights, bf16 whatever the base's dtype."""
        return "bf16" if self.amp or self.resolved_quant in ("nf4", "nf4-dq") else self.dtype

    @property
    def spec(self) -> ModelSpec:
        """The model as closed forms need it.

        Raises:
            UnsupportedError: an architecture that the catalog does not know.
        """
        if isinstance(self.model, RunnableModel):
            raise UnsupportedError(
                f"{self.model.name}: there are no closed forms for model_type {self.model.architecture!r}; "
                "--engine simulate runs the model itself"
            )
        return self.model

    @property
    def adapted_layers(self) -> str:
        """The layers that have adapters, in words: "all", or "16-31 of 32"."""
        if self.method.layers is None:
            return ALL
        depth = "" if self.model.depth is None else f" of {self.model.depth}"
        return f"{spelled(self.method.layers)}{depth}"

    @property
    def recomputation(self) -> str:
        """What checkpointing there is, in words; empty where there is none."""
        if self.checkpointing == "none":
            return ""
        kept = f" (keeps {', '.join(self.keep)})" if self.keep != KEPT_BY_DEFAULT else ""
        return f"{self.checkpointing} checkpointing{kept}"

    @property
    def tokens(self) -> int:
        """Tokens of a step on one GPU: those of all its micro-batches."""
        return self.bs * self.seq * self.accumulation

    @property
    def resolved_adapter_dtype(self) -> Dtype:
        """The adapters' dtype with auto decided: PEFT casts 16-bit adapters to fp32 (autocast_adapter_dtype=True)."""
        return "fp32" if self.adapter_dtype == "auto" else self.adapter_dtype

    @property
    def resolved_optimizer(self) -> str:
        """The optimizer with auto decided."""
        if self.optimizer != "auto":
            return self.optimizer
        if self.method.name == "lora-pro":
            return "lora-pro"
        if self.method.name == "lora-fa-peft":
            return "lorafa-peft"
        return "lorafa" if self.method.name in LORA_FA else "adamw"

    def check_optimizer(self) -> None:
        """Refuse an optimizer that the method does not go with.

        Raises:
            ContradictionError: an optimizer of adapters that this method does not have, or LoRA-Pro without its own.
            UnsupportedError: LoRA+ with an optimizer whose groups of parameters no engine models.
        """
        name, method = self.resolved_optimizer, self.method.name
        goes_with = OPTIMIZERS_OF_ADAPTERS.get(name)
        if goes_with is not None and method not in goes_with:
            what = "freezes A" if name.startswith("lorafa") else "moves A and B of one matrix together"
            raise ContradictionError(f"the {name} optimizer {what}: it goes with {', '.join(goes_with)}, not {method}")
        if method == "lora-pro" and not name.startswith("lora-pro"):
            raise ContradictionError(
                f"LoRA-Pro is its optimizer, lora-pro or lora-pro-full: with {name} it is LoRA (--method lora)"
            )
        if method == "lora-plus" and name == "adafactor":
            raise UnsupportedError("LoRA+ is not modelled with Adafactor; with --optimizer adamw it is")

    @property
    def resolved_quant(self) -> Quantization:
        """How the base weights are stored: the q-methods quantise to NF4 unless another form is asked for."""
        if self.quant == "none" and self.method.name in ("qlora", "qlora-fa"):
            return "nf4"
        return self.quant
