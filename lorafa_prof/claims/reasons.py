"""Why an engine's answer is not the paper's: for each statement that differs, where it is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from lorafa_prof.results.claims import Answer, Examined

_SHARED = (
    "bf16 adapters: what several layers read is one storage, which PyTorch keeps once, and FlashAttention keeps the "
    "output projection's input anyway; LoRA's inputs take less than a third of what they do in fp32"
)
_HALVED = "autocast: each adapter keeps a 16-bit copy of its input, where without autocast it keeps an fp32 one"
_AS_LOADED = (
    "QLoRA: as loaded, embeddings, norms and head stay in 16 bits. PEFT's prepare_model_for_kbit_training, which "
    "training scripts call, casts them to fp32, and with them what the layers hand on: the rows of QLoRA, prepared"
)

#: By statement, then by subject or assumption as answers name them, the subject first; "" is for all others.
REASONS: Mapping[str, Mapping[str, str]] = {
    "fig2a-others": {
        "qlora": _AS_LOADED,
        "autocast": f"{_HALVED}: every method that was only just too large then fits 80 GB",
        "bf16 adapters": _SHARED,
    },
    "fig2a-saved": {"autocast": _HALVED, "bf16 adapters": _SHARED},
    "batch": {
        "qlora, 12": "QLoRA: 4-bit weights leave room for a batch nearly as large as LoRA-FA's wherever its layers' "
        "inputs are kept in 16 bits",
        "lora, 12": f"LoRA: {_SHARED}",
    },
    "removed": {
        "": "LoRA-FA still computes xA in the forward (it is what it keeps), and the gradient of x passes through A: "
        "of the three products with A that LoRA has, only the one for A's own gradient is gone. (A hundredth more: "
        "query, key and value of the first block, whose input takes no gradient, need none of xA either.)",
    },
    "fig4a-24": {
        "": "what is allocated fits, what PyTorch's allocator reserves beyond it by default does not: the simulation "
        "counts that, and the catalog has the smallest of the totals that were reported of this card. With "
        "expandable segments (--expandable-segments) the gaps are smaller, and PEFT's LoRA-FA (lora-fa-peft) fits with "
        "fp32 or bf16 adapters; under autocast what it allocates is already too near the card's end. Ours allocates "
        "less, but leaves larger gaps, and lacks some 0.3 GiB",
    },
    "fig4b-rank": {
        "": "adapters, gradients and AdamW's moments grow with the rank, 4 bytes for each number of the frozen A and "
        "16 for each of B; what activations add is small. The rows tell up to which rank the peak stays within 10 %",
    },
    "fig4b-layers": {
        "": "backward ends at the first block with adapters: where only the last ones have any, the blocks before them "
        "keep nothing for it. That more layers cost little holds once the first block is among them",
    },
    "1tb": {
        "pure bf16": "weights, gradients and two moments all in bf16 are 8 bytes a parameter; more than 1 TB takes "
        "fp32 weights, or an fp32 master copy and fp32 moments",
    },
    "bits": {
        "": "embeddings, norms and head stay in 16 bits, and 64 weights in 4 bits share a scale of 4 bytes (4.5 bits a "
        "weight)",
    },
    "c3": {"bf16 adapters": _SHARED},
    "half": {
        "": "half holds for square layers: Llama's gate and up projections are wider out than in, and B, the trained "
        "matrix, has the output's width",
    },
}  # fmt: skip


def reason_of(answer: Answer) -> str | None:
    """Return why an answer is not the paper's; None where no reason is known."""
    of_statement = REASONS.get(answer.statement, {})
    for key in (answer.subject, answer.assumption, ""):
        if key in of_statement:
            return of_statement[key]
    return None


def with_reasons(examined: Examined) -> Examined:
    """Return the group with a remark for each difference, and for each refusal of an engine."""
    differing = [answer for answer in examined.answers if answer.agrees is False]
    reasons = [reason for reason in map(reason_of, differing) if reason is not None]
    return replace(examined, remarks=tuple(dict.fromkeys((*examined.remarks, *reasons, *_refusals(examined)))))


def _refusals(examined: Examined) -> Iterator[str]:
    """Yield what an engine refused, subjects of one refusal together."""
    together: dict[tuple[str, str], list[str]] = {}
    for answer in examined.answers:
        if answer.refusal:
            together.setdefault((answer.engine, answer.refusal), []).append(answer.subject)
    for (engine, refusal), subjects in together.items():
        yield f"{engine}, {'; '.join(dict.fromkeys(subjects))}: {refusal}"
