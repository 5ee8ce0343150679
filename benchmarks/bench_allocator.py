"""Times the replay of a training run's storages through the model of the caching allocator, in events a second.

    python benchmarks/bench_allocator.py [--runs N]

The events are those of a synthetic transformer: its weights are born and stay; then come steps, in each of which the
layers' activations and temporaries are born in order, the kept ones die in reverse while gradients come and go, and
the optimizer's temporaries follow. Every sequence length has its own sizes, so that blocks are split and merged in
every step. All but the first steps run on memory that is cached.

The clock is the processor time of this process, so that other work on the machine hardly counts.

Prints one JSON object. Exits 1 when the bar is missed by the median run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time

from lorafa_prof.allocator.replay import replay

BAR = 500_000
EVENTS = 200_000
LAYERS, HIDDEN, INNER, RANK = 32, 4096, 11008, 64
#: Tokens of a batch; steps take turns between them, as in training without padding.
TOKENS = (1792, 2048, 1536, 2048)


class Tape:
    """Events and sizes as `replay` takes them."""

    def __init__(self) -> None:
        self.events: list[int] = []
        self.sizes: list[int] = []

    def birth(self, size: int) -> int:
        """A storage is born; return its number."""
        self.sizes.append(size)
        self.events.append(len(self.sizes) - 1)
        return len(self.sizes) - 1

    def death(self, storage: int) -> None:
        """A storage dies."""
        self.events.append(~storage)


def weights(tape: Tape) -> None:
    """Base weights in bfloat16, adapters and their two optimizer states in float32."""
    for _ in range(LAYERS):
        for rows, columns in [(HIDDEN, HIDDEN)] * 4 + [(INNER, HIDDEN)] * 3:
            tape.birth(2 * rows * columns)
            for _ in range(3):
                tape.birth(4 * RANK * rows)
                tape.birth(4 * RANK * columns)
        tape.birth(2 * HIDDEN)


def step(tape: Tape, tokens: int, chance: random.Random) -> None:
    """One training step: forward, backward, optimizer."""
    kept: list[list[int]] = []
    for _ in range(LAYERS):
        saved = []
        for width in (HIDDEN, HIDDEN, RANK, HIDDEN, RANK, HIDDEN, RANK, HIDDEN, RANK, INNER, INNER, RANK, INNER, RANK):
            temporary = tape.birth(4 * tokens * width)
            saved.append(tape.birth(2 * tokens * width))
            if chance.random() < 0.5:
                saved.append(tape.birth(4 * tokens))
            tape.death(temporary)
        kept.append(saved)
    gradients = []
    flow = tape.birth(2 * tokens * HIDDEN)
    for saved in reversed(kept):
        for storage in reversed(saved):
            grown = tape.birth(tape.sizes[storage])
            tape.death(storage)
            tape.death(flow)
            flow = grown
        gradients += [tape.birth(4 * RANK * width) for width in (HIDDEN, HIDDEN, HIDDEN, INNER)]
    tape.death(flow)
    for gradient in gradients:
        temporary = tape.birth(tape.sizes[gradient])
        tape.death(temporary)
    for gradient in gradients:
        tape.death(gradient)


def main() -> int:
    """Make the events, replay them, and say whether the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="runs (default: 7)")
    runs = max(1, parser.parse_args().runs)

    tape, chance = Tape(), random.Random(0)  # noqa: S311 - which activations have statistics, no secret
    weights(tape)
    steps = 0
    while len(tape.events) < EVENTS:
        step(tape, TOKENS[steps % len(TOKENS)], chance)
        steps += 1

    rates, done = [], replay(tape.events, tape.sizes)
    for _ in range(runs):
        began = time.process_time()
        replay(tape.events, tape.sizes)
        rates.append(len(tape.events) / (time.process_time() - began))
    median = statistics.median(rates)

    figures = {
        "benchmark": "allocator",
        "events": len(tape.events),
        "storages": len(tape.sizes),
        "steps": steps,
        "segments": done.end.segments,
        "reserved_peak_bytes": done.reserved.size,
        "allocated_peak_bytes": done.allocated.size,
        "runs": runs,
        "median_per_s": round(median),
        "slowest_per_s": round(min(rates)),
        "fastest_per_s": round(max(rates)),
        "bar_per_s": BAR,
        "ok": median >= BAR,
    }
    print(json.dumps(figures, indent=2))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
