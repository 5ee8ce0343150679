"""Times a training step that `lorafa-prof run` looks at, without tracing, against the same step left alone.

    python benchmarks/bench_run_overhead.py [--blocks N]

A small llama with LoRA adapters trains on the CPU in blocks of steps that are looked at and left alone in turn, in one
process, so that a busy moment strikes all alike. The clock is the processor time of this process, so that other work
on the machine hardly counts; times by the wall are told beside it.

Prints one JSON object. Exits 1 when the bar is missed: the median step may take 1.01 times that of the others.
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
import transformers

import lorafa_prof

BAR = 1.01
STEPS = 4
VOCABULARY, BS, TOKENS = 2048, 2, 128


class Training:
    """Takes steps, and times them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
            vocab_size=VOCABULARY, max_position_embeddings=TOKENS,
        )  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_config(config)
        self.model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear"))
        self.model.train()
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad])
        ids = torch.randint(0, VOCABULARY, (BS, TOKENS))
        self.batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}

    def step(self) -> tuple[float, float]:
        """Take a step; return its processor time and its time by the wall."""
        began = time.process_time(), time.perf_counter()
        self.model(**self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - began[0], time.perf_counter() - began[1]

    def block(self) -> list[tuple[float, float]]:
        """Take some steps; those after the first, in which the model is found, count."""
        return [self.step() for _ in range(STEPS + 1)][1:]


def main() -> int:
    """Measure, print, and say whether the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=40, help="blocks of steps of each kind (default: 40)")
    blocks = max(1, parser.parse_args().blocks)
    training = Training()
    training.block()
    alone: list[tuple[float, float]] = []
    looked_at: list[tuple[float, float]] = []
    for number in range(blocks):
        if number % 2:  # now these first, now the others
            alone += training.block()
        with lorafa_prof.profile(warmup=1, steps=2 * STEPS, trace=False) as p:
            looked_at += training.block()
        if number % 2 == 0:
            alone += training.block()
        if len(p.measurement.steps) != STEPS:
            print("bench_run_overhead: the steps were not looked at", file=sys.stderr)
            return 2
    medians = [[statistics.median(step[clock] for step in steps) for steps in (alone, looked_at)] for clock in (0, 1)]
    ratios = [after / before for before, after in medians]
    figures = {
        "benchmark": "run_overhead",
        "steps": len(alone),
        "step_ms": {"alone": round(1e3 * medians[0][0], 3), "looked_at": round(1e3 * medians[0][1], 3)},
        "ratio": round(ratios[0], 4),
        "ratio_by_the_wall": round(ratios[1], 4),
        "bar": BAR,
        "ok": ratios[0] <= BAR,
    }
    print(json.dumps(figures, indent=2))
    return 0 if ratios[0] <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
