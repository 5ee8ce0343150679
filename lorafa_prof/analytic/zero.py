"""ZeRO as DeepSpeed has it, in closed forms.

Sizes and moments follow DeepSpeed 0.19.8 and the defaults of deepspeed/runtime/zero/config.py; what real ranks of it
hold, send and have alive in each phase is compared (tests/zero). Of n trained elements each of G GPUs has ceil(n/G):

- states (all stages): an fp32 copy of its part of the trained weights, and both moments of AdamW in fp32
  (`single_partition_of_fp32_groups` of stage_1_and_2.py, `fp32_partitioned_groups_flat` of stage3.py);
- stage 1: whole gradients until the backward is over, then this GPU's part; stages 2 and 3: one parameter's at a time,
  and this GPU's part, which in stage 2 is there from the first reduction on;
- a buffer of `reduce_bucket_size` elements that gradients are reduced in (`contiguous_gradients`): from the first
  gradient to the end of the backward, in stage 3 always. What is in it is copied when it is reduced: in stages 1 and 2
  if it is of several GPUs' parts, in stage 3 always;
- stage 3: a part of each weight; those of no more than `stage3_param_persistence_threshold` elements whole as well.
  Each module that begins lets about `stage3_prefetch_bucket_size` elements be gathered ahead, into a buffer and out of
  it when they are needed, until `stage3_max_live_parameters` are there: as many as may be are. Where these are fewer
  than all, those stay from the forward to the backward that come again within `stage3_max_reuse_distance` elements;
- the optimizer's step: this GPU's part of the gradients, flattened and then in fp32, and what AdamW makes of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property

from lorafa_prof.analytic.builder import BUFFERS, WEIGHTS, Builder, Held
from lorafa_prof.analytic.optimizers import OptimizerCost, StateTensor
from lorafa_prof.analytic.sharing import Alone, from_the_last
from lorafa_prof.analytic.tensors import GRADIENTS, WORKSPACES, Parameter, Tensor
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.sharding import Collective, share_of
from lorafa_prof.specs import ITEMSIZE, RunSpec

#: Defaults, in elements.
REDUCE_BUCKET_SIZE = 500_000_000
PARAM_PERSISTENCE_THRESHOLD = 100_000
MAX_LIVE_PARAMETERS = 1_000_000_000
MAX_REUSE_DISTANCE = 1_000_000_000
PREFETCH_BUCKET_SIZE = 50_000_000
SUB_GROUP_SIZE = 1_000_000_000

#: What the figures rest on.
ASSUMPTIONS = (
    "DeepSpeed's defaults: reduce_bucket_size 5e8, contiguous_gradients, in stages 1 and 2 no overlap_comm",
    "DeepSpeed's defaults in stage 3: stage3_param_persistence_threshold 1e5, stage3_prefetch_bucket_size 5e7",
    "DeepSpeed's defaults in stage 3: stage3_max_live_parameters and stage3_max_reuse_distance 1e9",
    "no integration's own defaults: transformers' `auto` makes buckets of hidden_size squared",
    "DeepSpeed makes 16-bit modules 16-bit as a whole, adapters too, and keeps fp32 copies of what is trained",
    "of the GPUs the one that has most alive: in stage 2 the last, whose part of the gradients is reduced first",
)
UNMODELLED = (
    "DeepSpeed on CUDA: real ranks on a CPU have confirmed what is alive; its streams and NCCL's are not followed",
    "which weights ZeRO-3 gathers when: the most that there may be at once is counted in the whole pass",
)


def stage_of(run: RunSpec) -> int:
    """Return the stage that a run asks for; 0: none."""
    return int(run.shard.removeprefix("zero")) if run.shard.startswith("zero") else 0


def refuse_zero(run: RunSpec) -> None:
    """Refuse what has no closed form here.

    Raises:
        UnsupportedError: another optimizer than AdamW, or quantised weights in parts.
    """
    stage = stage_of(run)
    if not stage:
        return
    if run.resolved_optimizer not in ("adamw", "adamw-fused") or run.method.name == "lora-plus":
        raise UnsupportedError(
            f"ZeRO gives the optimizer one flat tensor, for which only AdamW is modelled, not {run.resolved_optimizer} "
            f"with {run.method.name}: --optimizer adamw"
        )
    if stage == 3 and run.resolved_quant != "none":
        raise UnsupportedError(
            f"ZeRO-3 of {run.resolved_quant} weights is not modelled; --shard zero2, or --quant none"
        )


def as_deepspeed_casts(run: RunSpec) -> RunSpec:
    """Return the run whose dtypes the step has: DeepSpeed casts the module to the dtype that it is told to train in."""
    if not stage_of(run) or run.dtype == "fp32" or run.adapter_dtype != "auto":
        return run
    return run.replace(adapter_dtype=run.dtype)


class Zero(Alone):
    """ZeRO around a model whose step is traced."""

    assumptions = ASSUMPTIONS
    unmodelled = UNMODELLED

    def __init__(self, builder: Builder, run: RunSpec) -> None:
        super().__init__(builder, run)
        self.stage, self._dtype = stage_of(run), run.dtype
        self._fused = run.resolved_optimizer == "adamw-fused"
        self._passes = 2 if run.checkpointing == "none" else 3
        self._bucket: Tensor | None = None
        self._filled = self._reduced = 0
        self._part: Tensor | None = None
        self._gathered: list[Tensor] = []
        builder.tape.on_gradient = self._gradient_complete
        if self.stage == 3:
            builder.units = self

    # -- sizes --------------------------------------------------------------------------------------------------------

    @cached_property
    def _parameters(self) -> list[Held]:
        return [held for held in self.whole if held.parameter.kind != BUFFERS]

    @cached_property
    def trained(self) -> int:
        """Trained elements."""
        return sum(h.parameter.numel * h.count for h in self._parameters if h.parameter.requires_grad)

    @property
    def part(self) -> int:
        """Trained elements of one GPU."""
        return share_of(self.trained, self.gpus)

    @cached_property
    def room(self) -> int:
        """Elements that a GPU keeps of the gradients for the step, of the GPU with most.

        In stages 1 and 2 parameters on the border between two parts are there as a whole.
        """
        if self.stage == 3:
            return self.part
        kept: Counter[int] = Counter()
        begin = 0
        trained = [held for held in self._parameters if held.parameter.requires_grad]
        for parameter in reversed(list(from_the_last(trained))):
            end = begin + parameter.numel
            for gpu in range(begin // self.part, (end - 1) // self.part + 1):
                kept[gpu] += parameter.numel
            begin = end
        return max(kept.values())

    def is_parted(self, parameter: Parameter) -> bool:
        """Say whether stage 3 has a weight in parts alone."""
        return (
            self.stage == 3 and parameter.kind != BUFFERS and parameter.numel > PARAM_PERSISTENCE_THRESHOLD
        )  # fmt: skip

    def held(self) -> list[Held]:
        """Return what one GPU has of parameters and buffers from step to step."""
        if self.stage < 3:
            return self.whole
        parts = [Held(self._part_of(h.parameter), h.count) for h in self._parameters]
        return [*(h for h in self.whole if not self.is_parted(h.parameter)), *parts]

    def _part_of(self, parameter: Parameter) -> Parameter:
        shape = (share_of(parameter.numel, self.gpus),)
        return Parameter(
            parameter.tape, parameter.name, shape, parameter.dtype, trained=parameter.requires_grad, kind=parameter.kind
        )  # fmt: skip

    def optimizer(self) -> OptimizerCost:
        """Return states and temporaries of the optimizer."""
        names = ("exp_avg", "exp_avg_sq")
        # in fp32, stage 3 updates the weights themselves
        masters = () if self.stage == 3 and self._dtype == "fp32" else ("fp32 master weights",)
        states = tuple(StateTensor("", name, (self.part,), "fp32", 1) for name in (*masters, *names))
        return OptimizerCost(states, tuple(self._in_the_step()))

    def _in_the_step(self) -> Iterator[StateTensor]:
        """Yield what there is at the step's largest beside this GPU's part of the gradients.

        The part is flattened, and cast to fp32 before the flattened one goes; then AdamW makes the roots of its second
        moments. The part itself has gone by then in stages 1 and 2: as many bytes as the roots take less.
        """
        elements = min(self.part, SUB_GROUP_SIZE) if self.stage == 3 else self.part
        cast = self._dtype != "fp32"
        roots = self.stage == 3 and not self._fused
        if cast or roots:
            yield StateTensor("", "fp32 gradients", (elements,), "fp32", 1)
        if roots:
            yield StateTensor("", "sqrt of exp_avg_sq", (elements,), "fp32", 1)
        else:
            yield StateTensor("", "gradients, flattened", (elements,), self._dtype, 1)

    def updated(self) -> list[Held]:
        """See `Alone.updated`: one flat tensor in fp32, this GPU's part."""
        flat = Parameter(self.tape, "fp32 master weights", (self.part,), "fp32", trained=True, kind=WEIGHTS)
        return [Held(flat, 1)]

    def always(self) -> list[tuple[StateTensor, str]]:
        """See `Alone.always`: what stage 3 has from step to step."""
        if self.stage < 3:
            return []
        return [
            (StateTensor("", "reduce bucket", (REDUCE_BUCKET_SIZE,), self._dtype, 1), WORKSPACES),
            (StateTensor("", "this GPU's gradients", (self.part,), self._dtype, 1), GRADIENTS),
        ]

    def gradient_bytes(self) -> int:
        """Return the gradients that there are when the optimizer steps."""
        return self.room * ITEMSIZE[self._dtype]

    # -- what is sent -------------------------------------------------------------------------------------------------

    def collectives(self) -> list[Collective]:
        """Return what all GPUs tell each other in a step."""
        trained = self.trained * ITEMSIZE[self._dtype]
        if self.stage < 3:
            # use_multi_rank_bucket_allreduce: gradients are reduced to all, and of the sum each takes its part
            return [("all_reduce", trained), ("all_gather", trained)]
        # what stays gathered serves the backward too; what is whole is gathered when the optimizer has stepped
        gathered = sum(
            number * (1 if stays else 2) * ITEMSIZE[dtype] for number, dtype, stays in self._parted(self._parameters)
        )
        kept = sum(
            h.parameter.numel * h.count * ITEMSIZE[h.parameter.dtype]
            for h in self._parameters
            if not self.is_parted(h.parameter)
        )
        return [("all_gather", gathered + kept), ("reduce_scatter", trained)]

    # -- gathered weights of stage 3 ----------------------------------------------------------------------------------

    def _parted(self, parameters: Sequence[Held]) -> Iterator[tuple[int, str, bool]]:
        """Yield (elements, dtype, whether it stays from the forward to the backward) of the weights that are dealt out.

        All stay if so many may be there. Otherwise a weight does if fewer elements than the reuse distance are used
        after it and before it is used again: those that come after it, once in the forward and once in the backward.
        """
        meant, later = {id(held.parameter) for held in parameters}, 0
        every = [held for held in self._parameters if self.is_parted(held.parameter)]
        all_stay = sum(held.parameter.numel * held.count for held in every) <= MAX_LIVE_PARAMETERS
        for parameter in from_the_last(self._parameters):
            if self.is_parted(parameter) and id(parameter) in meant:
                stays = all_stay or self._passes * later < MAX_REUSE_DISTANCE
                yield parameter.numel, parameter.dtype, stays
            later += parameter.numel

    def _gather(self, parameters: Sequence[Held], *, forward: bool = False) -> None:
        """Have as many of these gathered as may be at once, and the buffer of those that are being gathered.

        In the forward all of them are gathered, in the backward those that have not stayed.
        """
        self._gathered = []
        found = list(self._parted(parameters))
        largest = max((number for number, _, _ in found), default=0)
        live = min(sum(number for number, _, _ in found), MAX_LIVE_PARAMETERS + largest)
        coming = sum(number for number, _, stays in found if forward or not stays)
        ahead = min(coming, PREFETCH_BUCKET_SIZE + largest)
        for name, elements in (("gathered weights, at most", live), ("all-gather buffer", ahead)):
            if elements:
                self._gathered.append(self.tape.new(name, (elements,), self._dtype, WORKSPACES))
                self.tape.items[-1].module = ""

    def begin(self) -> None:
        """The model's forward begins."""
        if self.stage == 3:
            self._gather(self._parameters, forward=True)

    def begin_backward(self) -> None:
        """The gradient of the loss has come."""
        if self.stage == 3:
            self._gather(self._parameters)

    def enter(self, path: str) -> None:
        """A block's forward begins."""

    def leave(self, path: str) -> None:
        """A block's forward is over."""

    def output_complete(self, path: str) -> None:
        """The gradient of a block's output is complete."""

    def input_complete(self, path: str) -> None:
        """The gradient of a block's input is complete: of the gathered weights those of earlier blocks are left."""
        first = next(i for i, held in enumerate(self._parameters) if held.parameter.name.startswith(f"{path}."))
        self._gather(self._parameters[:first])

    # -- gradients in the backward ------------------------------------------------------------------------------------

    def end_backward(self) -> None:
        """The backward is over: what is in the bucket is reduced, and what is gathered goes."""
        if self.stage == 1:
            self._reduce_whole()
            return
        self._reduce()
        if self.stage == 2:
            self._make_part()
        self._bucket = None
        self._gathered = []

    def _reduce_whole(self) -> None:
        """Reduce the gradients of stage 1, bucket by bucket from the first parameter on.

        What is copied into the bucket goes, and what is in it is copied when it is reduced. Beside whole gradients
        there is a bucket, or, when the first one has been reduced, what was left free in that and this GPU's part.
        """
        if self.trained > REDUCE_BUCKET_SIZE:
            self._bucket = None
            free = REDUCE_BUCKET_SIZE - self._in_the_first_bucket()
            rest = self.tape.new("reduce bucket, what is free", (free,), self._dtype, WORKSPACES) if free else None
            self._make_part()
            del rest
        for held in self._parameters:
            held.parameter.grad = None
        self._make_part()
        self._bucket = None

    def _in_the_first_bucket(self) -> int:
        """Return the elements of the gradients that fill it."""
        filled = 0
        trained = [held for held in self._parameters if held.parameter.requires_grad]
        for parameter in reversed(list(from_the_last(trained))):
            if filled + parameter.numel > REDUCE_BUCKET_SIZE:
                break
            filled += parameter.numel
        return filled

    def _gradient_complete(self, parameter: Parameter) -> None:
        """A whole gradient is there: from stage 2 on it is copied into the bucket, and goes.

        The first one is of a layer that stands for itself alone: what is made then is there once.
        """
        if self.stage < 3 and self._bucket is None:
            self._bucket = self.tape.new("reduce bucket", (REDUCE_BUCKET_SIZE,), self._dtype, WORKSPACES)
            if self.stage == 2 and self.trained > REDUCE_BUCKET_SIZE:
                self._make_part()
        if self.stage == 1:
            return
        if self._filled + parameter.numel > REDUCE_BUCKET_SIZE:
            self._reduce()
        if parameter.numel > REDUCE_BUCKET_SIZE:  # reduced where it is
            self._reduced += parameter.numel
        else:
            self._filled += parameter.numel
        parameter.grad = None

    def _reduce(self) -> None:
        """Reduce what is in the bucket."""
        before, self._reduced = self._reduced, self._reduced + self._filled
        in_parts = before // self.part != (self._reduced - 1) // self.part
        if self._filled and (self.stage == 3 or in_parts):
            self.tape.new("copy of the bucket", (self._filled,), self._dtype, WORKSPACES)  # and it goes at once
        self._filled = 0

    def _make_part(self) -> None:
        if self._part is None:
            self._part = self.tape.new("this GPU's gradients", (self.room,), self._dtype, GRADIENTS)
