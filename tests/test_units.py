"""Sizes: parsed, rounded and shown."""

import pytest

from lorafa_prof.errors import BadInputError
from lorafa_prof.units import allocated, format_bytes, format_count, format_gb, format_gib, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30), ("80 GB", 80 * 10**9), ("512MiB", 2**29), ("1048576", 2**20), ("0.5KiB", 512),
        ("1.5 GiB", 3 * 2**29), ("2b", 2), (" 1tib ", 2**40),
    ],
)  # fmt: skip
def test_sizes_are_read_with_binary_and_decimal_units(text: str, size: int) -> None:
    """GiB is 2**30 bytes and GB is 10**9, whatever the case and the blanks."""
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1e9", "1 GiBs", "NaN", "9" * 400, "1..5GB", "０GiB" + "x"])
def test_what_is_no_size_is_refused_in_one_line(text: str) -> None:
    """The error quotes the start of what was given and shows how to write a size."""
    with pytest.raises(BadInputError, match="not a size in bytes") as caught:
        parse_bytes(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("requested", "counted"), [(0, 0), (1, 512), (512, 512), (513, 1024), (10**12 + 1, 10**12 + 512)]
)
def test_the_allocator_counts_in_steps_of_512_bytes(requested: int, counted: int) -> None:
    """10**12 is a multiple of 512, so one byte more costs a whole step."""
    assert allocated(requested) == counted


def test_sizes_are_shown_in_gib_and_small_ones_are_not_taken_for_none() -> None:
    """An unknown size is a dash, a tiny one is not zero, zero is zero."""
    assert format_gib(None) == "-"
    assert format_gib(0) == "0.00"
    assert format_gib(2**20) == "<0.01"
    assert format_gib(1536 * 2**30) == "1,536.00"
    assert format_gib(-(2**29)) == "-0.50"


def test_decimal_gigabytes_binary_units_and_counts() -> None:
    """GB only where a source gives it; counts take decimal prefixes."""
    assert format_gb(18_656_263_168) == "18.66"
    assert format_gb(1) == "<0.01"
    assert format_bytes(17_039_360) == "16.25 MiB"
    assert format_bytes(511) == "511 B"
    assert format_count(6_738_415_616) == "6.74 B"
    assert format_count(None) == "-"
