"""Weights as bitsandbytes keeps them, NF4 or int8: really quantised, or on meta with the shapes alone."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from lorafa_prof.errors import MissingComponentError, UnsupportedError
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.versions import release

BLOCK = 64
NESTED_BLOCK = 256
#: Columns of the input with a value beyond this are multiplied in 16 bits (transformers' llm_int8_threshold).
INT8_THRESHOLD = 6.0

#: What transformers replaces: the first type exactly, and GPT-2's, whose weight lies the other way: (in, out).
Quantizable = torch.nn.Linear | Conv1D
Replace = Callable[[Quantizable, RunSpec], torch.nn.Module]


def quantize(model: Any, run: RunSpec) -> Any:
    """Replace the linear layers that transformers would quantise, all but the output head; return the model.

    GPT-2's Conv1D is among them: transformers quantises its transposed weight (out, in), and the layer that takes its
    place is bitsandbytes' linear one, to which PEFT's `fan_in_fan_out` does not apply. T5's `wo` is left too, which
    transformers lists among `_keep_in_fp32_modules`. Everything else keeps its dtype, unless the run asks for PEFT's
    `prepare_model_for_kbit_training`, which casts it to fp32. Matrix products run in bf16.

    Raises:
        UnsupportedError: no layer to quantise.
        MissingComponentError: bitsandbytes is not installed.
    """
    heads = [head for head in (model.get_output_embeddings(), getattr(model, "classifier", None)) if head]
    wide = _kept_wide(model, run)
    skipped = {id(module) for part in (*heads, *wide) for module in part.modules()}
    replace: Replace = _int8 if run.resolved_quant == "int8" else _nf4
    found = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if (type(layer) is torch.nn.Linear or isinstance(layer, Conv1D)) and id(layer) not in skipped
    ]
    if not found:
        raise UnsupportedError(f"{run.model.name} has no linear layers that bitsandbytes can quantise")
    for parent, name, layer in found:
        setattr(parent, name, replace(layer, run))
    setattr(model, "is_loaded_in_8bit" if run.resolved_quant == "int8" else "is_loaded_in_4bit", True)
    return model if run.prepare_kbit == "none" else _prepared(model, run)


def _kept_wide(model: Any, run: RunSpec) -> list[torch.nn.Module]:
    """Return the modules that transformers does not quantise, in the dtype that it loads them in beside quantised ones.

    Until release 5 that is fp32, since then only where the rest is fp16.
    """
    names = set(model._keep_in_fp32_modules or ())
    wide = [module for path, module in model.named_modules() if path.rpartition(".")[2] in names]
    if run.dtype == "fp16" or release("transformers") < (5,):
        for module in wide:
            module.float()
    return wide


def _prepared(model: Any, run: RunSpec) -> Any:
    """Return the model as PEFT prepares a quantised one, and as TRL's SFTTrainer leaves it after that."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # PEFT calls checkpointing by the name that transformers 5 retires
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=run.checkpointing != "none")
    if run.prepare_kbit == "trl":  # peft_module_casting_to_bf16: norms stay in fp32
        for name, module in model.named_modules():
            if _HEAD_OR_EMBEDDING.search(name) and getattr(module, "weight", None) is not None:
                module.to(torch.bfloat16)
    return model


#: Modules that TRL casts to bf16, by their names.
_HEAD_OR_EMBEDDING = re.compile("lm_head|embed_tokens|wte|wpe")


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError:
        raise MissingComponentError("quantised weights need bitsandbytes: pip install 'lorafa-prof[qlora]'") from None
    module: ModuleType = bitsandbytes
    return module


def _nf4(layer: Quantizable, run: RunSpec) -> torch.nn.Module:
    bnb, matrix, double_quant = _bitsandbytes(), _matrix(layer), run.resolved_quant == "nf4-dq"
    out_features, in_features = matrix.shape
    with torch.device("meta"):
        quantized = bnb.nn.Linear4bit(
            in_features, out_features, bias=layer.bias is not None, quant_type="nf4", compute_dtype=torch.bfloat16,
            compress_statistics=double_quant,
        )  # fmt: skip
    options: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": double_quant, "blocksize": BLOCK}
    if matrix.is_meta:
        packed = torch.empty((matrix.numel() + 1) // 2, 1, dtype=torch.uint8, device="meta")
        state = _meta_state(matrix, double_quant)
        quantized.weight = bnb.nn.Params4bit(
            packed, requires_grad=False, quant_state=state, bnb_quantized=True, module=quantized, **options
        )
        quantized.quant_state = state
    else:
        weight = bnb.nn.Params4bit(matrix, requires_grad=False, module=quantized, **options)
        quantized.weight = weight.to(matrix.device)  # the move quantises
    return _with_bias(quantized, layer)


class _Casts(logging.Filter):
    """Drops what bitsandbytes says of every product of every step: that it takes its inputs in fp16."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a message is another one."""
        return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")


_WITHOUT_CASTS = _Casts()


def _int8(layer: Quantizable, run: RunSpec) -> torch.nn.Module:
    bnb, matrix = _bitsandbytes(), _matrix(layer)
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_WITHOUT_CASTS)  # one filter, however often added
    out_features, in_features = matrix.shape
    with torch.device("meta"):
        quantized = bnb.nn.Linear8bitLt(
            in_features, out_features, bias=layer.bias is not None, has_fp16_weights=False, threshold=INT8_THRESHOLD
        )
    if matrix.is_meta:
        # one byte a weight and one fp32 scale a row; the layer hands both to its state in its first forward
        packed = torch.empty(matrix.shape, dtype=torch.int8, device="meta")
        scales = torch.empty(out_features, dtype=torch.float32, device="meta")
        quantized.weight = bnb.nn.Int8Params(packed, requires_grad=False, has_fp16_weights=False, CB=packed, SCB=scales)
    else:
        weight = bnb.nn.Int8Params(matrix, requires_grad=False, has_fp16_weights=False)
        quantized.weight = weight.to(matrix.device)
    return _with_bias(quantized, layer)


def _matrix(layer: Quantizable) -> torch.Tensor:
    """Return a layer's weight as bitsandbytes takes it: (out, in)."""
    weight = layer.weight.detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def _with_bias(quantized: Any, layer: Quantizable) -> torch.nn.Module:
    if layer.bias is not None:
        quantized.bias = torch.nn.Parameter(layer.bias.data, requires_grad=False)
    module: torch.nn.Module = quantized
    return module


def _meta_state(weight: torch.Tensor, double_quant: bool) -> Any:
    blocks = -(-weight.numel() // BLOCK)
    meta = weight.device

    def empty(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(count, dtype=dtype, device=meta)

    common: dict[str, Any] = {"shape": weight.shape, "dtype": weight.dtype, "blocksize": BLOCK, "quant_type": "nf4"}
    bnb = _bitsandbytes()
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


def quantization_state(path: str, module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return what quantisation keeps beside a module's packed weight, by name: scales, codebooks, offsets."""
    weight: Any = getattr(module, "weight", None)
    state = getattr(weight, "quant_state", None)
    parts = [("", state, _STATE), ("nested_", getattr(state, "state2", None), _STATE), ("", weight, ("CB", "SCB"))]
    named = ((f"{path}.weight.{prefix}{key}", getattr(part, key, None)) for prefix, part, keys in parts for key in keys)
    return [(name, tensor) for name, tensor in named if isinstance(tensor, torch.Tensor)]


_STATE = ("absmax", "code", "offset")


def quantization_tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return what quantisation keeps beside the packed weights of a whole model."""
    return [tensor for path, module in model.named_modules() for _, tensor in quantization_state(path, module)]
