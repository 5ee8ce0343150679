"""From a run to a prediction: the plan evaluated, explained and held against devices."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lorafa_prof.analytic.blocks import beyond_tensors, most_beyond_tensors
from lorafa_prof.analytic.frontier import Plans, largest_within
from lorafa_prof.analytic.sharded import refuse_passes
from lorafa_prof.analytic.sizes import SENTINEL, WITNESS, format_size, product_of, rounded, symbol_values
from lorafa_prof.analytic.step_plan import Peak, StepPlan
from lorafa_prof.analytic.step_times import step_times, times_unmodelled
from lorafa_prof.analytic.timeline import Kind
from lorafa_prof.analytic.workspaces import cublas_workspace_of_each, cublas_workspaces
from lorafa_prof.analytic.zero import as_deepspeed_casts, refuse_zero
from lorafa_prof.contradictions import refuse_contradictions
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.layers import RankBeyondError
from lorafa_prof.ledger import Category, Ledger, MemoryItem
from lorafa_prof.results import Fit, Memory, Prediction, Throughput
from lorafa_prof.results.figures import (
    FP16_INPUTS,
    FSDP_TABLES,
    FUSED_LOSS,
    LIGER_ITSELF,
    LORA_GA_ITSELF,
    MANAGED_ITSELF,
    NO_OUTLIERS,
    managed_lines,
    pass_and_training,
    sequences_line,
)
from lorafa_prof.sharding import BY_FSDP, is_shared, refuse_unshareable, sent_bytes
from lorafa_prof.specs import KEPT_BY_DEFAULT, LARGEST_BATCH, DeviceSpec, RunSpec
from lorafa_prof.speed import step
from lorafa_prof.speed.links import Link
from lorafa_prof.speed.profile import DeviceProfile
from lorafa_prof.units import format_bytes

#: The formulas follow these versions; others save and allocate differently.
MODELLED_VERSIONS = {"torch": "2.13", "transformers": "5.23", "peft": "0.21", "bitsandbytes": "0.50"}

#: What peak allocated and its parts leave out, sums of tensors as they are.
BLOCKS = (
    "what blocks above 1 MiB have beyond their tensors, up to 1 MiB each: in peak_blocks_bytes alone, which does not "
    "know what earlier steps have left free"
)
#: Up to so many bytes addresses are told apart in the allocator's blocks: 64 PiB.
MOST_IN_BLOCKS = 2**56

#: The operations that count as the model's own, by pass and kind.
NEEDED_FLOPS = frozenset(
    itertools.product(("forward", "backward"), ("linear", "attention", "causal attention", "experts"))
)
#: How the kinds begin that a causal kernel computes up to the diagonal: (s + 1) / 2s of what they count.
CAUSAL = "causal"


def predict(
    run: RunSpec,
    devices: Sequence[DeviceSpec] = (),
    *,
    plans: Plans | None = None,
    largest_batch: bool = True,
    blocks: float | None = 0.0,
    timed: bool = False,
    profile: DeviceProfile | None = None,
    link: Link | None = None,
) -> Prediction:
    """Predict the memory and the arithmetic of one training step in its steady state.

    Args:
        run: the configuration.
        devices: cards to hold it against; the first one's library workspaces are counted in the peak.
        plans: where plans that are made are kept, and taken from.
        largest_batch: look for the largest batch on each card as well.
        blocks: count what the allocator's blocks have beyond their tensors where that could be more than this share of
            the peak (it takes milliseconds); None: nowhere.
        timed: say how long the step takes on each card as well.
        profile: of the device of its name; the others have their default profiles.
        link: between several cards; None: that of the devices, where it is known.

    Raises:
        UnsupportedError: what this engine does not model; the text names the way out.
        ContradictionError: options that the method cannot take.
    """
    refuse_unmodelled(run)
    plans = Plans() if plans is None else plans
    _refuse_rank_beyond(run, plans)
    plan = plans.of(run)
    peak = plans.peak(run)
    device = devices[0] if devices else None
    workspace = cublas_workspaces(device)
    ledger = _ledger(plan, run, peak, workspace)
    fits = tuple(_fit(plans, run, peak.allocated, each, largest_batch) for each in devices)
    flops = arithmetic(plan, run)
    times = step_times(run, plan, devices, profile, link) if timed else ()
    return Prediction(
        engine="analytic",
        run=run,
        versions={"engine": "analytic", **MODELLED_VERSIONS},
        memory=_memory(plan, run, peak, ledger, device, blocks),
        throughput=times[0].throughput(flops, run) if len(times) == 1 else flops,
        parameters={"total": plan.parameters.total, "trainable": plan.parameters.trainable},
        fit=tuple(time.fit(fit, flops, run) for fit, time in zip(fits, times, strict=True)) if times else fits,
        assumptions=(
            *run_assumptions(run, plan.assumptions),
            *plan.sharing.assumptions,
            *managed_lines(plan.managed_bytes),
            *_pass_and_training(plan, run, workspace),
            device_assumption(device),
            *step.assumptions(times),
        ),
        unmodelled=(*run_unmodelled(plan, times), *devices_unmodelled(run.attn, devices)),
        ledger=ledger,
        communication_bytes=communicated(plan),
    )


def _refuse_rank_beyond(run: RunSpec, plans: Plans) -> None:
    """Refuse a rank beyond a layer's width where it is one that stands for any rank, which plans take for that.

    No width lies between it and the rank below.
    """
    rank = run.method.rank
    if rank not in (SENTINEL, WITNESS):
        return
    try:
        plans.of(run.replace(method=replace(run.method, rank=rank - 1)))
    except RankBeyondError as error:
        raise RankBeyondError(error.path, rank, error.width, error.method) from None


def refuse_unmodelled(run: RunSpec) -> None:
    """Refuse options that this engine does not model, whatever the model, the batch and the sequence.

    Raises:
        UnsupportedError: the text names the way out.
        ContradictionError: options that the method cannot take.
    """
    refused = (
        (
            run.keep != KEPT_BY_DEFAULT,
            f"selective checkpointing that keeps {', '.join(run.keep)}",
            f"--keep {','.join(KEPT_BY_DEFAULT)} (--engine simulate does all)",
        ),
        (run.loss == "fused" and run.model.task != "causal-lm", f"the fused loss for {run.model.task}", "--loss hf"),
    )
    refuse_contradictions(run)
    refuse_unshareable(run)
    refuse_zero(run)
    refuse_passes(run)
    run.check_optimizer()
    for asked, what, instead in refused:
        if asked:
            raise UnsupportedError(f"the analytic engine does not model {what}; it does {instead}")


def _pass_and_training(plan: StepPlan, run: RunSpec, workspace: int) -> tuple[str, ...]:
    """Say which peak is whose where there is a pass before training: the verdict goes by the larger one."""
    peaks = plan.peaks_apart(run.bs, run.seq)
    return () if peaks is None else (pass_and_training(*(peak + workspace for peak in peaks)),)


# -- memory ----------------------------------------------------------------------------------------------------------


def _ledger(plan: StepPlan, run: RunSpec, peak: Peak, workspace: int) -> Ledger:
    values = symbol_values(run.bs, run.seq)
    items = []
    for kind, count in plan.alive(peak.position):
        one = int(rounded(kind.size[0] * product_of(kind.size[1], values)))
        items.append(_item(kind, count, one * count))
    items.append(
        MemoryItem(
            module="", tensor="cuBLAS workspaces", category=Category.WORKSPACES, shape="", dtype="uint8",
            formula=str(workspace), count=1, nbytes=workspace,
        )
    )  # fmt: skip
    return Ledger(peak.place.moment, tuple(items))


def _item(kind: Kind, count: int, nbytes: int) -> MemoryItem:
    shape = f"({', '.join(str(dim) for dim in kind.shape)})"
    return MemoryItem(
        module=kind.module, tensor=kind.name, category=Category(kind.category), shape=shape, dtype=kind.dtype,
        formula=format_size(kind.size), count=count, nbytes=nbytes,
    )  # fmt: skip


def _memory(
    plan: StepPlan, run: RunSpec, peak: Peak, ledger: Ledger, device: DeviceSpec | None, blocks: float | None
) -> Memory:
    workspace = cublas_workspaces(device)
    beyond = None if blocks is None else _beyond_tensors(plan, run, peak, device, blocks)
    return Memory(
        **Memory.parts_from(ledger),
        peak_allocated_bytes=peak.allocated + workspace,
        peak_blocks_bytes=None if beyond is None else peak.allocated + workspace + beyond,
        peak_reserved_bytes=None,
        context_bytes=device.context_bytes if device is not None else None,
        peak_device_bytes=None,
        peak_moment=peak.place.moment,
        saved_activations_bytes=plan.saved_activation_bytes(run.bs, run.seq),
        trained_gradients_bytes=plan.gradient_bytes,
        moments={phase: high + workspace for phase, high in peak.phases.items() if high},
        managed_bytes=plan.managed_bytes,
    )


def _beyond_tensors(
    plan: StepPlan, run: RunSpec, peak: Peak, device: DeviceSpec | None, least_share: float
) -> int | None:
    """Return what blocks have beyond their tensors at the peak; None where that cannot be more than a share of it.

    None as well where several GPUs share the step: the order of what they tell each other is not a real step's.
    """
    if is_shared(run) or peak.allocated > MOST_IN_BLOCKS:
        return None
    workspaces = cublas_workspace_of_each(device)
    at = (plan, run.bs, run.seq, peak.position, workspaces)
    return None if most_beyond_tensors(*at) <= least_share * peak.allocated else beyond_tensors(*at)


def outside_plan(device: DeviceSpec) -> int:
    """Return the bytes of a card that a plan does not count: library workspaces, and the CUDA context if known."""
    return cublas_workspaces(device) + (device.context_bytes or 0)


def _fit(plans: Plans, run: RunSpec, allocated: int, device: DeviceSpec, largest: bool) -> Fit:
    needed = allocated + outside_plan(device)
    limit = device.total_bytes - outside_plan(device)
    return Fit(
        device=device.name,
        capacity_bytes=device.total_bytes,
        context_bytes=device.context_bytes,
        fits=needed <= device.total_bytes,
        headroom_bytes=device.total_bytes - needed,
        max_bs=largest_within(plans, run, "bs", limit, LARGEST_BATCH) if largest else None,
    )


def communicated(plan: StepPlan) -> dict[str, int] | None:
    """Return what each GPU sends in a step, by kind; None where there is no other."""
    return sent_bytes(plan.sharing.collectives(), plan.run.gpus) if is_shared(plan.run) else None


# -- arithmetic ------------------------------------------------------------------------------------------------------


def arithmetic(plan: StepPlan, run: RunSpec) -> Throughput:
    """Return the floating-point operations of a run's step; times are not known here."""
    flops, times = plan.flops(run.bs, run.seq), run.accumulation
    needed = {key: number for key, number in flops.items() if key in NEEDED_FLOPS}
    return Throughput(
        model_flops=sum(needed.values()) * times,
        executed_flops=sum(flops.values()) * times,
        model_flops_causal=_to_the_diagonal(needed, run.seq) * times,
        executed_flops_causal=_to_the_diagonal(flops, run.seq) * times,
        model_flops_6n=6 * (plan.parameters.total - plan.table_elements) * run.bs * run.seq * times,
    )


def _to_the_diagonal(flops: Mapping[tuple[str, str], int], seq: int) -> int:
    """Return the sum of operations by (pass, kind), those of causal kernels for s (s + 1) / 2 scores instead of s^2."""
    causal = sum(number for (_, kind), number in flops.items() if kind.startswith(CAUSAL))
    return sum(flops.values()) - causal * (seq - 1) // (2 * seq)


# -- what the figures rest on ----------------------------------------------------------------------------------------


def run_assumptions(run: RunSpec, of_model: Sequence[str]) -> tuple[str, ...]:
    """Return what the figures of a run rest on, whatever the card is; `of_model` is what its plan assumes."""
    lines = [
        "steady state: optimizer states exist, gradients are set to None after each step",
        sequences_line(run.padded),
        "of the model's output only the loss is held in backward (loss = model(**batch).loss)",
        f"optimizer {run.resolved_optimizer}",
    ]
    if run.method.name != "full":
        lines.append(f"adapters in {as_deepspeed_casts(run).resolved_adapter_dtype}")
    if run.resolved_quant != "none":
        lines += _QUANTISED[run.resolved_quant]
        lines.append(_PREPARED[run.prepare_kbit])
    if run.loss == "fused":
        lines.append(FUSED_LOSS)
    if is_shared(run):
        lines.append(f"the first of {run.gpus} GPUs, whose shards are the largest; each has a batch of its own")
    if run.checkpointing != "none":
        lines.append("checkpointing is non-reentrant, and adapters have enable_input_require_grads")
    if run.checkpointing == "selective":
        lines.append("selective checkpointing keeps the results of matrix products and of attention kernels")
    return (*lines, *of_model)


_QUANTISED = {
    "nf4": ("linear weights in nf4 without double quantisation",),
    "nf4-dq": ("linear weights in nf4 with double quantisation",),
    "int8": ("linear weights in int8, with one scale a row", NO_OUTLIERS, FP16_INPUTS),
}
_PREPARED = {
    "none": "norms, embeddings and head stay as loaded: prepare_model_for_kbit_training is not called",
    "peft": "norms, embeddings and head are in fp32, as prepare_model_for_kbit_training casts them",
    "trl": "norms are in fp32, embeddings and head in bf16, as TRL's SFTTrainer leaves them",
}


def device_assumption(device: DeviceSpec | None) -> str:
    """Return what the figures rest on that depends on the card."""
    where = device.name if device is not None else "a card before Hopper"
    return f"two cuBLAS workspaces, {format_bytes(cublas_workspaces(device))} together, as on {where}"


def run_unmodelled(plan: StepPlan, times: Sequence[step.StepTime] = ()) -> tuple[str, ...]:
    """Return what is not modelled of a plan's run, whatever the card is, and of its times."""
    return (
        "reserved memory: what the caching allocator keeps beyond what is allocated, and its fragmentation",
        BLOCKS,
        "scratch buffers inside kernels other than attention's (sorts of embedding backward, reductions)",
        *times_unmodelled(plan.run, times),
        *plan.optimizer.notes,
        *plan.sharing.unmodelled,
        *([LIGER_ITSELF] if plan.run.loss == "fused" else []),
        *([MANAGED_ITSELF] if plan.managed_bytes is not None else []),
        *([LORA_GA_ITSELF] if plan.run.method.name == "lora-ga" else []),
        *([FSDP_TABLES] if plan.run.shard in BY_FSDP else []),
        *(["buffers of NCCL's communicators, which are outside PyTorch's allocator"] if is_shared(plan.run) else []),
    )


def devices_unmodelled(attn: str, devices: Sequence[DeviceSpec]) -> tuple[str, ...]:
    """Return what is not modelled of the cards, by the attention that is asked for."""
    if not devices:
        return ("CUDA context and libraries outside the allocator (name a card with --gpu)",)
    lines = []
    unknown = [device.name for device in devices if device.context_bytes is None]
    if unknown:
        lines.append(f"CUDA context of {', '.join(unknown)}: no measurement is known")
    if any(_is(device, (9, 0), (11, 0)) for device in devices) and attn == "sdpa":
        lines.append("cuDNN attention, which PyTorch may prefer to flash attention on Hopper and data-centre Blackwell")
    if any(_is(device, (0, 0), (8, 0)) for device in devices) and attn == "sdpa":
        lines.append("memory-efficient attention, which stands in for flash attention on cards before Ampere")
    return tuple(lines)


def _is(device: DeviceSpec, low: tuple[int, int], high: tuple[int, int]) -> bool:
    return device.compute_capability is not None and low <= device.compute_capability < high
