"""The runs that two real ranks take under DeepSpeed."""

from __future__ import annotations

from lorafa_prof.specs import RunSpec
from tests.analytic.runs import run_of

#: Tables and the MLP's matrices have more than the 100,000 elements up to which ZeRO-3 leaves weights whole.
_SIZES = {
    "hidden_size": 128, "intermediate_size": 1024, "vocab_size": 1000, "head_dim": 32, "num_attention_heads": 4,
    "num_key_value_heads": 4,
}  # fmt: skip


def _run(method: str, stage: int) -> RunSpec:
    return run_of("llama", method, changes=_SIZES, optimizer="adamw").replace(gpus=2, shard=f"zero{stage}")


RUNS = {f"{method}, stage {stage}": _run(method, stage) for method in ("full", "lora") for stage in (1, 2, 3)}
