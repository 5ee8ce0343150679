"""Options that do not go together, whatever the engine: what PEFT, bitsandbytes or PyTorch cannot do in a real step."""

from __future__ import annotations

from collections.abc import Iterator

from lorafa_prof.errors import ContradictionError
from lorafa_prof.specs import RunSpec


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
    if method == "adalora" and run.checkpointing == "selective":
        yield (
            "PEFT's AdaLoRA adds to what its base layers return, in place, and that is what selective checkpointing "
            "keeps: name --checkpointing full"
        )
