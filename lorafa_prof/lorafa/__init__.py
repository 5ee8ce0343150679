"""LoRA-FA as its paper promises it (arXiv 2308.03303), on PEFT's models and adapters.

    model = lorafa.prepare(peft.get_peft_model(base, peft.LoraConfig(...)))
    optimizer = lorafa.LoraFA(model, lr=2e-4)

`prepare` freezes A for good and keeps the r-wide projection of each layer's input alone; `LoraFA` is AdamW with the
gradient of Theorem 4.1. Both know LoRA-FB (Theorem A.1) as well: `prepare(model, trains="A")`.
"""

from lorafa_prof.lorafa.optimizer import LoraFA
from lorafa_prof.lorafa.prepare import prepare

__all__ = ["LoraFA", "prepare"]
