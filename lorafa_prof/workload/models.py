"""The base model: transformers' own class, built from the run's configuration, weights random (or absent, on meta)."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import RunnableModel, RunSpec
from lorafa_prof.workload.architectures import AUTO_CLASSES, build
from lorafa_prof.workload.versions import installed_versions, release

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

#: Keys of a published configuration that name a dtype: the run says which one is loaded.
_DTYPE_KEYS = ("torch_dtype", "dtype")


def base_model(run: RunSpec, device: str) -> torch.nn.Module:
    """Return the transformers model of the run's configuration on `device`, without adapters.

    The cache of keys and values is off, as it is in training. transformers' "flash_attention_2" calls a package of its
    own; the kernel is the one that PyTorch's sdpa runs, which is what is built here for both.

    Raises:
        UnsupportedError: an architecture that the installed transformers does not have, or flash attention where it
            has only eager attention for it.
        BadInputError: a configuration that transformers refuses, of an architecture that the catalog does not know.
    """
    if isinstance(run.model, RunnableModel):
        return build(run, run.model, device, {_dtype_option(): DTYPES[run.dtype]})
    config = {key: value for key, value in run.model.config.items() if key not in _DTYPE_KEYS}
    config["use_cache"] = False
    if run.attn == "flash":
        _make_windows_idle(config, run)
    hf_config = _hf_config(config)
    options: dict[str, Any] = {
        _dtype_option(): DTYPES[run.dtype], "attn_implementation": _attention(run, hf_config)
    }  # fmt: skip
    with torch.device(device):
        model: torch.nn.Module = AUTO_CLASSES[run.model.task].from_config(hf_config, **options)
        return model


def _hf_config(config: dict[str, Any]) -> Any:
    architecture = config.pop("model_type")
    if architecture not in transformers.CONFIG_MAPPING:
        raise UnsupportedError(
            f"transformers {installed_versions()['transformers']} has no model of the type {architecture}; a later "
            "release may: pip install --upgrade transformers"
        )
    return transformers.AutoConfig.for_model(architecture, **config)


def _attention(run: RunSpec, hf_config: Any) -> str:
    """Return the implementation to ask transformers for: its eager code where it has no other for this model."""
    models: Any = AUTO_CLASSES[run.model.task]._model_mapping
    model_class = models[type(hf_config)]
    if run.attn == "eager" or model_class._supports_sdpa:
        return "eager" if run.attn == "eager" else "sdpa"
    if run.attn == "flash":
        raise UnsupportedError(
            f"{run.model.name}: transformers {installed_versions()['transformers']} has no sdpa for this model, on "
            "which flash attention is built here; --attn eager is what it runs"
        )
    return "eager"


def _make_windows_idle(config: dict[str, Any], run: RunSpec) -> None:
    # Flash attention takes a window as a number, and keeps what it keeps without one. For sdpa, which stands for it
    # here, transformers makes a mask of (seq, seq) as soon as the window is no longer than the sequence, and another
    # kernel runs. What a window leaves out changes no size.
    window = config.get("sliding_window")
    if window is not None and window <= run.seq:
        config["sliding_window"] = run.seq + 1


def _dtype_option() -> str:
    # transformers 4.56 gave `torch_dtype` the shorter name.
    return "dtype" if release("transformers") >= (4, 56) else "torch_dtype"


def batch(run: RunSpec, device: str, part: int = 0) -> dict[str, torch.Tensor]:
    """Return a batch as transformers' collators make it: ids, labels, and a mask, of ones where nothing is padded.

    In a padded batch the last token of the last sequence is padding: how much is padded changes no size.

    The model looks whether all of the mask is set, and goes on without. It is not the same to leave it out:
    transformers 4.53 to 4.57 take such a batch for a packed one, make a mask of it, and sdpa runs another kernel.
    Of several processes each takes another `part` of the data.
    """
    generator = torch.Generator().manual_seed(1 + part)
    ids = torch.randint(5, run.model.vocab_size, (run.bs, run.seq), generator=generator) if device != "meta" else None
    ids = torch.empty(run.bs, run.seq, dtype=torch.long, device="meta") if ids is None else ids.to(device)
    mask = torch.ones(run.bs, run.seq, dtype=torch.long, device=device)
    if run.padded:
        mask[-1, -1] = 0
    if run.model.task == "seq-cls":
        labels = torch.zeros(run.bs, dtype=torch.long, device=device)
    else:
        labels = ids.clone()
        if run.padded:
            labels[-1, -1] = -100  # what no loss is computed for
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}
