"""ZeRO as DeepSpeed has it, in closed forms.

Sizes follow DeepSpeed's source of August 2026 and the defaults of deepspeed/runtime/zero/config.py. What two real ranks
of DeepSpeed 0.19.8 hold between steps, keep of the gradients and send is held to them (tests/zero); the peak is not. Of
n trained elements each of G GPUs has ceil(n/G):

- states (all stages): an fp32 copy of its part of the trained weights, and both moments of AdamW in fp32
  (`single_partition_of_fp32_groups` of stage_1_and_2.py, `fp32_partitioned_groups_flat` of stage3.py);
- stage 1: whole gradients until the backward is over, then this GPU's part; stages 2 and 3: one parameter's at a time,
  and this GPU's part;
- a buffer of `reduce_bucket_size` elements that gradients are reduced in (`contiguous_gradients`): in the backward, in
  stage 3 always;
- stage 3: a part of each weight; those of no more than `stage3_param_persistence_threshold` elements whole as well; of
  the gathered ones as many as `stage3_max_live_parameters` lets be, so that few are gathered but once a step;
- the optimizer's step: this GPU's part of the gradients in fp32, and what AdamW makes of it.
"""

from __future__ import annotations

from lorafa_prof.analytic.builder import BUFFERS, WEIGHTS, Builder, Held
from lorafa_prof.analytic.optimizers import OptimizerCost, StateTensor
from lorafa_prof.analytic.sharing import Alone
from lorafa_prof.analytic.tape import GRADIENTS, WORKSPACES, Parameter, Tensor
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.sharding import Collective, share_of
from lorafa_prof.specs import ITEMSIZE, RunSpec

#: Defaults, in elements.
REDUCE_BUCKET_SIZE = 500_000_000
PARAM_PERSISTENCE_THRESHOLD = 100_000
MAX_LIVE_PARAMETERS = 1_000_000_000
SUB_GROUP_SIZE = 1_000_000_000

#: What the figures rest on.
ASSUMPTIONS = (
    "DeepSpeed's defaults: reduce_bucket_size 5e8, contiguous_gradients, in stages 1 and 2 no overlap_comm",
    "DeepSpeed's defaults: stage3_param_persistence_threshold 1e5, stage3_max_live_parameters 1e9, sub_group_size 1e9",
    "no integration's own defaults: transformers' `auto` makes buckets of hidden_size squared",
    "DeepSpeed makes 16-bit modules 16-bit as a whole, adapters too, and keeps fp32 copies of what is trained",
)
UNMODELLED = (
    "DeepSpeed's peak: a closed form after its source; what is held and sent two real ranks have confirmed, on a CPU",
    "temporaries of DeepSpeed's reductions and of its norm of gradients",
    "when stage 3 gathers what: the most that it may keep gathered is counted throughout",
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
        self._in_backward: list[Tensor] = []
        self._part: Tensor | None = None
        self._grown: list[Parameter] = []
        builder.tape.on_gradient = self._gradient_complete

    # -- sizes --------------------------------------------------------------------------------------------------------

    @property
    def _parameters(self) -> list[Held]:
        return [held for held in self.whole if held.parameter.kind != BUFFERS]

    @property
    def trained(self) -> int:
        """Trained elements."""
        return sum(h.parameter.numel * h.count for h in self._parameters if h.parameter.requires_grad)

    @property
    def part(self) -> int:
        """Trained elements of one GPU."""
        return share_of(self.trained, self.gpus)

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

    @property
    def _parted(self) -> list[tuple[int, str]]:
        """(elements, dtype) of the weights that are dealt out."""
        return [
            (h.parameter.numel * h.count, h.parameter.dtype) for h in self._parameters if self.is_parted(h.parameter)
        ]

    def optimizer(self) -> OptimizerCost:
        """Return states and temporaries of the optimizer."""
        names = ("exp_avg", "exp_avg_sq")
        # in fp32, stage 3 updates the weights themselves
        masters = () if self.stage == 3 and self._dtype == "fp32" else ("fp32 master weights",)
        states = tuple(StateTensor("", name, (self.part,), "fp32", 1) for name in (*masters, *names))
        step = min(self.part, SUB_GROUP_SIZE) if self.stage == 3 else self.part
        made = ("fp32 gradients", *(() if self._fused else ("sqrt of exp_avg_sq",)))
        return OptimizerCost(states, tuple(StateTensor("", name, (step,), "fp32", 1) for name in made))

    def updated(self) -> list[Held]:
        """See `Alone.updated`: one flat tensor in fp32, this GPU's part."""
        flat = Parameter(self.tape, "fp32 master weights", (self.part,), "fp32", trained=True, kind=WEIGHTS)
        return [Held(flat, 1)]

    def always(self) -> list[tuple[StateTensor, str]]:
        """See `Alone.always`: what stage 3 has from step to step."""
        if self.stage < 3:
            return []
        elements = sum(number for number, _ in self._parted)
        live = min(elements, MAX_LIVE_PARAMETERS)
        return [
            (StateTensor("", "reduce bucket", (REDUCE_BUCKET_SIZE,), self._dtype, 1), WORKSPACES),
            (StateTensor("", "gathered weights, at most", (live,), self._dtype, 1), WORKSPACES),
            (StateTensor("", "this GPU's gradients", (self.part,), self._dtype, 1), GRADIENTS),
        ]

    def gradient_bytes(self) -> int:
        """Return the gradients that there are when the optimizer steps."""
        return self.part * ITEMSIZE[self._dtype]

    def collectives(self) -> list[Collective]:
        """Return what all GPUs tell each other in a step."""
        trained = self.trained * ITEMSIZE[self._dtype]
        if self.stage < 3:
            # use_multi_rank_bucket_allreduce: gradients are reduced to all, and of the sum each takes its part
            return [("all_reduce", trained), ("all_gather", trained)]
        whole = sum(number * ITEMSIZE[dtype] for number, dtype in self._parted)
        # what may stay gathered serves the backward too; what is whole is gathered when the optimizer has stepped
        times = 1 if sum(number for number, _ in self._parted) <= MAX_LIVE_PARAMETERS else 2
        kept = sum(
            h.parameter.numel * h.count * ITEMSIZE[h.parameter.dtype]
            for h in self._parameters
            if not self.is_parted(h.parameter)
        )
        return [("all_gather", times * whole + kept), ("reduce_scatter", trained)]

    # -- in the step --------------------------------------------------------------------------------------------------

    def end_backward(self) -> None:
        """The backward is over."""
        self._in_backward.clear()
        for parameter in self._grown:
            parameter.grad = None
        if self.stage == 1 and self._part is None:
            self._part = self.tape.new("this GPU's gradients", (self.part,), self._dtype, GRADIENTS)

    def _gradient_complete(self, parameter: Parameter) -> None:
        """A whole gradient is there: from stage 2 on it is copied into the bucket, and goes."""
        if self.stage < 3 and not self._in_backward:
            self._in_backward.append(self.tape.new("reduce bucket", (REDUCE_BUCKET_SIZE,), self._dtype, WORKSPACES))
        if self.stage == 2 and self._part is None:
            self._part = self.tape.new("this GPU's gradients", (self.part,), self._dtype, GRADIENTS)
        if self.stage > 1:
            parameter.grad = None
        else:
            self._grown.append(parameter)
