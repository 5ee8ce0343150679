"""LoRA-GA: a pass over the base before there are adapters, what PEFT makes of its gradients, then training as LoRA's.

All three are one timeline: weights are there from the beginning, adapters and optimizer states come between the second
and the third. PEFT decomposes one gradient after the other, and lets go of it: what is there beside the gradients is
largest in the first of layers that are alike, so that of these only the first is followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from lorafa_prof.analytic.builder import Builder, Linear
from lorafa_prof.analytic.sizes import product_of, rounded, symbol_values
from lorafa_prof.analytic.step_plan import StepPlan
from lorafa_prof.analytic.tape import Tape
from lorafa_prof.analytic.tensors import GRADIENTS, TEMPORARIES, Tensor
from lorafa_prof.analytic.timeline import Kind, Timeline, build_timeline, generic
from lorafa_prof.analytic.trace import StepTrace, trace_step
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.layers import too_few_vectors
from lorafa_prof.ledger import INITIALISATION, PRE_PASS, PRE_PASS_BACKWARD
from lorafa_prof.specs import RunSpec

ADAPTER = "adapters"
_PHASES = {"forward": PRE_PASS, "loss": PRE_PASS, "backward": PRE_PASS_BACKWARD}


def train_weight(builder: Builder, layer: Linear) -> None:
    """Let the pass compute the gradient of a layer's weight, in place of giving it an adapter."""
    del builder
    layer.weight.requires_grad = True


def refuse_without_gradients(run: RunSpec) -> None:
    """Refuse what the pass is not built for.

    Raises:
        UnsupportedError: quantised weights, the fused loss, several GPUs.
    """
    refused = (
        (run.resolved_quant != "none", f"takes the gradients of the weights: {run.resolved_quant} weights have none"),
        (run.loss == "fused", "is not built with the fused loss; it is with --loss hf"),
        (run.shard != "none" or run.gpus > 1, "is not built for several GPUs: its gradients are estimated on one"),
    )
    for is_refused, why in refused:
        if is_refused:
            raise UnsupportedError(f"LoRA-GA {why}")


def plan_after_pass(run: RunSpec) -> PlanAfterPass:
    """Trace a step of training, and the pass before the first one: one batch, whatever a step accumulates.

    Raises:
        UnsupportedError: what the pass is not built for, or an architecture or option that is not modelled.
    """
    refuse_without_gradients(run)
    return PlanAfterPass(run, trace_step(run), trace_step(run.replace(accumulation=1), train_weight))


@dataclass(frozen=True, slots=True)
class Adapted:
    """Layers that are alike, and the shape of their weight."""

    rows: int
    columns: int
    count: int
    path: str

    @property
    def numbers(self) -> tuple[int, int]:
        """The weight's shape (k, m)."""
        return self.rows, self.columns


class PlanAfterPass(StepPlan):
    """A step of training, and all that comes before the first one.

    Args:
        run: the configuration.
        trace: a step of training.
        before: forward and backward of the pass.
    """

    def __init__(self, run: RunSpec, trace: StepTrace, before: StepTrace) -> None:
        super().__init__(run, trace)
        self._pass = build_timeline(before.tape, before.end_of_forward, before.end)
        layers = trace.builder.adapted
        self._adapted = [Adapted(x.out_features, x.in_features, x.count, x.path) for x in layers]
        for layer in self._adapted:
            if refusal := too_few_vectors(layer.path, layer.numbers, run.method.rank):
                raise refusal

    @cached_property
    def static(self) -> list[tuple[Kind, int]]:
        """What is there in the pass and in training: the base."""
        return [(kind, count) for kind, count in self.kept if kind.category == "weights"]

    @cached_property
    def timeline(self) -> Timeline:
        """The pass, the initialisation, then a step of training."""
        passed = self._pass.with_phases(_PHASES).cleared(lambda kind: _in_batch(kind) or kind.category == GRADIENTS)
        tape = Tape()
        _initialise(tape, self._adapted, self.run)
        begun = passed.cleared(_in_batch).followed_by(tape, INITIALISATION)
        born = [(kind, count) for kind, count in self._adapters_as_made() if kind.category != "weights"]
        begun = begun.cleared(lambda kind: False)
        self._first_of_training = len(begun.places)
        return begun.then(super().timeline, born)

    def _adapters_as_made(self) -> Iterator[tuple[Kind, int]]:
        """Yield what there is in training, each A in the storage that it has been made in."""
        views = {}
        if self.run.dtype == self.run.resolved_adapter_dtype == "fp32":
            views = {layer.path: layer for layer in self._adapted if layer.rows >= layer.columns}
        by_path = {generic(path): layer for path, layer in views.items()}
        for kind, count in self.kept:
            layer = by_path.get(kind.module.removesuffix(".lora_A"))
            if layer is not None and kind.category == ADAPTER and kind.module.endswith(".lora_A"):
                shape = (_vectors(layer, self.run), layer.columns)
                yield kind._replace(shape=shape, size=(shape[0] * shape[1] * 4, "")), count
            else:
                yield kind, count

    def peaks_apart(self, bs: int, seq: int) -> tuple[int, int]:
        """Return the peak before training and that of training, in bytes."""
        values = symbol_values(bs, seq)
        timeline = self.timeline
        sizes = [rounded(kind.size[0] * product_of(kind.size[1], values)) for kind in timeline.kinds]
        live = self.static_bytes
        peaks = [live, live]
        for kind, change, place in timeline.events:
            live += sizes[kind] * change
            is_training = place >= self._first_of_training
            peaks[is_training] = max(peaks[is_training], live)
        stepping = live + sum(rounded(kind.size[0]) * count for kind, count in self.step_temporaries)
        return peaks[0], max(peaks[1], stepping)


def _in_batch(kind: Kind) -> bool:
    return kind.module == "batch"


# -- initialisation --------------------------------------------------------------------------------------------------


def _vectors(layer: Adapted, run: RunSpec) -> int:
    """Return how many singular vectors PEFT computes."""
    return min(4 * run.method.rank, layer.rows, layer.columns)


def _initialise(tape: Tape, layers: Sequence[Adapted], run: RunSpec) -> None:
    """PEFT's `estimate_gradients`, as it ends, and its `lora_ga_init` for each layer.

    Gradients are here from the beginning, as the pass has left them.
    """
    gradients = [
        [tape.new("gradient of weight", layer.numbers, run.dtype, GRADIENTS) for _ in range(layer.count)]
        for layer in layers
    ]
    for layer, alike in zip(layers, gradients, strict=True):
        for i in range(layer.count):
            alike[i] = tape.new("mean gradient", layer.numbers, run.dtype, GRADIENTS)
    adapters: list[Tensor] = []
    for layer, alike in zip(layers, gradients, strict=True):
        adapters += _begun(tape, layer, run, alike)
        for _ in alike:
            adapters += [tape.new(name, shape, run.dtype, _category(run)) for name, shape in _pair(layer, run)]
        alike.clear()


def _pair(layer: Adapted, run: RunSpec) -> tuple[tuple[str, tuple[int, int]], tuple[str, tuple[int, int]]]:
    rank = run.method.rank
    in_place = run.dtype == "fp32" and layer.rows >= layer.columns
    return ("A", (_vectors(layer, run) if in_place else rank, layer.columns)), ("B", (layer.rows, rank))


def _category(run: RunSpec) -> str:
    """What A and B are as they are made: adapters, unless these are casts of them."""
    return ADAPTER if run.dtype == run.resolved_adapter_dtype else TEMPORARIES


def _begun(tape: Tape, layer: Adapted, run: RunSpec, alike: list[Tensor]) -> list[Tensor]:
    """Make A and B of the first of the gradients, and let go of it; W - scaling * B A takes the weight's place."""
    (k, m), rank, casts = layer.numbers, run.method.rank, run.dtype != "fp32"
    wide = tape.new("gradient in fp32", (k, m), "fp32") if casts else None
    kept = _svd_lowrank(tape, layer, _vectors(layer, run))
    diagonal = tape.new("singular values, diagonal", (rank, rank), "fp32")
    b = tape.new("B, unscaled", (k, rank), "fp32")
    del diagonal
    b = tape.new("B", (k, rank), "fp32", TEMPORARIES if casts else ADAPTER)
    kind = _category(run)
    a = tape.new("A", (rank, m), run.dtype, TEMPORARIES if k < m else kind) if casts else kept["V"]
    if casts:
        b = tape.new("B", (k, rank), run.dtype, kind)
    # the vectors of a wide matrix's rows lie in columns, and are laid out anew
    pair = [tape.new("A", (rank, m), run.dtype, kind) if k < m else a, b]
    weight = tape.new("weight in fp32", (k, m), "fp32") if casts else None
    factors = [tape.new(f"{n} in fp32", shape, "fp32") for n, shape in (("B", (k, rank)), ("A", (rank, m))) if casts]
    product = tape.new("B A", (k, m), "fp32")
    factors.clear()
    offset = tape.new("scaled B A", (k, m), "fp32")
    del product
    weight = tape.new("W - B A", (k, m), "fp32")
    if casts:
        weight = tape.new("W - B A in 16 bits", (k, m), run.dtype)
    del weight  # the old weight goes as the new one takes its place
    alike.pop()
    del wide, kept, offset, a
    return pair


def _svd_lowrank(tape: Tape, layer: Adapted, q: int) -> dict[str, Tensor]:
    """torch.svd_lowrank(gradient, q, niter=4): subspace iteration, then the decomposition of what is left (q, n)."""
    tall, n = max(layer.numbers), min(layer.numbers)

    def product(rows: int) -> Tensor:
        return tape.new("product with the subspace", (rows, q), "fp32")

    def orthogonal(rows: int) -> Tensor:
        basis = tape.new("basis of the subspace", (rows, q), "fp32")
        rest = tape.new("R of the basis", (q, q), "fp32")
        del rest
        return basis

    start = tape.new("random subspace", (n, q), "fp32")
    x = product(tall)
    basis = orthogonal(tall)
    for _ in range(4):
        for rows in (n, tall):
            x = product(rows)
            basis = orthogonal(rows)
    del start, x
    small = tape.new("gradient in the subspace", (q, n), "fp32")
    u, s, v = (tape.new(f"{name} of the subspace", shape, "fp32") for name, shape in _parts(q, n))
    whole = tape.new("left singular vectors", (tall, q), "fp32")
    del u, basis, small
    return {"U": whole, "S": s, "V": v}


def _parts(q: int, n: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return ("U", (q, q)), ("S", (q,)), ("V", (q, n))
