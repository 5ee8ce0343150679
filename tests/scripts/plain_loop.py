"""A training loop as people write it."""

from __future__ import annotations

import argparse

import torch
from tiny import lora_llama, sequences


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    model = lora_llama()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    loader = torch.utils.data.DataLoader(sequences(options.bs * options.steps), batch_size=options.bs)
    model.train()
    for number, batch in enumerate(loader):
        output = model(**batch)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {number}: {output.loss.item()!r}")


if __name__ == "__main__":
    main()
