"""A training by accelerate, with accumulated batches and a scheduler."""

from __future__ import annotations

import accelerate
import torch
from tiny import lora_llama, sequences


def main() -> None:
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=2, cpu=True)
    model = lora_llama()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=8)
    loader = torch.utils.data.DataLoader(sequences(48), batch_size=3)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    model.train()
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        accelerator.print(repr(loss.item()))


if __name__ == "__main__":
    main()
