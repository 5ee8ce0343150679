"""A small training that ends as it is told: `mlp.py STEPS [raise|shape|exit|hard|sleep]`."""

from __future__ import annotations

import os
import sys
import time

import torch


def main(steps: int, end: str = "") -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    for number in range(steps):
        loss = model(torch.randn(5, 8)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(number, loss.item(), flush=True)
    if end == "raise":
        raise ValueError("the data are wrong")
    if end == "shape":
        model(torch.randn(5, 9))
    if end == "exit":
        sys.exit(3)
    if end == "hard":
        os._exit(7)
    if end == "sleep":
        time.sleep(60)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
