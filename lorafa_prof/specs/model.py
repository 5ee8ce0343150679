"""Models: those whose layers are known in numbers, and those that are run as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorafa_prof.errors import BadInputError
from lorafa_prof.specs.values import Task, require_choice, require_int, require_number


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
