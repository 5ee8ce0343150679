"""What holds for every test: nothing is downloaded, output looks the same everywhere, a run can be repeated."""

from __future__ import annotations

import os
import signal
import socket
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

# Before any library reads them, and inherited by the processes that tests start.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    "NO_COLOR": "1",
    # rich takes these two for the terminal's size, but only when it is given both.
    "COLUMNS": "120",
    "LINES": "50",
}
for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)

# A shell's background job ignores SIGINT, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, and no time limit on one: the machine may be busy. To look for new examples:
# pytest --hypothesis-profile explore
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("repeatable")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked gpu where there is no CUDA device; torch is imported only if such a test comes up."""
    if item.get_closest_marker("gpu"):
        torch = pytest.importorskip("torch")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old driver warns, and means no
            available = torch.cuda.is_available()
        if not available:
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Refuse connections that leave this machine, so that a test which would download fails everywhere."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        inet = self.family in (socket.AF_INET, socket.AF_INET6)
        if inet and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests do not use the network, but this one asked for {address[0]}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_only)
        yield


@pytest.fixture(autouse=True)
def _nothing_looks_at_torch_afterwards() -> Iterator[None]:
    """Hold every test to what an observer of training loops promises: torch is given back as it was."""
    yield
    waiting = [finder for finder in sys.meta_path if type(finder).__module__.startswith("lorafa_prof")]
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in waiting]  # so that one test alone fails
    assert not waiting, "something still waits for an import"
    if "torch.optim.optimizer" not in sys.modules:
        return
    import torch

    optimizer = sys.modules["torch.optim.optimizer"]
    assert not optimizer._global_optimizer_pre_hooks, "a hook of optimizers was left"
    assert not optimizer._global_optimizer_post_hooks, "a hook of optimizers was left"
    assert torch.nn.Module.__call__.__name__ == "_wrapped_call_impl", "calls of modules are still watched"
    assert not hasattr(torch.nn.Module.__call__, "__wrapped__"), "calls of modules are still watched"
    assert not hasattr(torch.autograd.backward, "__wrapped__"), "the backward is still watched"
