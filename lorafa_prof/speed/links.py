"""What cards send each other, and how much of it a step waits for.

Bytes are those that each card sends (`lorafa_prof.sharding.sent_bytes`), which over their time is what nccl-tests call
bus bandwidth: the figure of a link that is published and measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.units import parse_bytes


@dataclass(frozen=True, kw_only=True)
class Link:
    """The links between the cards of one machine."""

    bytes_per_s: float
    """Bus bandwidth that large collectives achieve, each card's, one way."""
    source: str


_RING = "NVIDIA/nccl-tests issue 212, a maintainer: 450 GB/s one way, 370 achieved by ring algorithms"
_A100 = "NVIDIA/nccl-tests issue 178: all_reduce over NV12 between two A100, 208 GB/s; 8 of them some 200 (issue 149)"

#: Cards whose machines connect them all by NVLink, of which a measurement is known. Others sit in machines that differ
#: too much for a default: their link has to be named.
LINKS: Mapping[str, Link] = {
    "a100-40gb": Link(bytes_per_s=208e9, source=_A100),
    "a100-80gb": Link(bytes_per_s=208e9, source=_A100),
    "h100": Link(bytes_per_s=370e9, source=_RING),
    "h200": Link(bytes_per_s=370e9, source=f"{_RING} (an H100's, whose NVLink it has)"),
}

#: Bytes a second beyond which a link is a slip of the unit.
_FASTEST = 1e13

#: What DistributedDataParallel reduces at a time (bucket_cap_mb): what the backward ends with, nothing can hide.
DDP_BUCKET = 25 * 2**20

#: How the kinds of sharing hide what they send: DeepSpeed's stages 1 and 2 reduce after the backward (overlap_comm is
#: off for them by default) and gather after the step.
_HIDES = {
    "ddp": "buckets",
    "fsdp": "units",
    "fsdp-grad-op": "units",
    "frozen": "units",
    "zero3": "units",
    "zero1": "nothing",
    "zero2": "nothing",
}


#: Those whose weights stay gathered from the forward to the backward.
_GATHERED_ONCE = ("fsdp-grad-op",)


def read_link(text: str) -> Link:
    """Read a link as it is named on the command line: "25GB/s" or "370e9" bytes per second.

    Raises:
        BadInputError: not a rate.
    """
    plain = text.strip()
    plain = plain[:-2] if plain.lower().endswith("/s") else plain
    try:
        rate = float(plain)
    except ValueError:
        rate = float(parse_bytes(plain))
    if not 0 < rate <= _FASTEST:
        raise BadInputError(f"--link {text[:40]!r} is no rate: bytes per second that each card sends, as in 25GB/s")
    return Link(bytes_per_s=rate, source="as named with --link")


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """What a step of several cards takes beside the computation of one."""

    shard: str
    """How the step is shared."""
    gpus: int
    sent: Mapping[str, int]
    """Bytes that each card sends in a step, by kind of collective."""
    units: int
    """Layers that are gathered one by one."""
    link: Link | None
    """Between the cards; None: not known."""
    passes: int = 1
    """Micro-batches of the step, whose gradients are reduced once."""

    def waiting(self, phases: Mapping[str, float], device: str) -> float:
        """Return how long a step waits for what the cards send each other, seconds; see `waiting`.

        Args:
            phases: seconds of the phases of a card's own computation ("forward", "backward", "optimizer", ...).
            device: name of the cards.

        Raises:
            UnsupportedError: the link is not known.
            BadInputError: a way of sharing that is not known.
        """
        if self.link is None:
            raise UnsupportedError(
                f"what links several {device} is not known: name what each card sends with --link 25GB/s"
            )
        return waiting(phases, self.sent, self.shard, self.gpus, self.units, self.link, self.passes)

    def describe(self) -> str:
        """Return what the time that a step waits rests on."""
        assert self.link is not None, "there is a time"
        return (
            f"each card sends {self.link.bytes_per_s / 1e9:.4g} GB/s while it computes ({self.link.source}); what is "
            "sent is hidden behind the computation as far as it can be"
        )


def waiting(
    phases: Mapping[str, float], sent: Mapping[str, int], shard: str, gpus: int, units: int, link: Link, passes: int = 1
) -> float:
    """Return how long a step waits for what several cards send each other, seconds.

    Collectives run beside the computation as far as they can be hidden in it. FSDP2 gathers a unit's weights while the
    unit before computes, in the forward and again in the backward, and scatters its gradients meanwhile. A pass that
    computes longer waits for the first unit's weights or the last one's gradients; one that sends longer takes as long
    as that and the computation of one unit. DDP reduces buckets
    while the backward of the last micro-batch goes on, and waits for the last of them.

    Args:
        phases: seconds of the phases of a card's own computation ("forward", "backward", "optimizer", ...).
        sent: bytes that each card sends in a step, by kind of collective.
        shard: how the step is shared.
        gpus: cards that share it.
        units: layers that are gathered one by one.
        link: between the cards.
        passes: micro-batches of the step, each with a forward and a backward.

    Raises:
        BadInputError: a way of sharing that is not known.
    """
    if shard not in _HIDES:
        raise BadInputError(f"no step time for --shard {shard}")
    forward = sum(seconds for phase, seconds in phases.items() if phase in ("forward", "loss"))
    backward = sum(seconds for phase, seconds in phases.items() if phase in ("backward", "recompute"))
    seconds = {kind: nbytes / link.bytes_per_s for kind, nbytes in sent.items()}
    total = sum(seconds.values())
    if _HIDES[shard] == "nothing":
        return total
    if _HIDES[shard] == "buckets":
        last = min(total, 2 * (gpus - 1) / gpus * DDP_BUCKET / link.bytes_per_s)
        return max(0.0, total - last - backward / passes) + last
    gathered = seconds.get("all_gather", 0.0)
    reduced = total - gathered
    before, again = (gathered, 0.0) if shard in _GATHERED_ONCE else (gathered / 2, gathered / 2)
    share = 1 / max(units, 1)
    first_pass = max(forward + share * before, before + share * forward)
    second_pass = max(backward + share * reduced, again + reduced + share * backward)
    return first_pass - forward + second_pass - backward
