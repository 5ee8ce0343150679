"""Small models with LoRA adapters whose B is off its zeros, and a loss of them."""

from __future__ import annotations

from typing import Any

import peft
import torch

from lorafa_prof import lorafa

WIDTH, RANK = 24, 4


class Net(torch.nn.Module):
    """Four linear layers, two of one shape, with something between them that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(WIDTH, 40)
        self.left = torch.nn.Linear(40, 40)
        self.right = torch.nn.Linear(40, 40, bias=False)
        self.down = torch.nn.Linear(40, 8)
        self.norm = torch.nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.up(x))
        out: torch.Tensor = self.norm(self.down(torch.tanh(self.left(x)) * self.right(x)))
        return out


def adapted(
    dtype: torch.dtype = torch.float32, *, adapter_dtype: torch.dtype | None = None, seed: int = 0, **config: Any
) -> Any:
    """Net with PEFT's adapters on all its linear layers, in `dtype`."""
    torch.manual_seed(seed)
    options = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["up", "left", "right", "down"], **config}
    model = peft.get_peft_model(Net().to(dtype), peft.LoraConfig(**options), autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        if "lora_" in name and adapter_dtype is not None:
            parameter.data = parameter.data.to(adapter_dtype)
    return model


def prepared(dtype: torch.dtype = torch.float32, *, trains: Any = "B", seed: int = 0, **config: Any) -> Any:
    """The same, made LoRA-FA's or LoRA-FB's."""
    return lorafa.prepare(adapted(dtype, seed=seed, **config), trains=trains)


def inputs(dtype: torch.dtype = torch.float32, *, seed: int = 1, rows: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows // 2, WIDTH, generator=generator).to(dtype)


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int, *, first: int = 0) -> list[float]:
    """Steps on as many batches, those from `first` on; the losses."""
    dtype = next(model.parameters()).dtype
    losses = []
    for step in range(first, first + steps):
        x = inputs(dtype, seed=step)
        loss = (model(x).float() - x[..., :8].sin().float()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def trained(model: Any) -> dict[str, torch.Tensor]:
    """The trained parameters by name, as they are now."""
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
