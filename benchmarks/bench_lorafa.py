"""Times the steps of optimizers over LoRA-FA's adapters: ours, PEFT's LoRA-FA optimizer, and AdamW on the same B.

    python benchmarks/bench_lorafa.py [--width 1024] [--rank 64] [--layers 32] [--rounds 7]

Seven adapted matrices a layer, in the proportions of Llama-2-7B (whose width is 4096); the base weights are never read
and take no memory. The gradients are random and the same for all. In each round every optimizer takes one step, in
turn, so that a busy moment strikes all alike; the clock is the processor time of this process, on one thread. The first
round does not count: states are made in it.

Prints one JSON object with medians and their ratios. Exits 1 when a bar is missed: PEFT's step takes at least 10 times
ours at the default size, and ours at most 1.5 times that of torch's AdamW, as it comes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import peft
import torch
from peft.optimizers import create_lorafa_optimizer

from lorafa_prof import lorafa

AGAINST_PEFT, AGAINST_ADAMW = 10.0, 1.5
RATE = 1e-4


class Layer(torch.nn.Module):
    """The seven matrices of a layer, without the layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = width * 43 // 16
        for name in ("q", "k", "v", "o"):
            setattr(self, name, frozen(width, width))
        self.gate, self.up, self.down = frozen(width, inner), frozen(width, inner), frozen(inner, width)


def frozen(inputs: int, outputs: int) -> torch.nn.Linear:
    """Return a linear layer whose weight is one number."""
    layer = torch.nn.Linear(inputs, outputs, bias=False, device="meta")
    layer.weight = torch.nn.Parameter(torch.zeros(1, 1).expand(outputs, inputs), requires_grad=False)
    return layer


def adapted(width: int, rank: int, layers: int) -> peft.PeftModel:
    """Return the layers with adapters whose B has a gradient, A frozen."""
    torch.manual_seed(0)
    base = torch.nn.Sequential(*(Layer(width) for _ in range(layers)))
    names = ["q", "k", "v", "o", "gate", "up", "down"]
    model = peft.get_peft_model(base, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names))
    lorafa.prepare(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    return model


def timed(optimizer: torch.optim.Optimizer) -> float:
    """Return the processor seconds of a step."""
    began = time.process_time()
    optimizer.step()
    return time.process_time() - began


def main() -> int:
    """Measure, print, and say whether the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024, help="width of the model (default: 1024)")
    parser.add_argument("--rank", type=int, default=64, help="rank of the adapters (default: 64)")
    parser.add_argument("--layers", type=int, default=32, help="layers of seven matrices (default: 32)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default: 7)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = adapted(options.width, options.rank, options.layers)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    began = time.process_time()
    ours = lorafa.LoraFA(model, lr=RATE)
    construction = time.process_time() - began
    optimizers = {
        "ours": ours,
        "peft": create_lorafa_optimizer(model, r=options.rank, lora_alpha=2 * options.rank, lr=RATE),
        "adamw": torch.optim.AdamW(trained, lr=RATE),
        "adamw_foreach": torch.optim.AdamW(trained, lr=RATE, foreach=True),
        "adamw_fused": torch.optim.AdamW(trained, lr=RATE, fused=True),
    }
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(options.rounds + 1):
        for name, optimizer in optimizers.items():
            times[name].append(timed(optimizer))
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    ratios = {f"{name}_over_ours": medians[name] / medians["ours"] for name in medians if name != "ours"}
    holds = ratios["peft_over_ours"] >= AGAINST_PEFT and 1 / ratios["adamw_over_ours"] <= AGAINST_ADAMW
    figures = {
        "modules": len(trained), "width": options.width, "rank": options.rank,
        "trained_values": sum(parameter.numel() for parameter in trained),
        "construction_s": round(construction, 4),
        "step_s": {name: round(value, 5) for name, value in medians.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "bars": {"peft_over_ours": AGAINST_PEFT, "ours_over_adamw": AGAINST_ADAMW},
    }  # fmt: skip
    print(json.dumps(figures, indent=2))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
