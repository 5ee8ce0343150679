"""Sizes as monomials in batch and sequence length.

A tensor's shape is a tuple whose entries are integers or one of the symbols below, so its size in bytes is
`coefficient * product of symbols`: (b, s, 4096) in bf16 is `8192*b*s`. A sum of such sizes is a polynomial, and it is
evaluated for one configuration or for an array of a million with the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import ITEMSIZE
from lorafa_prof.units import ALLOCATION_GRANULE

Dim = int | str
Shape = tuple[Dim, ...]

#: Symbols of a shape. All but b and s are derived from s by kernels that pad:
#: S = s rounded up to 128, as flash attention's backward pads its row statistics;
#: E = s rounded up to 32, as memory-efficient attention pads its log-sum-exp;
#: F = s rounded up to 16, as an attention bias is padded for alignment;
#: A = s where that padding needs no copy and 0 where it does; U = s and V = F where it does and 0 where not;
#: p = s + 1, the labels before the shift by one token.
SYMBOLS = ("b", "s", "S", "E", "F", "A", "U", "V", "p")
#: The symbols that can be 0; all others are at least 1.
CAN_VANISH = "AUV"

#: From this character on a symbol is the tokens in a chunk of a fused loss (`chunk_symbol`); no text has such letters.
CHUNKS_FROM, MOST_CHUNKS = 0xE000, 0x1900

#: The largest prime that a rank can be (specs allow 2**16), and a second one to check against: ranks that stand for any
#: rank (`ranks`).
SENTINEL, WITNESS = 65521, 65519

Size = tuple[int, str]
"""(bytes coefficient, the symbols it is multiplied by, sorted): (8192, "bs")."""


@lru_cache(maxsize=4096)
def elements(shape: Shape) -> Size:
    """Return (coefficient, symbols) of the number of elements of `shape`."""
    coefficient, symbols = 1, []
    for dim in shape:
        if isinstance(dim, int):
            coefficient *= dim
        else:
            symbols.append(dim)
    return coefficient, "".join(sorted(symbols))


@lru_cache(maxsize=4096)
def size_of(shape: Shape, dtype: str) -> Size:
    """Return the bytes of a tensor, requested and not yet rounded."""
    coefficient, symbols = elements(shape)
    return coefficient * ITEMSIZE[dtype], symbols


def chunk_symbol(parts: int) -> str:
    """Return the symbol of the tokens in a chunk where all b * s of them are divided into `parts` and rounded up.

    The chunk is the power of two from there on, and at most all tokens.

    Raises:
        UnsupportedError: more parts than there are symbols.
    """
    if parts >= MOST_CHUNKS:
        raise UnsupportedError(f"the analytic engine does not model a loss in {parts} chunks")
    return chr(CHUNKS_FROM + parts)


class _Values(dict[str, Any]):
    """Values of symbols, those of chunks on demand."""

    def __missing__(self, symbol: str) -> Any:
        tokens = self["b"] * self["s"]
        parts = -(-tokens // (ord(symbol) - CHUNKS_FROM))
        if isinstance(tokens, int):
            return min(_power_of_two(parts), tokens)
        import numpy as np

        if tokens.dtype == object:
            return np.frompyfunc(lambda part, most: min(_power_of_two(part), most), 2, 1)(parts, tokens)
        mantissa, exponent = np.frexp(parts)
        return np.minimum(np.where(mantissa == 0.5, parts, np.ldexp(1.0, exponent)), tokens).astype(tokens.dtype)


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is no less."""
    return 1 << (int(number) - 1).bit_length()


def symbol_values(bs: Any, seq: Any) -> dict[str, Any]:
    """Return the value of each symbol for a batch of `bs` sequences of `seq` tokens (integers or integer arrays)."""
    padded = -(-seq // 16) * 16
    aligned = (padded == seq) * 1
    return _Values({
        "b": bs, "s": seq, "S": -(-seq // 128) * 128, "E": -(-seq // 32) * 32, "F": padded, "A": seq * aligned,
        "U": seq * (1 - aligned), "V": padded * (1 - aligned), "p": seq + 1,
    })  # fmt: skip


def product_of(symbols: str, values: Mapping[str, Any]) -> Any:
    """Return the product of the named symbols' values; 1 for none."""
    product: Any = 1
    for symbol in symbols:
        product = product * values[symbol]
    return product


def rounded(requested: Any) -> Any:
    """Return requested bytes rounded up to the allocator's granule; works on integers and integer arrays."""
    return -(-requested // ALLOCATION_GRANULE) * ALLOCATION_GRANULE


def format_size(size: Size) -> str:
    """Return the size as a formula that a person can check: "8192·b·s"."""
    coefficient, symbols = size
    named = {"S": "⌈s⌉₁₂₈", "E": "⌈s⌉₃₂", "F": "⌈s⌉₁₆", "A": "s", "U": "s", "V": "⌈s⌉₁₆", "p": "(s+1)"}
    return "·".join([str(coefficient), *(named.get(symbol) or _letter(symbol) for symbol in symbols)])


def _letter(symbol: str) -> str:
    return symbol if ord(symbol) < CHUNKS_FROM else f"chunk(b·s/{ord(symbol) - CHUNKS_FROM})"
