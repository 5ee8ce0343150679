"""Options that do not go together, whatever the engine: what PEFT, bitsandbytes or PyTorch cannot do in a real step."""

from __future__ import annotations

from lorafa_prof.errors import ContradictionError
from lorafa_prof.specs import RunSpec


def refuse_contradictions(run: RunSpec) -> None:
    """Refuse a run whose real step fails, or is another than it says.

    Raises:
        ContradictionError: options of which one has to go; the text says why.
    """
    quantised = run.resolved_quant != "none"
    refused = (
        (
            run.method.name == "full" and quantised,
            f"full fine-tuning cannot train {run.resolved_quant} weights: name an adapter method",
        ),
        (
            run.method.name == "adalora" and run.checkpointing == "selective",
            "PEFT's AdaLoRA adds to base layers' results in place, which selective checkpointing keeps: "
            + "--checkpointing full",
        ),
    )
    for asked, why in refused:
        if asked:
            raise ContradictionError(why)
