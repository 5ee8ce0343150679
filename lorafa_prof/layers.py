"""Which layers of a model have adapters: how that is written, and how it is read.

Layers are numbered from 0, as PEFT's `layers_to_transform` numbers them. A plain number N and a share mean the last so
many: the backward pass ends at the lowest layer with an adapter, and autograd keeps nothing of the layers beneath it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lorafa_prof.errors import BadInputError, UnsupportedError

Layers = tuple[int, ...]
"""Numbers of layers, rising."""

#: What stands for every layer.
ALL = "all"
_COUNT = re.compile(r"\d{1,9}")
_SHARE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*%")
_PIECE = re.compile(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?")
FORMS = "write all, 8 (the last 8), 50% (the last half), 0-15 or 0,8,16 (layers by number, the first is 0)"


def parse_layers(text: str, total: int, model: str, *, uneven: bool = False) -> Layers | None:
    """Return the layers that a text names; None for all of them.

    Args:
        text: "all", a number or a share ("50%", to the nearest layer) of the last layers, or numbers and ranges of
            them ("0-15", "0,8,16-31"); one layer alone is "8-8".
        total: how many layers there are.
        model: whose, for errors.
        uneven: an encoder-decoder whose stacks differ in length, so that the last layers of both have no number in
            common.

    Raises:
        BadInputError: another text, no layer at all, or one that the model does not have.
    """
    text = text.strip()
    if text == ALL:
        return None
    share = _SHARE.fullmatch(text)
    if share is not None:
        return _last(_layers_in(float(share[1]), text, total, model), total, model, uneven)
    if _COUNT.fullmatch(text):
        return _last(int(text), total, model, uneven)
    if len(shares_of(text)) > 1:
        raise BadInputError(
            f"--layers {_short(text)}: one value at a time, but for sweep, where each has rows of its own"
        )
    named: set[int] = set()
    for piece in text.split(","):
        named.update(_range(piece.strip(), text, total, model))
    return None if len(named) == total else tuple(sorted(named))


def shares_of(text: str) -> list[str]:
    """Return the texts that a list holds: "25%,50%,all" are three; "0,8,16" is one, of three layers."""
    parts = text.split(",")
    return parts if any(part.strip() == ALL or _SHARE.fullmatch(part.strip()) for part in parts) else [text]


def _layers_in(percent: float, text: str, total: int, model: str) -> int:
    if percent > 100:
        raise BadInputError(f"--layers {text}: a share is 100% at most, which is all")
    number = int(total * percent / 100 + 0.5)
    if number == 0:
        raise BadInputError(
            f"--layers {text} is none of the {total} layers of {model}; one of them is {100 / total:.3g}%"
        )
    return number


def _last(number: int, total: int, model: str, uneven: bool) -> Layers | None:
    if number == 0:
        raise BadInputError(f"--layers 0 leaves no layer to adapt: name 1 to {total}, or all")
    if number > total:
        raise BadInputError(f"--layers {number}: {model} has {total} layers; {FORMS}")
    if number == total:
        return None
    if uneven:
        raise BadInputError(
            f"{model}: its encoder and its decoder differ in length, and PEFT's layers_to_transform names layers of "
            "both by one number: name them, for example 0-3"
        )
    return tuple(range(total - number, total))


def _range(piece: str, text: str, total: int, model: str) -> range:
    found = _PIECE.fullmatch(piece)
    if found is None:
        raise BadInputError(f"--layers {_short(text)!r} names no layers: {FORMS}")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise BadInputError(f"--layers: the range {piece} is reversed: write {last}-{first}")
    check_within((first, last), total, model)
    return range(first, last + 1)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def check_within(layers: Sequence[int], total: int, model: str) -> None:
    """Refuse a number that no layer of the model has.

    Raises:
        BadInputError: such a number; the text says which there are.
    """
    if layers and max(layers) >= total:
        raise BadInputError(f"{model} has no layer {max(layers)}: its {total} layers are numbered 0 to {total - 1}")


def spelled(layers: Sequence[int]) -> str:
    """Return rising numbers as ranges: "0-3,8"."""
    parts: list[tuple[int, int]] = []
    for number in layers:
        if parts and number == parts[-1][1] + 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    return ",".join(f"{first}-{last}" if first < last else str(first) for first, last in parts)


def share_spelled(text: str) -> tuple[float, str] | None:
    """Return the share of the layers that a text as "16-31 of 32" names, in percent, and which they are.

    Which they are is "last" or "first"; all of them are the last. None for others, and where no share follows.
    """
    if text == ALL:
        return 100.0, "last"
    found = re.fullmatch(r"(\d{1,9}(?:-\d{1,9})?(?:,\d{1,9}(?:-\d{1,9})?)*) of (\d{1,9})", text)
    if found is None or int(found[2]) == 0:
        return None
    total = int(found[2])
    ends = [tuple(map(int, piece.split("-"))) for piece in found[1].split(",")]
    number = sum(1 + end[-1] - end[0] for end in ends)
    if len(ends) > 1 or (ends[0][0] > 0 and ends[0][-1] < total - 1):
        return None
    return 100 * number / total, "first" if ends[0][0] == 0 and number < total else "last"


class RankBeyondError(BadInputError):
    """A rank beyond a layer's width, where LoRA-FA (or LoRA-FB) inverts a matrix of the rank.

    Args:
        path: of the layer.
        rank: the number, or what stands for it in the text.
        width: of the layer.
        method: in words.
    """

    def __init__(self, path: str, rank: int | str, width: int, method: str) -> None:
        super().__init__(
            f"{path}: rank {rank} is larger than the layer's width of {width}: the {rank} x {rank} matrix that "
            f"{method} inverts is singular; take a rank up to {width}"
        )
        self.path, self.width, self.method = path, width, method


def nothing_there(target: str, layers: str, model: str) -> BadInputError:
    """Return the error for a target that names nothing in the layers (in words) that are to be adapted."""
    return BadInputError(
        f"no module {_short(target)!r} is in the layers {layers} of {model}: leave it out of --targets, or leave "
        "out --layers"
    )


def experts_everywhere(model: str) -> UnsupportedError:
    """Return the error for fused experts, which PEFT adapts as parameters: layers_to_transform is for modules."""
    return UnsupportedError(
        f"{model}: PEFT adapts the experts and the router of every layer, whatever layers_to_transform says, for they "
        "are parameters there and no modules; name --targets without them (--targets qv, for example)"
    )


def too_few_vectors(path: str, shape: Sequence[int], rank: int) -> UnsupportedError | None:
    """Return the error for a weight that has fewer singular vectors than LoRA-GA takes, two a rank; None: it has them.

    Args:
        path: of the layer.
        shape: of its weight.
        rank: of its adapter.
    """
    least = min(shape)
    if 2 * rank <= least:
        return None
    way = f"--rank {least // 2} at most" if least > 1 else "name --targets without it"
    return UnsupportedError(f"LoRA-GA takes 2 r singular vectors of each weight, and {path} has {least}: {way}")
