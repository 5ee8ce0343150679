"""NF4 weights as bitsandbytes keeps them, on the CPU (really quantised) or on meta (shapes only)."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import torch

bnb: Any = bitsandbytes  # it is not typed to the end

BLOCK = 64
NESTED_BLOCK = 256


def quantize_nf4(model: Any, *, double_quant: bool) -> Any:
    """Replace the linear layers that transformers would quantise: all but the output head.

    Everything else keeps its dtype: a bf16 model stands for one loaded in 4 bits and used as it is, an fp32 model for
    one that went through `prepare_model_for_kbit_training`. Matrix products run in bf16 in both.
    """
    heads = {id(head) for head in (model.get_output_embeddings(), getattr(model, "classifier", None)) if head}
    skipped = {id(m) for _, part in model.named_modules() if id(part) in heads for m in part.modules()}
    for parent in list(model.modules()):
        for name, linear in list(parent.named_children()):
            if type(linear) is torch.nn.Linear and id(linear) not in skipped:
                setattr(parent, name, _quantized(linear, double_quant))
    model.is_loaded_in_4bit = True
    return model


def _quantized(linear: torch.nn.Linear, double_quant: bool) -> Any:
    device = linear.weight.device
    with torch.device("meta"):
        quantized = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=linear.bias is not None, quant_type="nf4",
            compute_dtype=torch.bfloat16, compress_statistics=double_quant,
        )  # fmt: skip
    options: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": double_quant, "blocksize": BLOCK}
    if device.type == "meta":
        packed = torch.empty((linear.weight.numel() + 1) // 2, 1, dtype=torch.uint8, device=device)
        state = _meta_state(linear.weight, double_quant)
        quantized.weight = bnb.nn.Params4bit(
            packed, requires_grad=False, quant_state=state, bnb_quantized=True, module=quantized, **options
        )
        quantized.quant_state = state
    else:
        weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, module=quantized, **options)
        quantized.weight = weight.to(device)  # the move quantises
    if linear.bias is not None:
        quantized.bias = torch.nn.Parameter(linear.bias.data, requires_grad=False)
    return quantized


def _meta_state(weight: torch.Tensor, double_quant: bool) -> Any:
    blocks = -(-weight.numel() // BLOCK)
    meta = weight.device

    def empty(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(count, dtype=dtype, device=meta)

    common: dict[str, Any] = {"shape": weight.shape, "dtype": weight.dtype, "blocksize": BLOCK, "quant_type": "nf4"}
    code = bnb.functional.get_4bit_type("nf4", device="cpu").to(meta)
    if not double_quant:
        return bnb.functional.QuantState(absmax=empty(blocks), code=code, **common)
    nested = bnb.functional.QuantState(
        absmax=empty(-(-blocks // NESTED_BLOCK)), code=empty(256), blocksize=NESTED_BLOCK, dtype=torch.float32
    )
    offset = torch.empty((), device=meta)
    return bnb.functional.QuantState(
        absmax=empty(blocks, torch.uint8), code=code, offset=offset, state2=nested, **common
    )


def quantization_tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    """What quantisation keeps beside the packed weights: scales, codebooks, offsets."""
    found = []
    module: Any
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            state: Any = module.weight.quant_state
            for part in filter(None, (state, state.state2)):
                found += [t for t in (part.absmax, part.code, part.offset) if isinstance(t, torch.Tensor)]
    return found
