"""What one operation takes on one device: arithmetic or memory, whichever is longer, at the rates that it achieves.

A matrix product is cut into tiles of its result, one tile to a multiprocessor at a time, so that its time comes in
whole waves of tiles: a product that is a little larger than a wave takes as long as two. Where the result is too small
for one wave, k is split among the multiprocessors, and the parts are added up in memory. Of all tilings the fastest is
taken, as the libraries' heuristics aim at. A skinny product, of an adapter's rank, ends up bound by memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lorafa_prof.speed.profile import DeviceProfile, MatmulRates
from lorafa_prof.speed.work import MatrixProduct, OpWork

#: Tiles of the result that one multiprocessor computes at a time, (rows, columns), as the kernels of cuBLAS and
#: CUTLASS have them.
TILES = (
    (256, 128), (128, 256), (128, 128), (256, 64), (64, 256), (128, 64), (64, 128), (64, 64), (128, 32), (32, 128),
    (64, 32), (32, 64),
)  # fmt: skip
#: Parts that k is split into at most, and rows of k in a part at least.
MOST_SPLITS, LEAST_K = 32, 128
#: Steps in which a tile runs along k.
K_STEP = 32
#: Parts of a split product are added up in fp32: each is written, and read again.
SPLIT_BYTES = 8
ELEMENT_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}
#: How far apart two shapes may be, in doublings, for one to tell something of the other.
NEAR = 1.0


class Rates:
    """The times of operations on one device; each different one is worked out once.

    Args:
        profile: of the device.
    """

    def __init__(self, profile: DeviceProfile) -> None:
        self.profile = profile
        self._known: dict[tuple[object, ...], float] = {}

    def seconds(self, work: OpWork) -> float:
        """Return the time that the device is busy with an operation; 0 for one that launches nothing.

        Raises:
            KeyError: a dtype that the profile has no rates of; `missing` says which.
        """
        if work.kernels == 0:
            return 0.0
        key = (work.kind, work.dtype, work.flops, work.moved_bytes, work.product, work.attention, work.kernels)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._work_out(work)
        return found

    def _work_out(self, work: OpWork) -> float:
        floor = work.kernels * self.profile.kernel_s
        traffic = self.traffic_seconds(work.moved_bytes)
        if work.kind == "matmul" and work.product is not None:
            rates = self.profile.matmul[work.dtype]
            busy = max(self.product_seconds(work.product, work.dtype), traffic)
            return floor + busy * nearby_ratio(rates, work.product)
        if work.kind == "matmul":
            return floor + max(work.flops / self.profile.matmul[work.dtype].flops_per_s, traffic)
        if work.kind == "attention":
            return floor + max(self._attention_seconds(work), traffic)
        return floor + traffic

    def traffic_seconds(self, moved: int) -> float:
        """Return the time to move bytes between memory and processor."""
        bandwidth = self.profile.bandwidth
        assert bandwidth is not None  # `missing` has been asked
        return moved / bandwidth.at(moved) if moved else 0.0

    def _attention_seconds(self, work: OpWork) -> float:
        """Return the time of attention's arithmetic; of causal attention only what is not masked is computed."""
        rates, shape = self.profile.attention[work.dtype], work.attention
        if shape is None:
            return work.flops / rates.forward.at(1)
        return shape.causal_flops / rates.of(causal=shape.causal, backward=shape.backward).at(shape.keys)

    def product_seconds(self, product: MatrixProduct, dtype: str) -> float:
        """Return the time of a product's arithmetic, by tiles and waves."""
        rate, units = self.profile.matmul[dtype].flops_per_s, self.profile.units
        if units is None:
            return 2 * product.batch * product.m * product.n * product.k / rate
        on_chip = self.profile.on_chip_bytes_per_s
        load = ELEMENT_BYTES[dtype] * units / on_chip if on_chip else 0.0
        return min(
            self._tiled(product, tile, splits, units / rate, load)
            for tile in TILES
            for splits in _splits(product.k)
        )  # fmt: skip

    def _tiled(
        self, product: MatrixProduct, tile: tuple[int, int], splits: int, per_flop: float, per_element: float
    ) -> float:
        """Return the time with one tiling.

        Args:
            product: (batch x) (m, k) by (k, n).
            tile: rows and columns of the result.
            splits: parts of k.
            per_flop: seconds a FLOP on one multiprocessor.
            per_element: seconds for an element of a tile to reach its multiprocessor.
        """
        rows, columns = tile
        depth = math.ceil(product.k / splits / K_STEP) * K_STEP
        tiles = product.batch * math.ceil(product.m / rows) * math.ceil(product.n / columns) * splits
        waves = math.ceil(tiles / self.profile.units) if self.profile.units else 1
        one = max(2 * rows * columns * depth * per_flop, (rows + columns) * depth * per_element)
        added = SPLIT_BYTES * splits * product.batch * product.m * product.n if splits > 1 else 0
        return waves * one + self.traffic_seconds(added)


def _splits(k: int) -> Iterable[int]:
    splits = 1
    while splits <= MOST_SPLITS and (splits == 1 or k // splits >= LEAST_K):
        yield splits
        splits *= 2


def nearby_ratio(rates: MatmulRates, product: MatrixProduct) -> float:
    """Return how products of about this shape were timed over what tiles and waves give; 1 where none was timed.

    A weighted geometric mean over all timed products: the weight falls with the fourth power of the distance, the
    doublings from one shape to the other.
    """
    weighted = total = 0.0
    for timed in rates.timed:
        apart = _apart(timed.batch, product.batch) + _apart(timed.m, product.m)
        apart += _apart(timed.n, product.n) + _apart(timed.k, product.k)
        weight = 1.0 / (NEAR * 1e-3 + apart) ** 2
        weighted += weight * math.log(timed.over_model)
        total += weight
    return math.exp(weighted / total) if total else 1.0


def _apart(one: int, other: int) -> float:
    return math.log2(one / other) ** 2


def missing(works: Sequence[OpWork], profile: DeviceProfile) -> tuple[str, ...]:
    """Return what a profile would have to know for a time of these operations, in sentences; none: it knows all."""
    lines = []
    if profile.bandwidth is None:
        lines.append(f"no memory bandwidth of {profile.name} is known")
    for kind, rates, what in (
        ("matmul", profile.matmul, "matrix products"), ("attention", profile.attention, "attention"),
    ):  # fmt: skip
        dtypes = dict.fromkeys(work.dtype for work in works if work.kind == kind and work.kernels)
        unknown = [dtype for dtype in dtypes if dtype not in rates]
        if unknown:
            lines.append(f"no rate of {what} in {' or '.join(unknown)} is known for {profile.name}")
    return tuple(lines)
