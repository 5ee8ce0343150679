"""The choice of the attention kernel: its order, and the reason against each kernel that cannot run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lorafa_prof.simulate.kernels.attention_choice import AttentionCall, choose_sdpa_kernel, kernel_order, why_not
from lorafa_prof.simulate.kernels.choices import Choices
from lorafa_prof.simulate.kernels.cuda import cuda_on_meta
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
A100 = DeviceTraits((8, 0), 108)
RTX3090 = DeviceTraits((8, 6), 82)
H100 = DeviceTraits((9, 0), 132)
T4 = DeviceTraits((7, 5), 40)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def tensor(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def call(
    *, heads: int = 4, key_heads: int = 4, queries: int = 64, keys: int = 64, width: int = 64,
    dtype: torch.dtype = BF16, device: DeviceTraits = A100, **more: Any,
) -> AttentionCall:  # fmt: skip
    key = tensor(2, key_heads, keys, width, dtype=dtype)
    query = tensor(2, heads, queries, width, dtype=dtype)
    return AttentionCall(**{"query": query, "key": key, "value": key, "device": device, **more})


MASK = tensor(2, 1, 64, 64, dtype=torch.bool)


# ---- the order -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "cudnn", "first"),
    [
        ((9, 0), 92000, "cudnn"),
        ((10, 0), 92000, "cudnn"),
        ((9, 0), 91500, "flash"),
        ((9, 0), 0, "flash"),
        ((8, 0), 92000, "flash"),
        ((12, 0), 92000, "flash"),
    ],
)
def test_cudnn_comes_first_on_hopper_and_blackwells_large_cards(
    capability: tuple[int, int], cudnn: int, first: str
) -> None:
    """From cuDNN 9.15.1 on, with compute capability 9.x and 10.x."""
    asked = call(device=DeviceTraits(capability, None), cudnn_version=cudnn)
    assert kernel_order(asked)[0] == first
    assert choose_sdpa_kernel(asked) == first


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "flash"),
        ({"is_causal": True}, "flash"),
        ({"dropout_p": 0.1}, "flash"),
        ({"mask": MASK}, "efficient"),
        ({"dtype": FP32}, "efficient"),
        ({"is_causal": True, "keys": 128}, "efficient"),
        ({"key_heads": 2, "enable_gqa": True}, "flash"),
        ({"key_heads": 2, "enable_gqa": True, "mask": MASK}, "math"),
        ({"key_heads": 2}, "math"),
        ({"dtype": torch.float64}, "math"),
        ({"width": 264}, "efficient"),
        ({"width": 60}, "flash"),
        ({"width": 60, "mask": MASK}, "math"),
        ({"device": T4}, "math"),
        ({"device": T4, "dtype": FP16}, "efficient"),
        ({"device": T4, "dtype": FP32, "width": 63}, "efficient"),
        ({"device": H100, "mask": MASK}, "cudnn"),
        ({"device": H100, "mask": MASK, "key_heads": 2, "enable_gqa": True}, "cudnn"),
        ({"device": H100, "dtype": FP32}, "efficient"),
        ({"device": H100, "dropout_p": 0.1}, "flash"),
        ({"device": H100, "dropout_p": 0.125}, "cudnn"),
        ({"device": H100, "width": 256}, "flash"),
        ({"device": RTX3090, "width": 256, "needs_grad": True}, "flash"),
        ({"device": RTX3090, "width": 256, "needs_grad": True, "dropout_p": 0.1}, "efficient"),
        ({"device": RTX3090, "width": 200, "needs_grad": True}, "efficient"),
        ({"device": RTX3090, "width": 200}, "flash"),
        ({"device": A100, "width": 200, "needs_grad": True}, "flash"),
    ],
)
def test_the_kernel_that_runs(options: dict[str, Any], expected: str) -> None:
    """The first in the order that has nothing against the call."""
    assert choose_sdpa_kernel(call(**options)) == expected


# ---- reasons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mask": MASK}, "it takes no mask"),
        ({"width": 264}, "heads are 264 wide, more than 256"),
        ({"value": tensor(2, 4, 64, 32)}, "heads of query, key and value differ in width: [64, 64, 32]"),
        ({"device": T4, "dtype": FP16}, "compute capability 7.5 is not from 8.0 to 12.1"),
        (
            {"device": RTX3090, "width": 200, "needs_grad": True},
            "its backward takes no heads 200 wide on compute capability 8.6",
        ),
        (
            {"device": DeviceTraits((12, 0), 170), "width": 256, "needs_grad": True, "dropout_p": 0.1},
            "its backward takes no heads 256 wide on compute capability 12.0 with dropout",
        ),
        ({"is_causal": True, "keys": 128}, "its causal mask needs as many queries as keys, not 64 and 128"),
        ({"dtype": FP32}, "query, key and value are float32, not all of one of float16, bfloat16"),
        ({"value": tensor(1, 4, 64, 64)}, "query, key and value differ in batch size"),
        ({"key_heads": 2}, "it takes no grouped heads: 4 for queries, 2 for keys, 2 for values"),
        ({"key_heads": 3, "enable_gqa": True}, "3 key heads do not divide 4 query heads"),
        ({"value": tensor(2, 2, 64, 64), "enable_gqa": True}, "keys and values need as many heads, not 4 and 2"),
        ({"keys": 0}, "there are no queries or no keys"),
        (
            {"query": tensor(2, 4, 64, 64).transpose(2, 3)},
            "the last dimension of query, key and value needs stride 1",
        ),
        ({"query": tensor(4, 64, 64)}, "query, key and value need four dimensions"),
    ],
)
def test_why_not_flash(options: dict[str, Any], reason: str) -> None:
    """The first condition that the call does not meet, in words."""
    assert why_not("flash", call(**options)) == reason


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"width": 60}, "widths of heads must be multiples of 8, not 60 and 60"),
        ({"dtype": FP32, "width": 62}, "widths of heads must be multiples of 4, not 62 and 62"),
        (
            {"key_heads": 2, "enable_gqa": True},
            "it takes no grouped heads: 4 for queries, 2 for keys, 2 for values",
        ),
        ({"device": T4}, "query, key and value are bfloat16, not all of one of float16, float32"),
        ({"device": DeviceTraits((13, 0), None)}, "compute capability 13.0 is not from 5.0 to 12.1"),
        (
            {"query": tensor(2 * 4 * 64 * 64 + 4)[4:].view(2, 4, 64, 64)},
            "query, key and value must begin at multiples of 8 elements",
        ),
        (
            {"mask": tensor(2, 1, 64, 64).transpose(2, 3)},
            "the last dimension of the mask needs stride 1",
        ),
    ],
)
def test_why_not_efficient(options: dict[str, Any], reason: str) -> None:
    """Rows of 16 bytes, no grouped heads, no bfloat16 before Ampere."""
    assert why_not("efficient", call(**options)) == reason


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cudnn_version": 0}, "it needs cuDNN 9, not none"),
        ({"cudnn_version": 91200, "dropout_p": 0.125}, "cuDNN 9.11 to 9.13 take no dropout"),
        ({"dropout_p": 0.1}, "dropout must be a multiple of 1/16"),
        ({"width": 136}, "heads may be at most 128 wide, not 136 and 136"),
        ({"width": 60}, "widths of heads must be multiples of 8, not 60 and 60"),
        ({"keys": 1}, "it takes no single key"),
        ({"queries": 1, "dropout_p": 0.5}, "it takes no single query with dropout"),
        (
            {"mask": tensor(2, 64, 64)},
            "a mask of shape (2, 64, 64) is neither (64, 64) nor (2, 4, 64, 64), with sizes of 1 allowed",
        ),
        (
            {"width": 200, "cudnn_version": 92300, "needs_grad": True},
            "its backward takes no heads 200 and 200 wide",
        ),
    ],
)
def test_why_not_cudnn(options: dict[str, Any], reason: str) -> None:
    """The library's version, sixteenths of dropout, widths, single positions."""
    assert why_not("cudnn", call(device=H100, **options)) == reason


@pytest.mark.parametrize(("width", "version"), [(128, 92000), (256, 92300)])
def test_how_wide_heads_may_be_for_cudnn(width: int, version: int) -> None:
    """Above 9.22.0 up to 256 on Hopper, with a backward for 256 and 256."""
    assert why_not("cudnn", call(device=H100, width=width, cudnn_version=version, needs_grad=True)) is None


def test_latent_attention_is_as_wide_as_cudnn_takes() -> None:
    """192 for queries and keys with 128 for values, as DeepSeek's, since cuDNN 9.11."""
    wide, narrow = tensor(2, 4, 64, 192), tensor(2, 4, 64, 128)
    asked = call(query=wide, key=wide, value=narrow, device=H100, needs_grad=True)
    assert why_not("cudnn", asked) is None
    assert why_not("flash", asked) == "heads of query, key and value differ in width: [192, 192, 128]"


@pytest.mark.usefixtures("deterministic")
def test_cudnn_is_not_deterministic() -> None:
    """Where determinism is asked for it steps aside."""
    assert why_not("cudnn", call(device=H100)) == "it is not deterministic"
    assert choose_sdpa_kernel(call(device=H100)) == "flash"


def test_math_can_always_run() -> None:
    """It is composed of plain operators."""
    assert why_not("math", call(dtype=torch.float64, heads=3, key_heads=1, mask=MASK)) is None


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_dropout_within_the_unfused_path_is_cudas(dropout_p: float) -> None:
    """CUDA fuses it, with a mask of one byte an element; elsewhere its noise is as wide as its input, as on the CPU
    (`is_fused_kernel_acceptable` in ATen's Dropout.cpp). Nothing of it is left once the step is over.
    """
    query = tensor(2, 8, 64, 64, dtype=FP32).requires_grad_()
    key = tensor(2, 2, 64, 64, dtype=FP32).requires_grad_()  # grouped heads in fp32: no fused kernel takes them

    def attended() -> list[torch.dtype]:
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            torch.nn.functional.scaled_dot_product_attention(
                query, key, key, dropout_p=dropout_p, enable_gqa=True
            ).sum().backward()
        return [t.dtype for t in saved if t.shape == (2, 8, 64, 64)]

    with cuda_on_meta(A100, Choices()):
        assert attended().count(torch.bool) == (1 if dropout_p else 0)
    assert torch.bool not in attended()
