"""What a run is: the model, the method, the device and the options, as frozen values checked when they are made.

Every engine takes the same `RunSpec`, so that a prediction and a measurement of one run can be held side by side.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from lorafa_prof.errors import BadInputError, ContradictionError, UnknownNameError, UnsupportedError
from lorafa_prof.layers import ALL, Layers, check_within, spelled

Dtype = Literal["bf16", "fp16", "fp32"]
AdapterDtype = Literal["auto", "bf16", "fp16", "fp32"]
Attention = Literal["sdpa", "flash", "eager"]
Checkpointing = Literal["none", "full", "selective"]
KeptGroup = Literal["products", "attention", "functions", "softmax", "casts"]
Quantization = Literal["none", "nf4", "nf4-dq", "int8"]
Optimizer = Literal[
    "auto", "adamw", "adamw-fused", "adamw-8bit", "paged-adamw-8bit", "sgd", "adafactor", "lorafa",
    "lorafa-peft", "lora-pro", "lora-pro-full",
]  # fmt: skip
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
_OPERATOR = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*", re.ASCII)

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
        raise BadInputError(f"{what} must be an integer, not {_short(value)}")
    if not low <= value <= high:
        raise BadInputError(f"{what} must be between {low} and {high}, not {_short(value)}")
    return value


def require_number(what: str, value: object, low: float, high: float) -> float:
    """Return `value` as a finite float in [low, high], else raise `BadInputError` naming `what`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadInputError(f"{what} must be a number, not {_short(value)}")
    if not low <= value <= high or not math.isfinite(value):
        raise BadInputError(f"{what} must be between {low:g} and {high:g}, not {_short(value)}")
    return float(value)


def require_choice(what: str, value: object, choices: object) -> None:
    """Raise `UnknownNameError` unless `value` is one of the strings of the Literal (or tuple) `choices`."""
    known = choices if isinstance(choices, tuple) else get_args(choices)
    if value not in known:
        raise UnknownNameError(what, str(value), known, f"Known: {', '.join(known)}.")


def _short(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer past 4300 digits inside, or nesting without end
        text = f"this {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True, kw_only=True)
class MoeSpec:
    """Routed experts of a mixture-of-experts model."""

    experts: int
    """Routed experts per layer."""
    experts_per_token: int
    """Experts that each token is sent to."""
    intermediate_size: int
    """Inner width of one routed expert."""
    shared_experts: int = 0
    """Experts that every token passes through (DeepSeek, Qwen 2)."""
    shared_intermediate_size: int | None = None
    """Inner width of the shared experts together; None: that of as many routed ones."""
    first_dense_layers: int = 0
    """Leading layers with a plain MLP instead of experts (DeepSeek)."""

    @property
    def shared_width(self) -> int:
        """Inner width of the shared experts together; 0: there are none."""
        return self.shared_experts and (self.shared_intermediate_size or self.shared_experts * self.intermediate_size)


@dataclass(frozen=True, kw_only=True)
class MlaSpec:
    """Multi-head latent attention (DeepSeek-V2): keys and values pass through a narrow latent."""

    kv_lora_rank: int
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The architecture of one model, as far as it decides memory and arithmetic.

    Made by `lorafa_prof.catalog` from a Hugging Face configuration; `config` keeps that configuration, so that the
    engines that run the real model build exactly the same one.
    """

    name: str
    """Alias, hub id or path: what the user calls it."""
    architecture: str
    """`model_type` of transformers: "llama", "qwen3", "gpt2", ..."""
    task: Task
    """What it is fine-tuned for: decides the head and the loss."""
    hidden_size: int
    num_layers: int
    """Decoder (or encoder) blocks; for an encoder-decoder the encoder's."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int | None
    """Longest sequence the positions allow; None where positions are relative and unbounded (T5)."""
    tie_word_embeddings: bool
    hidden_act: str
    """Activation as transformers names it: "silu", "gelu", "gelu_new", "gelu_pytorch_tanh", ..."""
    gated_mlp: bool = True
    attention_bias: bool = False
    """Bias on the q, k and v projections."""
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head's q and k (Qwen 3, Gemma 3)."""
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()
    """Per layer "full_attention" or "sliding_attention"; empty where all are full."""
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    """Dropout after attention output, MLP and embeddings (GPT-2 resid_pdrop, RoBERTa hidden_dropout_prob, T5)."""
    embedding_dropout: float = 0.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    partial_rotary_factor: float = 1.0
    """Share of a head's width that the rotary embedding turns (Phi)."""
    num_decoder_layers: int = 0
    """Decoder blocks of an encoder-decoder, else 0."""
    num_labels: int = 2
    """Classes of a sequence-classification head."""
    type_vocab_size: int = 0
    """Rows of the token-type embedding (RoBERTa), else 0."""
    moe: MoeSpec | None = None
    mla: MlaSpec | None = None
    parameters: int | None = None
    """Parameters as published with the catalog entry, for display; engines count for themselves."""
    config: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The Hugging Face configuration that this was read from."""

    def __post_init__(self) -> None:
        for name, low, high in _MODEL_LIMITS:
            require_int(f"{self.name}: {name}", getattr(self, name), low, high)
        if self.num_heads % self.num_kv_heads:
            raise BadInputError(
                f"{self.name}: {self.num_heads} heads cannot share {self.num_kv_heads} key/value heads evenly"
            )
        if self.layer_types and len(self.layer_types) != self.num_layers:
            raise BadInputError(f"{self.name}: {len(self.layer_types)} layer types for {self.num_layers} layers")
        if require_number(f"{self.name}: partial_rotary_factor", self.partial_rotary_factor, 0.0, 1.0) == 0.0:
            raise BadInputError(f"{self.name}: partial_rotary_factor must be above 0")
        for name in ("attention_dropout", "hidden_dropout", "embedding_dropout"):
            require_number(f"{self.name}: {name}", getattr(self, name), 0.0, 1.0)

    @property
    def depth(self) -> int:
        """How many layers have a number of their own: of an encoder-decoder, those of the deeper stack."""
        return max(self.num_layers, self.num_decoder_layers)

    @property
    def kv_width(self) -> int:
        """Width of the key (and value) projection's output: key/value heads times head width."""
        return self.num_kv_heads * self.head_dim

    @property
    def q_width(self) -> int:
        """Width of the query projection's output: heads times head width."""
        return self.num_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class RunnableModel:
    """A model that only the libraries know how to build: all that is known of it without building it.

    Made by `lorafa_prof.workload.architectures` for the engines that run the real step, where the catalog has no
    `ModelSpec`. What it is made of is counted when it is built.
    """

    name: str
    """Path or hub id: what the user calls it."""
    architecture: str
    """`model_type` of the configuration."""
    task: Task
    built_as: str
    """The class that it is an object of: "OPTForCausalLM"."""
    vocab_size: int
    """Rows of the table that token ids are looked up in."""
    config: Mapping[str, Any] = field(hash=False, repr=False)
    """The Hugging Face configuration: here it is what tells one model from another."""
    depth: int | None = None
    """How many layers its configuration says that there are; None where it does not."""
    code: str | None = None
    """Folder with Python code of the model's own, which was asked for by --trust-remote-code; None: no such code."""
    parameters: int | None = None
    """None: the engines count when they build it."""

    def __post_init__(self) -> None:
        require_int(f"{self.name}: vocab_size", self.vocab_size, 1, 2**24)
        require_choice("task", self.task, Task)

    @property
    def max_positions(self) -> int | None:
        """None: whether a table of positions is long enough is seen when the step looks positions up in it."""
        return None


_MODEL_LIMITS = (
    ("hidden_size", 1, 2**20),
    ("num_layers", 1, 2000),
    ("num_heads", 1, 2**14),
    ("num_kv_heads", 1, 2**14),
    ("head_dim", 1, 2**14),
    ("intermediate_size", 1, 2**22),
    ("vocab_size", 1, 2**24),
    ("num_decoder_layers", 0, 2000),
    ("num_labels", 1, 2**20),
    ("type_vocab_size", 0, 2**16),
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
                f"the target {_short(numbered)} names a layer, and PEFT adapts it whatever --layers says: "
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
            if name not in groups and not (isinstance(name, str) and _OPERATOR.fullmatch(name)):
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

    @property
    def resolved_quant(self) -> Quantization:
        """How the base weights are stored: the q-methods quantise to NF4 unless another form is asked for."""
        if self.quant == "none" and self.method.name in ("qlora", "qlora-fa"):
            return "nf4"
        return self.quant
