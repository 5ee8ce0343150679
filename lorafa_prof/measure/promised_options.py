"""Promises about how the step runs: checkpointing, attention, quantised weights, cache, dropout, mode, autocast."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from lorafa_prof.measure import costs
from lorafa_prof.measure.subject import Subject, short
from lorafa_prof.results import Promise
from lorafa_prof.workload.naming import short_name


def checkpointing(subject: Subject) -> Promise | None:
    """Modules' flags are set and a recomputation was seen, or neither."""
    if subject.run is None:
        return None
    asked = subject.run.checkpointing != "none"
    flags, recomputed = costs.checkpointing_flags(subject.model), subject.recomputed
    kept = bool(flags) == asked and recomputed in (None, asked)
    seen = {None: "", True: "; a recomputation was seen", False: "; no recomputation was seen"}[recomputed]
    cost = None
    if asked and not flags and subject.forward is not None and costs.can_checkpoint(subject.model):
        # What is alive when the loss is computed, beyond what checkpoints would have kept.
        cost = costs.extra_activations(subject.model, subject.forward, partial(costs.checkpointed, subject.model))
    detail = f"asked for: {'on' if asked else 'off'}; {len(flags)} modules have the flag{seen}"
    return Promise(name="checkpointing", kept=kept, detail=detail, cost_bytes=cost)


def attention(subject: Subject) -> Promise | None:
    """The kernel that ran is of the kind that was asked for; before one was seen, the configuration says which."""
    if subject.run is None:
        return None
    asked, look = subject.run.attn, subject.look
    set_to = getattr(subject.model.config, "_attn_implementation", None)
    if look is None:
        ran = {"eager"} if set_to == "eager" else {"sdpa"}
        detail = f"asked for: {asked}; the model is set to {set_to}"
    else:
        ran = set(look.attention) or {"eager"}
        counts = ", ".join(f"{kernel} {times} times" for kernel, times in sorted(look.attention.items()))
        detail = f"asked for: {asked}; a forward ran {counts or 'eager attention'}"
    if "eager" in ran and asked == "sdpa" and not getattr(subject.model, "_supports_sdpa", True):
        return Promise(name="attention kernel", kept=True, detail=f"{detail}: transformers has no sdpa for this model")
    kept = {"eager": ran == {"eager"}, "sdpa": "eager" not in ran, "flash": ran <= {"flash", "sdpa"}}[asked]
    cost = None if kept or ran == {"efficient"} else _scores(subject)
    return Promise(name="attention kernel", kept=kept, detail=detail, cost_bytes=cost)


def _scores(subject: Subject) -> int | None:
    """Bytes of what a forward saves with a row and a column for each token of the sequence.

    A fused kernel saves a number a row instead, of 4 bytes; the eager code besides that its repeated keys and values.
    """
    if subject.forward is None or subject.run is None or costs.checkpointing_flags(subject.model):
        return None
    seq = subject.run.seq
    saved = costs.alive_after_forward(subject.model, subject.forward)
    return sum(nbytes for shape, nbytes in saved if len(shape) > 2 and shape[-2:] == (seq, seq))


#: Elements that share a scale, and scales that share one in double quantisation.
_BLOCK, _NESTED_BLOCK = 64, 256


def quantised_weights(subject: Subject) -> Promise | None:
    """The linear layers of the base are quantised in the form that was asked for, or none is."""
    if subject.run is None:
        return None
    asked = subject.run.resolved_quant
    linears = _base_linears(subject.model)
    forms = {path: _form(module.weight) for path, module in linears.items()}
    wrong = [path for path, form in forms.items() if form != asked]
    if not wrong:
        return Promise(name="quantised weights", kept=True, detail=f"{asked}: each of {len(linears)} linear layers")
    found = ", ".join(sorted({forms[path] for path in wrong}))
    detail = f"asked for: {asked}; {len(wrong)} of {len(linears)} linear layers: {found}; first {short_name(wrong[0])}"
    cost = None
    if asked != "none":
        cost = max(0, sum(_weight_bytes(linears[p].weight) - _bytes_in(asked, linears[p].weight) for p in wrong))
    return Promise(name="quantised weights", kept=False, detail=detail, cost_bytes=cost)


def _base_linears(model: Any) -> dict[str, Any]:
    """Return the linear layers that transformers would quantise: no head, no adapter, none that it keeps wide."""
    heads = {id(model.get_output_embeddings())}
    wide = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and id(module) not in heads
        and not {"lora_A", "lora_B", "classifier", "score", *wide} & set(path.split("."))
    }  # fmt: skip


def _form(weight: Any) -> str:
    """Return how a weight is kept, by the names that runs have for it."""
    kind = type(weight).__name__
    if kind == "Params4bit" and weight.bnb_quantized and weight.dtype == torch.uint8:
        form = str(weight.quant_state.quant_type)
        return f"{form}-dq" if weight.quant_state.nested else form
    return "int8" if kind == "Int8Params" and weight.dtype == torch.int8 else "none"


def _weight_bytes(weight: Any) -> int:
    form = _form(weight)
    return costs.nbytes(weight) if form == "none" else _bytes_in(form, weight)


def _bytes_in(form: str, weight: Any) -> int:
    """Bytes of a weight in a form: packed elements, a scale a row or a block, an offset for scales of scales."""
    state = getattr(weight, "quant_state", None)
    elements = int(weight.numel()) if state is None else int(state.shape.numel())
    if form == "int8":
        return elements + 4 * int(weight.shape[0])
    blocks = -(-elements // _BLOCK)
    scales = blocks + 4 * -(-blocks // _NESTED_BLOCK) + 4 if form.endswith("-dq") else 4 * blocks
    return -(-elements // 2) + scales


def no_cache(subject: Subject) -> Promise | None:
    """Keys and values are not kept for a generation that never comes."""
    if subject.run is None:
        return None
    value = getattr(subject.model.config, "use_cache", False)
    return Promise(name="use_cache off", kept=not value, detail=f"use_cache is {value}")


def dropout(subject: Subject) -> Promise | None:
    """The adapters drop as much of their input as was asked for."""
    if subject.run is None or not subject.adapters:
        return None
    asked = subject.run.method.dropout
    found = {
        float(getattr(module, "p", 0.0))  # PEFT puts an identity where there is none
        for path, module in subject.model.named_modules()
        if path.rpartition(".")[0].endswith(("lora_dropout", "vera_dropout"))
    }
    if not found:
        return None
    said = ", ".join(f"{p:g}" for p in sorted(found))
    return Promise(
        name="adapter dropout", kept=found == {asked}, detail=f"asked for: {asked:g}; the adapters have {said}"
    )


def training_mode(subject: Subject) -> Promise:
    """Every module is in training mode: another one drops nothing, and does not checkpoint."""
    idle = [path for path, module in subject.model.named_modules() if not module.training]
    if not idle:
        return Promise(name="training mode", kept=True, detail="every module is in training mode")
    detail = f"{len(idle)} modules are in evaluation mode, first {short_name(idle[0]) or 'the model'}"
    return Promise(name="training mode", kept=False, detail=detail)


def autocast(subject: Subject) -> Promise | None:
    """Linear layers run under bf16 autocast where it was asked for, under none otherwise."""
    if subject.run is None or subject.look is None or not subject.look.autocast:
        return None
    seen = subject.look.autocast
    kept = torch.bfloat16 in seen if subject.run.amp else seen == {None}
    asked = "bfloat16" if subject.run.amp else "none"
    found = ", ".join(sorted("none" if dtype is None else short(dtype) for dtype in seen))
    return Promise(name="autocast", kept=kept, detail=f"asked for: {asked}; linear layers ran under {found}")
