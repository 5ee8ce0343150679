"""What the scripts of this folder train: a tiny llama with LoRA adapters, on the same random tokens every time."""

from __future__ import annotations

import peft
import torch
import transformers

VOCABULARY, TOKENS = 251, 22


def lora_llama() -> peft.PeftModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=48, intermediate_size=112, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
        head_dim=16, vocab_size=VOCABULARY, max_position_embeddings=64, attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def sequences(number: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (number, TOKENS), generator=generator)
    return [{"input_ids": row, "labels": row.clone(), "attention_mask": torch.ones_like(row)} for row in ids]
