"""The base model: transformers' own class, built from the run's configuration, weights random (or absent, on meta)."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.versions import release

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

AUTO_CLASSES = {
    "causal-lm": transformers.AutoModelForCausalLM,
    "seq-cls": transformers.AutoModelForSequenceClassification,
    "seq2seq-lm": transformers.AutoModelForSeq2SeqLM,
}

#: Keys of a published configuration that name a dtype: the run says which one is loaded.
_DTYPE_KEYS = ("torch_dtype", "dtype")


def base_model(run: RunSpec, device: str) -> torch.nn.Module:
    """Return the transformers model of the run's configuration on `device`, without adapters.

    The cache of keys and values is off, as it is in training. transformers' "flash_attention_2" calls a package of its
    own; the kernel is the one that PyTorch's sdpa runs, which is what is built here for both.
    """
    config = {key: value for key, value in run.model.config.items() if key not in _DTYPE_KEYS}
    config.update(use_cache=False, attn_implementation="eager" if run.attn == "eager" else "sdpa")
    hf_config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    with torch.device(device):
        options: dict[str, Any] = {_dtype_option(): DTYPES[run.dtype]}
        model: torch.nn.Module = AUTO_CLASSES[run.model.task].from_config(hf_config, **options)
        return model


def _dtype_option() -> str:
    # transformers 4.56 gave `torch_dtype` the shorter name.
    return "dtype" if release("transformers") >= (4, 56) else "torch_dtype"


def enable_checkpointing(model: Any, run: RunSpec) -> None:
    """Turn on activation checkpointing as the installed transformers does when nothing else is said about it."""
    if hasattr(model, "activation_checkpointing_enable"):  # the name that transformers 5 gives it
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()
    if run.method.name != "full":  # what users of adapters are told to add
        model.enable_input_require_grads()


def batch(run: RunSpec, device: str) -> dict[str, torch.Tensor]:
    """Return a full batch without padding, and without an attention mask: transformers drops one that is all ones."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, run.model.vocab_size, (run.bs, run.seq), generator=generator) if device != "meta" else None
    ids = torch.empty(run.bs, run.seq, dtype=torch.long, device="meta") if ids is None else ids.to(device)
    if run.model.task == "seq-cls":
        return {"input_ids": ids, "labels": torch.zeros(run.bs, dtype=torch.long, device=device)}
    return {"input_ids": ids, "labels": ids.clone()}
