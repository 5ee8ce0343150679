"""Builds the real transformers model, PEFT adapters, batch and optimizer that a `RunSpec` describes.

Everything follows the libraries' own defaults, so that what is observed is what a user would get.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import peft
import torch
import transformers
from peft.optimizers import create_lorafa_optimizer
from peft.tuners.tuners_utils import BaseTunerLayer

from lorafa_prof.specs import MethodSpec, RunSpec
from tests.support.cuda_autocast import CudaAutocast

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

AUTO_CLASSES = {
    "causal-lm": transformers.AutoModelForCausalLM,
    "seq-cls": transformers.AutoModelForSequenceClassification,
    "seq2seq-lm": transformers.AutoModelForSeq2SeqLM,
}
TASK_TYPES = {"causal-lm": "CAUSAL_LM", "seq-cls": "SEQ_CLS", "seq2seq-lm": "SEQ_2_SEQ_LM"}

#: Query and value projections by the names that model families give them; the first pair found is taken. Where
#: q, k and v (or, in MLA, the way to v) share one matrix, that matrix is what "query and value" can mean.
QV_TARGETS = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_proj", "kv_b_proj"),
    ("q_b_proj", "kv_b_proj"),
    ("qkv_proj",),
    ("c_attn",),
    ("q", "v"),
)

#: The matrix of an adapter pair that a method leaves untrained.
FROZEN = {"lora-fa": "lora_A", "lora-fa-peft": "lora_A", "qlora-fa": "lora_A", "lora-fb": "lora_B"}


def build(run: RunSpec, device: str = "cpu") -> torch.nn.Module:
    """Return the model with its adapters, in training mode, weights random (or absent, on meta)."""
    torch.manual_seed(0)
    model = base_model(run, device)
    if run.resolved_quant in ("nf4", "nf4-dq"):
        from tests.support.quantized import quantize_nf4

        model = quantize_nf4(model, double_quant=run.resolved_quant == "nf4-dq")
    elif run.resolved_quant != "none":
        raise NotImplementedError(run.resolved_quant)
    if run.method.name != "full":
        model = add_adapters(model, run)
    if run.checkpointing == "full":
        enable_checkpointing(model, run, device)
    elif run.checkpointing != "none":
        raise NotImplementedError(run.checkpointing)
    return model.train()


def base_model(run: RunSpec, device: str) -> torch.nn.Module:
    """The transformers model of the run's configuration, without adapters."""
    config = dict(run.model.config)
    config.update(use_cache=False, attn_implementation="eager" if run.attn == "eager" else "sdpa")
    config.pop("torch_dtype", None)
    hf_config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    with torch.device(device):
        model: torch.nn.Module = AUTO_CLASSES[run.model.task].from_config(hf_config, dtype=DTYPES[run.dtype])
        return model


def enable_checkpointing(model: Any, run: RunSpec, device: str) -> None:
    """Turn on activation checkpointing as transformers does when nothing else is said about it."""
    if run.amp and device == "meta":  # torch enters its own autocast again in backward; this one it does not know
        options = {"use_reentrant": False, "context_fn": lambda: (contextlib.nullcontext(), CudaAutocast())}
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.activation_checkpointing_enable()
    if run.method.name != "full":  # what users of adapters are told to add
        model.enable_input_require_grads()


def add_adapters(model: torch.nn.Module, run: RunSpec) -> torch.nn.Module:
    """Wrap the model with the adapters of the run's method."""
    keep_16_bit = run.resolved_adapter_dtype != "fp32"
    if keep_16_bit and run.resolved_adapter_dtype != run.dtype:
        raise ValueError(f"PEFT has no {run.resolved_adapter_dtype} adapters over a {run.dtype} base")
    with quiet():
        wrapped = peft.get_peft_model(model, peft_config(model, run), autocast_adapter_dtype=not keep_16_bit)
    for name, parameter in wrapped.named_parameters():
        if FROZEN.get(run.method.name, "\0") in name:
            parameter.requires_grad_(False)
    if next(wrapped.parameters()).is_meta:
        _cast_meta_adapters(wrapped, DTYPES[run.resolved_adapter_dtype])
    return wrapped


def peft_config(model: torch.nn.Module, run: RunSpec) -> peft.PeftConfig:
    """The PEFT configuration of the run's method."""
    method = run.method
    common: dict[str, Any] = {
        "r": method.rank, "target_modules": targets(model, method), "task_type": TASK_TYPES[run.model.task],
    }  # fmt: skip
    if method.name == "vera":
        return peft.VeraConfig(vera_dropout=method.dropout, **common)
    if method.name not in ("lora", "lora-fa", "lora-fa-peft", "lora-fb", "lora-qv", "qlora", "qlora-fa"):
        raise NotImplementedError(method.name)
    return peft.LoraConfig(lora_dropout=method.dropout, lora_alpha=2 * method.rank, **common)


def targets(model: torch.nn.Module, method: MethodSpec) -> str | list[str]:
    """What PEFT is asked to adapt."""
    wanted = ("qv",) if method.name == "lora-qv" else method.targets
    if wanted == ("all-linear",):
        return "all-linear"
    if wanted != ("qv",):
        return list(wanted)
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return list(next(pair for pair in QV_TARGETS if present.issuperset(pair)))


def _cast_meta_adapters(model: torch.nn.Module, dtype: torch.dtype) -> None:
    # PEFT skips both its casts for adapters on meta, so that they keep the dtype of their creation.
    for layer in model.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        for name in (*layer.adapter_layer_names, *layer.other_param_names):
            adapter = getattr(layer, name, None)
            if isinstance(adapter, torch.nn.Module):  # ModuleDict, ParameterDict or BufferDict
                adapter.to(dtype)


def batch(run: RunSpec, device: str = "cpu") -> dict[str, torch.Tensor]:
    """A full batch without padding; no attention mask, as transformers drops one that is all ones."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, run.model.vocab_size, (run.bs, run.seq), generator=generator).to(device)
    if run.model.task == "seq-cls":
        return {"input_ids": ids, "labels": torch.zeros(run.bs, dtype=torch.long, device=device)}
    return {"input_ids": ids, "labels": ids.clone()}


def optimizer(model: Any, run: RunSpec) -> torch.optim.Optimizer:
    """The run's optimizer, in the implementation that it has on CUDA."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    match run.resolved_optimizer:
        case "adamw":  # CUDA's default is foreach; elsewhere it has to be asked for
            return torch.optim.AdamW(trainable, lr=1e-4, foreach=True)
        case "adamw-fused":
            return torch.optim.AdamW(trainable, lr=1e-4, fused=True)
        case "sgd":
            return torch.optim.SGD(trainable, lr=1e-4, foreach=True)
        case "lorafa":
            rank = run.method.rank
            return create_lorafa_optimizer(model, r=rank, lora_alpha=2 * rank, lr=1e-4)
        case other:
            raise NotImplementedError(other)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """PEFT says by warnings that it set fan_in_fan_out for GPT-2's Conv1D, which is what is wanted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
