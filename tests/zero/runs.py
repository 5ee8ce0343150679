"""The runs that real ranks take under DeepSpeed."""

from __future__ import annotations

from dataclasses import dataclass, field

from lorafa_prof.specs import RunSpec
from tests.analytic.runs import run_of

#: Tables and the MLP's matrices have more than the 100,000 elements up to which ZeRO-3 leaves weights whole.
_SIZES = {
    "hidden_size": 128, "intermediate_size": 1024, "vocab_size": 1000, "head_dim": 32, "num_attention_heads": 4,
    "num_key_value_heads": 4,
}  # fmt: skip
#: Smaller than all gradients together, and larger than any of them: several buckets are reduced in a backward.
SMALL_BUCKET = 300_000


@dataclass(frozen=True, kw_only=True)
class ZeroRun:
    """What is run, and DeepSpeed's settings where they are not the defaults."""

    run: RunSpec
    settings: dict[str, int] = field(default_factory=dict)


def _run(method: str, stage: int, gpus: int = 2, **settings: int) -> ZeroRun:
    """Return a run of few tokens, so that what is held for sharing is most of its memory."""
    run = run_of("llama", method, changes=_SIZES, optimizer="adamw", bs=1, seq=4)
    return ZeroRun(run=run.replace(gpus=gpus, shard=f"zero{stage}"), settings=settings)


STAGES = (1, 2, 3)
#: ZeRO-3 that gathers a few weights ahead.
NEAR = {"stage3_prefetch_bucket_size": 150_000, "stage3_max_reuse_distance": 700_000}
#: ZeRO-3 that may have fewer weights gathered than there are.
FEW = {**NEAR, "stage3_max_live_parameters": 500_000}
RUNS = {
    **{f"{method}, stage {stage}": _run(method, stage) for method in ("full", "lora") for stage in STAGES},
    **{f"small buckets, stage {n}": _run("full", n, reduce_bucket_size=SMALL_BUCKET) for n in STAGES},
    "near, stage 3": _run("full", 3, reduce_bucket_size=SMALL_BUCKET, **NEAR),
    "few live, stage 3": _run("full", 3, reduce_bucket_size=SMALL_BUCKET, **FEW),
    **{f"four ranks, stage {stage}": _run("full", stage, 4) for stage in STAGES},
}
