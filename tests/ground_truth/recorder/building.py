"""The model of a case with its adapters, its optimizer and its batch, made by the libraries alone."""

from __future__ import annotations

import itertools
from typing import Any

from tests.ground_truth.recorder.cases import MODELS, TARGETS, Case


def build(c: Case, device: str) -> tuple[Any, str]:
    """Build the model of a case on the device, and return it with its `model_type`."""
    import torch
    import transformers

    kind, architecture = MODELS[c["model"]]
    architecture = {**architecture, "use_cache": False, "attn_implementation": c["attn"]}
    if c["layers"]:
        architecture["num_hidden_layers"] = c["layers"]
    config = transformers.AutoConfig.for_model(kind, **architecture)
    heads = {
        "roberta": transformers.AutoModelForSequenceClassification, "t5": transformers.AutoModelForSeq2SeqLM,
    }  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        auto: Any = heads.get(kind, transformers.AutoModelForCausalLM)
        model = auto.from_config(config, dtype=getattr(torch, c["dtype"]))
    if c["method"].startswith("qlora"):
        quantize(model, TARGETS["all"][kind], device)
    return model, kind


def quantize(model: Any, names: list[str], device: str) -> None:
    """Replace the linear layers of these names by bitsandbytes' NF4 ones with double quantisation."""
    import bitsandbytes as bnb
    import torch

    nf4 = {"quant_type": "nf4", "compress_statistics": True}
    for module in list(model.modules()):
        for child, linear in list(module.named_children()):
            if type(linear) is torch.nn.Linear and child in names:
                new = bnb.nn.Linear4bit(
                    linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, **nf4
                )
                new.weight = bnb.nn.Params4bit(linear.weight.data.cpu(), requires_grad=False, **nf4)
                setattr(module, child, new.to(device))
    if device == "cuda":
        torch.cuda.empty_cache()


def adapt(model: Any, kind: str, c: Case) -> Any:
    """Give the model the adapters of the case's method."""
    import peft

    method, r, targets = c["method"], c["rank"], TARGETS[c["targets"]][kind]
    if method == "full":
        return model
    task: Any = {"roberta": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}.get(kind, "CAUSAL_LM")
    config: Any
    if method == "vera":
        config = peft.VeraConfig(r=r, target_modules=targets, vera_dropout=c["dropout"], task_type=task)
    elif method == "adalora":
        config = peft.AdaLoraConfig(
            init_r=r, target_r=max(1, r // 2), target_modules=targets, lora_dropout=c["dropout"], task_type=task,
            total_step=1000, tinit=10, tfinal=10,
        )  # fmt: skip
    else:
        initial: Any = {"init_lora_weights": "pissa_niter_4"} if method == "pissa" else {}
        config = peft.LoraConfig(
            r=r, lora_alpha=2 * r, target_modules=targets, lora_dropout=c["dropout"], task_type=task,
            use_dora=method == "dora", **initial,
        )  # fmt: skip
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=c["adapter_dtype"] == "float32")
    frozen = {"lora-fa": "lora_A", "qlora-fa": "lora_A", "lora-fb": "lora_B"}.get(method)
    for name, parameter in model.named_parameters():
        if frozen and frozen in name:
            parameter.requires_grad_(False)
    return model


def optimizer_of(model: Any, c: Case) -> Any:
    """Return the optimizer of the case over what is trained."""
    import torch

    if c["method"] == "lora-fa-opt":  # PEFT's: freezes A, projects the gradient of B
        from peft.optimizers import create_lorafa_optimizer

        return create_lorafa_optimizer(model=model, r=c["rank"], lora_alpha=2 * c["rank"], lr=1e-4)
    trained = [p for p in model.parameters() if p.requires_grad]
    if c["method"] == "adalora":  # as PEFT tells its users to do after each step, while gradients are there
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        taken = itertools.count()
        optimizer.register_step_post_hook(lambda *_: model.base_model.update_and_allocate(next(taken)))
        return optimizer
    if c["optimizer"] == "sgd":
        return torch.optim.SGD(trained, lr=1e-4)
    fused = {"fused": True} if c["optimizer"] == "adamw-fused" else {}
    return torch.optim.AdamW(trained, lr=1e-4, **fused)


def batch_of(model: Any, kind: str, c: Case, device: str) -> dict[str, Any]:
    """Return random tokens, and what the loss needs beside them."""
    import torch

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, model.config.vocab_size, (c["bs"], c["seq"]), generator=generator).to(device)
    batch = {"input_ids": ids}
    if c["padding"]:
        mask = torch.ones_like(ids)
        mask[0, -(c["seq"] // 4) :] = 0
        batch["attention_mask"] = mask
    batch["labels"] = torch.zeros(c["bs"], dtype=torch.long, device=device) if kind == "roberta" else ids
    return batch
