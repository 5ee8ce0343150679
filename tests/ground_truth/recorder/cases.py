"""What is recorded: models, adapters' targets, and the cases of each group."""

from __future__ import annotations

from typing import Any

Case = dict[str, Any]

# Architecture facts only: weights are random, and neither memory nor speed depends on their values.
_TINY = {
    "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 512,
}  # fmt: skip
_MOE = {
    "n_shared_experts": 2, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
    "first_k_dense_replace": 1,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2-7b": ("llama", {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096}),
    "llama3-8b": ("llama", {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192}),
    "llama3.2-1b": ("llama", {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 8192,
        "tie_word_embeddings": True}),
    "qwen3-8b": ("qwen3", {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960}),
    "roberta-base": ("roberta", {"num_labels": 2, "max_position_embeddings": 514, "vocab_size": 50265}),
    "roberta-large": ("roberta", {
        "num_labels": 2, "max_position_embeddings": 514, "vocab_size": 50265, "hidden_size": 1024,
        "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}),
    "t5-base": ("t5", {
        "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "d_kv": 64, "vocab_size": 32128,
        "decoder_start_token_id": 0}),
    "deepseek-v2-lite": ("deepseek_v2", {
        "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
        "num_attention_heads": 16, "num_key_value_heads": 16, "n_routed_experts": 64, "num_experts_per_tok": 6,
        "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "head_dim": 64,
        "vocab_size": 102400, "max_position_embeddings": 4096, **_MOE}),
    "tiny": ("llama", _TINY),
    "tiny-qwen3": ("qwen3", {**_TINY, "head_dim": 32}),
    "tiny-gpt2": ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 512, "n_positions": 512}),
    "tiny-roberta": ("roberta", {
        "num_labels": 2, "max_position_embeddings": 514, "vocab_size": 512, "hidden_size": 64,
        "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4, "type_vocab_size": 1}),
    "tiny-t5": ("t5", {
        "d_model": 64, "d_ff": 176, "num_layers": 2, "num_heads": 4, "d_kv": 16, "vocab_size": 512,
        "decoder_start_token_id": 0}),
    "tiny-deepseek": ("deepseek_v2", {
        "hidden_size": 64, "intermediate_size": 176, "moe_intermediate_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 3,
        "kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "head_dim": 8,
        "vocab_size": 512, "max_position_embeddings": 512, **_MOE}),
}  # fmt: skip

_DECODER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS: dict[str, dict[str, list[str]]] = {
    "all": {
        "llama": _DECODER, "qwen3": _DECODER, "gpt2": ["c_attn", "c_proj", "c_fc"],
        "roberta": ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"],
        "t5": ["q", "k", "v", "o", "wi", "wo"], "deepseek_v2": ["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
    },
    "qv": {
        "llama": ["q_proj", "v_proj"], "qwen3": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "roberta": ["query", "value"],
        "t5": ["q", "v"], "deepseek_v2": ["q_proj", "kv_b_proj"],
    },
}  # fmt: skip
DEFAULT: Case = {
    "model": "llama2-7b", "method": "lora", "rank": 64, "targets": "all", "bs": 1, "seq": 1024, "dtype": "bfloat16",
    "adapter_dtype": "float32", "attn": "sdpa", "ckpt": False, "dropout": 0.0, "optimizer": "adamw", "autocast": False,
    "padding": False, "trace": False, "cap_gib": None, "steps": 6, "layers": None,
}  # fmt: skip


def case(**changes: Any) -> Case:
    """One case: DEFAULT with some keys changed."""
    unknown = set(changes) - set(DEFAULT)
    if unknown:
        raise ValueError(f"no such keys: {sorted(unknown)}")
    return {**DEFAULT, **changes}


def core() -> list[Case]:
    """Llama-2-7B: every method, and every option by itself."""
    both = ("lora", "lora-fa")
    found = [case(method=m, bs=b) for m in both for b in (1, 4, 8)]
    found += [case(method="lora-fa", bs=12), case(method="vera", bs=8, rank=256), case(method="pissa", layers=4)]
    found += [case(method=m, bs=4) for m in ("dora", "lora-fb", "lora-fa-opt", "qlora", "qlora-fa")]
    for options in ({"adapter_dtype": "bfloat16"}, {"attn": "eager"}, {"dropout": 0.1}):
        found += [case(method=m, bs=4, **options) for m in both]
    found += [case(method=m, bs=8, ckpt=True) for m in both]
    found += [case(method=m, seq=4096) for m in both]
    found += [case(method="lora", bs=4, autocast=True), case(method="lora-fa", bs=4, targets="qv")]
    found += [case(method="lora-fa", rank=r) for r in (1, 128)]
    return [*found, case(method="adalora", rank=12)]


def breadth() -> list[Case]:
    """Other models, full fine-tuning, other dtypes and optimizers."""
    shapes = (
        ("llama3-8b", 4, 1024), ("qwen3-8b", 2, 1024), ("roberta-base", 64, 128), ("roberta-large", 32, 128),
        ("t5-base", 16, 512), ("deepseek-v2-lite", 2, 1024),
    )  # fmt: skip
    found = [case(model=m, method=k, bs=b, seq=s) for m, b, s in shapes for k in ("lora", "lora-fa")]
    small = {"model": "llama3.2-1b", "method": "full", "bs": 4}
    fp32, autocast = {"dtype": "float32"}, {"dtype": "float32", "autocast": True}
    found += [case(**small, **o) for o in ({}, fp32, autocast, {"optimizer": "adamw-fused"}, {"optimizer": "sgd"})]
    found += [case(**{**small, "bs": 16}, ckpt=True)]
    found += [
        case(model="roberta-base", method="full", bs=64, seq=128, dtype="float32"),
        case(model="roberta-large", method="full", bs=32, seq=128, dtype="float32", autocast=True),
        case(model="llama3.2-1b", method="lora", bs=8, seq=2048, padding=True),
        case(method="full"), case(method="full", bs=4, ckpt=True),
    ]  # fmt: skip
    return found


def traces() -> list[Case]:
    """The allocator's own log of every event, from the first byte on."""
    log = {"trace": True, "steps": 3}
    found = [case(model="llama3.2-1b", method=k, bs=b, **log) for k in ("full", "lora", "lora-fa") for b in (2, 8)]
    found += [case(method=k, bs=4, layers=8, **log) for k in ("lora-fa", "lora")]
    return [
        *found, case(model="roberta-large", method="lora", bs=32, seq=128, **log),
        case(model="llama3.2-1b", method="lora", bs=4, attn="eager", dropout=0.1, **log),
        case(model="llama3.2-1b", method="lora-fa", bs=8, ckpt=True, **log),
    ]  # fmt: skip


def oom() -> list[Case]:
    """Emulated cards: the allocator is refused memory past the cap, as a smaller card would refuse it."""
    found = [case(method="lora", bs=b, cap_gib=79.1, steps=3) for b in (5, 6, 7, 8)]
    found += [case(method="lora-fa", bs=b, cap_gib=79.1, steps=3) for b in (11, 12, 13, 14)]
    found += [case(method="lora", seq=s, cap_gib=23.5, steps=3) for s in (896, 1024, 1280)]
    return found + [case(method="lora-fa", seq=s, cap_gib=23.5, steps=3) for s in (1792, 2048, 2304)]


def families() -> list[Case]:
    """Tiny models of every family and method, for a machine without a GPU."""
    tiny = {"bs": 3, "seq": 40, "rank": 4, "steps": 3}
    methods = ("full", "lora", "lora-fa", "lora-fb", "vera", "dora", "pissa", "adalora", "lora-fa-opt")
    found = [case(model="tiny", method=m, **tiny) for m in methods]
    others = ("tiny-qwen3", "tiny-gpt2", "tiny-roberta", "tiny-t5", "tiny-deepseek")
    found += [case(model=m, method=k, **tiny) for m in others for k in ("full", "lora", "lora-fa")]
    for options in (
        {"ckpt": True}, {"attn": "eager"}, {"padding": True}, {"dropout": 0.1}, {"adapter_dtype": "bfloat16"},
        {"dtype": "float32"}, {"targets": "qv"}, {"optimizer": "sgd"}, {"autocast": True},
    ):  # fmt: skip
        found += [case(model="tiny", method=m, **tiny, **options) for m in ("lora", "lora-fa")]
    return found


GROUPS = {"core": core, "breadth": breadth, "traces": traces, "oom": oom, "families": families}
