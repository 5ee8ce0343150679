"""Options that do not go together, whatever the engine: what PEFT, bitsandbytes or PyTorch cannot do in a real step."""

from __future__ import annotations

from collections.abc import Iterator

from lorafa_prof.errors import ContradictionError
from lorafa_prof.specs import RunSpec

#: The dtype that PEFT gives adapters over quantised weights if it is not told to cast them to fp32: that in which 4-bit
#: layers multiply; int8 layers have none.
_OVER_QUANTISED = {"nf4": "bf16", "nf4-dq": "bf16", "int8": "fp32"}


def refuse_contradictions(run: RunSpec) -> None:
    """Refuse a run whose real step fails, or is another than it says.

    Raises:
        ContradictionError: options of which one has to go; the text says why.
    """
    for why in _contradictions(run):
        raise ContradictionError(why)


def _contradictions(run: RunSpec) -> Iterator[str]:
    method, quant = run.method.name, run.resolved_quant
    if method == "full" and quant != "none":
        yield f"full fine-tuning cannot train {quant} weights: name an adapter method"
    if method != "full" and run.resolved_adapter_dtype not in ("fp32", _OVER_QUANTISED.get(quant, run.dtype)):
        asked = run.resolved_adapter_dtype
        if quant == "none":
            yield f"PEFT makes adapters in the dtype of the base weights or in fp32: not {asked} over {run.dtype}"
        elif quant == "int8":
            yield f"PEFT makes adapters over int8 weights in fp32: not {asked}"
        else:
            yield f"PEFT makes adapters over {quant} weights in bf16, their compute dtype, or in fp32: not {asked}"
    if run.prepare_kbit == "trl" and not run.amp:
        yield (
            "--prepare-kbit trl is what TRL's SFTTrainer leaves with bf16=True, which is autocast: add --amp (without "
            "it a Llama's norms hand fp32 to a head in bf16, and the step fails)"
        )
    if method == "adalora" and run.checkpointing == "selective":
        yield (
            "PEFT's AdaLoRA adds to what its base layers return, in place, and that is what selective checkpointing "
            "keeps: name --checkpointing full"
        )
