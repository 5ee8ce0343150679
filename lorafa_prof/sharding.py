"""How several GPUs share a step: what goes with what, how rows are dealt out, and what a GPU sends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

from lorafa_prof.errors import BadInputError, ContradictionError, UnsupportedError
from lorafa_prof.specs import PAGED, RunSpec

#: Optimizers whose arithmetic refuses FSDP2's sharded tensors, and what it is that does.
_NOT_SHARDED = {
    "lorafa-peft": "PEFT's LoRA-FA optimizer mixes them with whole tensors",
    **dict.fromkeys(("lora-pro", "lora-pro-full"), "LoRA-Pro multiplies whole adapters with each other"),
    **dict.fromkeys(("adamw-8bit", *PAGED), "bitsandbytes' AdamW has no way to update them"),
    "adafactor": "transformers' Adafactor makes whole states of its own for them",
}


#: The ways in which torch's FSDP2 shards parameters: all of them, let go after their forward or not before the backward
#: (FSDP's SHARD_GRAD_OP), or those alone that are frozen.
BY_FSDP = ("fsdp", "fsdp-grad-op", "frozen")


def is_shared(run: RunSpec) -> bool:
    """Say whether a run is one of several processes, or of one that is set up as if there were more."""
    return run.gpus > 1 or run.shard != "none"


def refuse_unshareable(run: RunSpec) -> None:
    """Refuse what does not go together.

    Raises:
        BadInputError: several GPUs, and not how they share the work.
        ContradictionError: shards of what is frozen, where nothing is.
        UnsupportedError: quantised weights or the head of a fused loss in shards, an optimizer or a method that does
            not know sharded tensors.
    """
    if run.gpus > 1 and run.shard == "none":
        raise BadInputError(f"how are {run.gpus} GPUs to share the work? --shard ddp or fsdp")
    if run.shard == "frozen" and run.method.name == "full":
        raise ContradictionError("--shard frozen shards what is not trained: full fine-tuning trains all")
    if run.shard not in BY_FSDP:
        return
    if run.loss == "fused":
        raise UnsupportedError(
            "the fused loss reads the head's whole weight, which FSDP2 shards; --loss hf, or --shard ddp"
        )
    if run.resolved_quant != "none":
        raise UnsupportedError(
            f"FSDP2 shards {run.resolved_quant} weights as bytes without the scales that belong to them, which is not "
            "built; --shard ddp, or --quant none"
        )
    if run.shard == "frozen":
        return
    if run.method.name == "adalora":
        raise UnsupportedError(
            "FSDP2 keeps parameters as sharded tensors, and AdaLoRA's regulariser multiplies whole ones; --shard ddp"
        )
    reason = _NOT_SHARDED.get(run.resolved_optimizer)
    if reason is not None:
        raise UnsupportedError(
            f"FSDP2 keeps parameters as sharded tensors, and {reason}; --optimizer adamw, or --shard ddp"
        )


def share_of(number: int, gpus: int) -> int:
    """Return the largest share of so many rows (or elements), all shares but the last ones being as large."""
    return -(-number // gpus)


Collective = tuple[str, int]
"""(kind, bytes of all that it is about: what is gathered, scattered or reduced, whole)."""

#: How often each GPU of n sends (n-1)/n of all that a collective is about, where it goes round a ring.
_TIMES = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2, "broadcast": 1}


def sent_bytes(collectives: Iterable[Collective], gpus: int) -> dict[str, int]:
    """Return the bytes that each GPU sends, and as many that it receives, by kind of collective.

    Those of ring algorithms: n GPUs, each of which sends (n-1)/n of the whole once around for an all-gather and for a
    reduce-scatter, twice for an all-reduce; for a broadcast that is the average of all.
    """
    sent: Counter[str] = Counter()
    for kind, nbytes in collectives:
        sent[kind] += nbytes
    ring = Fraction(gpus - 1, gpus)
    return {kind: int(_TIMES[kind] * nbytes * ring) for kind, nbytes in sent.items()}
