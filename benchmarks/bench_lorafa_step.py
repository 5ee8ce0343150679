"""Times whole training steps of LoRA-FA as `lorafa_prof.lorafa` has it, beside PEFT's LoRA-FA and LoRA.

    python benchmarks/bench_lorafa_step.py [--rounds 9] [--dtype float32]

A small llama trains on the CPU, rank 64 on all linear layers: PEFT's LoRA with torch's AdamW, PEFT's LoRA-FA with its
own optimizer, and ours. In each round each takes one step, in turn; the clock is the processor time of this process, on
one thread. What autograd keeps of a forward is counted beside it: every storage once, parameters left out.

Prints one JSON object with medians. Exits 1 when the bar is missed: our step may take as long as LoRA's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import peft
import torch
import transformers
from peft.optimizers import create_lorafa_optimizer

from lorafa_prof import lorafa

BAR = 1.0
RANK, VOCABULARY, BATCH, TOKENS = 64, 512, 4, 256


def adapted(dtype: torch.dtype) -> Any:
    """Return a llama with PEFT's adapters."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=512, intermediate_size=1376, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=VOCABULARY, max_position_embeddings=TOKENS,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    return peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))


def lora(model: Any) -> torch.optim.Optimizer:
    """Return torch's AdamW, as it comes, of A and B."""
    return torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)


def lora_fa_peft(model: Any) -> torch.optim.Optimizer:
    """Return PEFT's LoRA-FA optimizer, which freezes A."""
    return create_lorafa_optimizer(model, r=RANK, lora_alpha=2 * RANK, lr=1e-4)


def lora_fa(model: Any) -> torch.optim.Optimizer:
    """Return ours, and prepare the model for it."""
    return lorafa.LoraFA(lorafa.prepare(model), lr=1e-4)


class Training:
    """Takes steps, and times them."""

    def __init__(self, make: Callable[[Any], torch.optim.Optimizer], dtype: torch.dtype) -> None:
        self.model = adapted(dtype).train()
        self.optimizer = make(self.model)
        ids = torch.randint(0, VOCABULARY, (BATCH, TOKENS), generator=torch.Generator().manual_seed(1))
        self.batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}

    def step(self) -> float:
        """Take a step; return its processor time."""
        began = time.process_time()
        self.model(**self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - began

    def kept_bytes(self) -> int:
        """Return the bytes that autograd keeps of a forward, without parameters."""
        parameters = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.model(**self.batch).loss
        total = sum(storage.nbytes() for storage in kept.values())
        del loss
        return total


def main() -> int:
    """Measure, print, and say whether the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count (default: 9)")
    parser.add_argument("--dtype", default="float32", help="of the base weights (default: float32)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    makers = {"lora": lora, "lora_fa_peft": lora_fa_peft, "lora_fa": lora_fa}
    trainings = {name: Training(make, getattr(torch, options.dtype)) for name, make in makers.items()}
    times: dict[str, list[float]] = {name: [] for name in trainings}
    for _ in range(options.rounds + 1):
        for name, training in trainings.items():
            times[name].append(training.step())
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    figures = {
        "step_s": {name: round(value, 4) for name, value in medians.items()},
        "over_lora": {name: round(value / medians["lora"], 3) for name, value in medians.items()},
        "kept_bytes": {name: training.kept_bytes() for name, training in trainings.items()},
        "bar": BAR,
    }
    print(json.dumps(figures, indent=2))
    return 0 if medians["lora_fa"] <= BAR * medians["lora"] else 1


if __name__ == "__main__":
    sys.exit(main())
