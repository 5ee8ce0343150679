"""The table of workspaces: its rules, the libraries' workspaces, and what is not modelled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafa_prof.simulate.kernels.workspaces import (
    CUBLAS_OPERATORS,
    OUTPUTS,
    UNMODELLED,
    DeviceTraits,
    KernelCall,
    LtWorkspace,
    Workspace,
    cublas_workspace_bytes,
    cublaslt_workspace,
    cublaslt_workspace_bytes,
    kernel_workspaces,
    register,
    registered_operators,
    unmodelled_in,
    uses_cublaslt,
)

H100 = DeviceTraits((9, 0), 132)
MIB = 2**20


def call_of(name: str, *args: Any, outputs: tuple[torch.Tensor, ...] = (), **kwargs: Any) -> KernelCall:
    return KernelCall(name, args, kwargs, outputs, H100)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# ---- the registry ----------------------------------------------------------------------------------------------------


def test_an_operator_without_a_formula_has_no_workspaces() -> None:
    """Most operators allocate nothing but their outputs."""
    assert kernel_workspaces(call_of("aten.mul.Tensor", meta(2), meta(2))) == []


def test_registering_a_name_twice_is_an_error() -> None:
    """Two formulas for one operator would contradict each other."""
    with pytest.raises(ValueError, match=r"formula of aten\.mm\.default is registered already"):
        register("aten.mm.default")(lambda call: [])


@pytest.mark.parametrize("name", sorted(registered_operators()))
def test_every_registered_name_is_an_operator(name: str) -> None:
    """A name that PyTorch does not know would never be looked up; other libraries' names are theirs."""
    namespace, operator, overload = name.split(".")
    if namespace == "bitsandbytes":
        pytest.importorskip("bitsandbytes")
    packet = getattr(getattr(torch.ops, namespace), operator)
    assert str(getattr(packet, overload)) == name


def test_arguments_are_found_by_position_and_by_name() -> None:
    """The dispatch mode passes on what the caller wrote, either way."""
    call = call_of("aten.sum.dim_IntList", "tensor", dim=[0])
    assert (call.argument(0, "self"), call.argument(1, "dim"), call.argument(2, "keepdim", False)) == (
        "tensor",
        [0],
        False,
    )


def test_what_is_freed_early_names_what_comes_later() -> None:
    """`freed_before` is the name of a later workspace of the same call, or the outputs."""
    indices = torch.empty(4096, dtype=torch.int64, device="meta")
    grad = meta(4096, 64)
    call = call_of("aten.embedding_dense_backward.default", grad, indices, 1000, -1, False, outputs=(meta(1000, 64),))
    workspaces = kernel_workspaces(call)
    names = [workspace.name for workspace in workspaces]
    assert len(set(names)) == len(names)
    for index, workspace in enumerate(workspaces):
        assert workspace.freed_before in (None, OUTPUTS, *names[index + 1 :])


@pytest.mark.parametrize(
    ("capability", "threads"),
    [((7, 0), 2048), ((7, 5), 1024), ((8, 0), 2048), ((8, 6), 1536), ((8, 9), 1536), ((9, 0), 2048), ((10, 0), 2048),
     ((12, 0), 1536), (None, 2048)],
)  # fmt: skip
def test_threads_of_a_multiprocessor(capability: tuple[int, int] | None, threads: int) -> None:
    """NVIDIA's table by compute capability; an unknown card counts as 8.0."""
    assert DeviceTraits(capability, None).max_threads_per_multiprocessor == threads


# ---- cuBLAS and cuBLASLt ---------------------------------------------------------------------------------------------

#: Two buffers of 4096 KiB and eight of 16 KiB.
SMALL = 8_519_680


@pytest.mark.parametrize(
    ("capability", "release", "expected"),
    [
        ((8, 0), "2.13.0", SMALL),
        ((8, 9), "2.13.0+cu130", SMALL),
        ((9, 0), "2.13.0", 32 * MIB),
        ((10, 0), "2.13.0", 32 * MIB),
        ((12, 0), "2.13.0", 32 * MIB),
        ((11, 0), "2.13.0", SMALL),
        ((9, 0), "2.4.1", 32 * MIB),
        ((10, 0), "2.9.0", SMALL),
        ((12, 0), "2.11.0", SMALL),
        (None, "2.13.0", SMALL),
    ],
)
def test_cublas_workspace(capability: tuple[int, int] | None, release: str, expected: int) -> None:
    """32 MiB on Hopper, since 2.12 on Blackwell too, 8.1 MiB on everything else."""
    assert cublas_workspace_bytes(capability, release) == expected


def test_cublaslt_workspace_by_release() -> None:
    """A fresh MiB in every call, then one kept for each thread, then cuBLAS's own."""
    places = {
        release: cublaslt_workspace(release) for release in ("2.4.0", "2.8.0", "2.9.1", "2.10.0", "2.11.0", "2.13.0")
    }
    assert places == {
        "2.4.0": LtWorkspace.EACH_CALL,
        "2.8.0": LtWorkspace.EACH_CALL,
        "2.9.1": LtWorkspace.OWN,
        "2.10.0": LtWorkspace.OWN,
        "2.11.0": LtWorkspace.SHARED,
        "2.13.0": LtWorkspace.SHARED,
    }
    assert cublaslt_workspace_bytes((9, 0), "2.8.0") == 1 * MIB
    assert cublaslt_workspace_bytes((9, 0), "2.13.0") == 32 * MIB


def test_a_version_that_is_none_is_refused() -> None:
    """A figure for an unknown release would be a guess."""
    with pytest.raises(ValueError, match="not a release of PyTorch: 'main'"):
        cublas_workspace_bytes((9, 0), "main")


@pytest.mark.parametrize(
    ("bias", "first", "second", "options", "expected"),
    [
        (meta(8), meta(4, 16), meta(16, 8), {}, True),  # a linear layer with bias
        (meta(1, 8), meta(4, 16), meta(16, 8), {}, True),  # one row
        (meta(4, 8), meta(4, 16), meta(16, 8), {}, False),  # a whole matrix is copied, then added to
        (meta(8), meta(4, 16), meta(16, 8), {"beta": 0.5}, False),
        (meta(1), meta(4, 16), meta(16, 1), {}, False),  # one column is refused by the library
        (meta(8, dtype=torch.int8), meta(4, 16, dtype=torch.int8), meta(16, 8, dtype=torch.int8), {}, False),
    ],
)  # fmt: skip
def test_which_products_run_in_cublaslt(
    bias: torch.Tensor, first: torch.Tensor, second: torch.Tensor, options: dict[str, Any], expected: bool
) -> None:
    """`addmm` with a row for a bias has it added in the epilogue; everything else is cuBLAS's."""
    assert uses_cublaslt(call_of("aten.addmm.default", bias, first, second, **options)) is expected


def test_only_addmm_may_run_in_cublaslt() -> None:
    """A plain product takes the cuBLAS handle."""
    assert not uses_cublaslt(call_of("aten.mm.default", meta(4, 16), meta(16, 8)))
    assert {"aten.mm.default", "aten.bmm.default", "aten.addmm.default", "aten.baddbmm.default"} <= CUBLAS_OPERATORS


# ---- what is not modelled --------------------------------------------------------------------------------------------


def test_only_what_ran_is_reported_as_not_modelled() -> None:
    """A prediction lists the gaps that its own trace meets."""
    found = unmodelled_in(["aten.mm.default", "aten._linalg_svd.default", "aten._linalg_svd.default"])
    assert list(found) == ["aten._linalg_svd.default"]
    assert "cuSOLVER" in found["aten._linalg_svd.default"]


@pytest.mark.parametrize("name", [name for name in sorted(UNMODELLED) if name.startswith("aten.")])
def test_every_gap_names_an_operator(name: str) -> None:
    """A misspelt operator would hide its gap."""
    _, operator, overload = name.split(".")
    assert str(getattr(getattr(torch.ops.aten, operator), overload)) == name


def test_cudnn_attention_is_a_gap_and_has_no_invented_size() -> None:
    """Its workspace is the library's secret."""
    call = call_of("aten._scaled_dot_product_cudnn_attention.default", *(meta(1, 2, 128, 64) for _ in range(3)))
    assert kernel_workspaces(call) == []
    assert call.name in UNMODELLED


# ---- products --------------------------------------------------------------------------------------------------------


def test_matrices_that_cublas_reads_are_not_cloned() -> None:
    """Rows or columns that are dense will do: a transposed weight, some columns of a wider matrix."""
    weight, inputs = meta(8, 16), meta(4, 32)[:, :16]
    assert kernel_workspaces(call_of("aten.mm.default", inputs, weight.t())) == []


def test_an_expanded_matrix_is_cloned() -> None:
    """The gradient of a sum has strides of 0; 4 x 8 elements of two bytes."""
    expanded = meta(1, 8).expand(4, 8)
    assert kernel_workspaces(call_of("aten.mm.default", expanded, meta(8, 2))) == [Workspace("first matrix", 64, True)]


def test_every_second_column_is_cloned_and_the_second_matrix_first() -> None:
    """The kernel computes the transposed product: it prepares the second matrix before the first."""
    first, second = meta(3, 10, dtype=torch.float32)[:, ::2], meta(5, 14, dtype=torch.float32)[:, ::2]
    assert kernel_workspaces(call_of("aten.addmm.default", meta(7), first, second)) == [
        Workspace("second matrix", 5 * 7 * 4, True),
        Workspace("first matrix", 3 * 5 * 4, True),
    ]


def test_batches_are_cloned_by_the_same_rule() -> None:
    """[2, 3, 4] of every second column is cloned, an expanded batch of whole matrices is not."""
    stepped, repeated = meta(2, 3, 8)[:, :, ::2], meta(1, 4, 5).expand(2, 4, 5)
    assert kernel_workspaces(call_of("aten.bmm.default", stepped, repeated)) == [Workspace("first batch", 48, True)]


def test_a_batch_of_columns_is_not_cloned() -> None:
    """With one column the product is column-major as well as row-major."""
    assert kernel_workspaces(call_of("aten.bmm.default", meta(2, 3, 4), meta(2, 4, 1))) == []
