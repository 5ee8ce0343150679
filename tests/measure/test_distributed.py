"""Two processes that take steps together, over gloo on the CPU."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafa_prof.analytic import predict
from lorafa_prof.catalog import spec_from_config
from lorafa_prof.cli import main
from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.ledger import Category
from lorafa_prof.measure.communication import found_by_size
from lorafa_prof.measure.names import Name
from lorafa_prof.measure.trace import BaseBlock
from lorafa_prof.results import Measurement
from lorafa_prof.sharding import sent_bytes
from lorafa_prof.simulate.on_cpu import predict_on_cpu
from lorafa_prof.specs import ITEMSIZE, RunSpec
from lorafa_prof.workload import Workload
from lorafa_prof.workload.models import batch
from lorafa_prof.workload.parallel import Group, refuse_in_group
from lorafa_prof.workload.step import build_model
from tests.measure.ranks import DEEDS, FOUR, RUNS, SIMULATED, STEPS, run_of, whole

ROOT = Path(__file__).resolve().parents[2]
#: Seconds; without other load it takes ten.
LONGEST = 900


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks of all deeds have left their answers."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.measure.ranks", str(folder)]
    with subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True) as process:
        try:
            assert process.wait(LONGEST) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return folder


@pytest.fixture(scope="module")
def ended(folder: Path) -> dict[str, Any]:
    """What rank 0 wrote after each deed."""
    codes = json.loads((folder / "ended.json").read_text())
    assert {name: code for name, code in codes.items() if code} == {"die-1-1": -9}, _errors(folder)
    return {deed: json.loads((folder / f"{deed}.json").read_text()) for deed in DEEDS}


def _errors(folder: Path) -> str:
    return "\n".join(f"{path.name}: {path.read_text()[-3000:]}" for path in sorted(folder.glob("*.err")))


@pytest.fixture
def seen(ended: dict[str, Any]) -> dict[str, list[Measurement]]:
    return {name: [Measurement.from_json(m) for m in d["measurements"]] for name, d in ended["measure"].items()}


@pytest.mark.parametrize("name", RUNS)
def test_one_file_has_all_ranks_and_parts_that_sum_to_the_peak_of_each(
    seen: dict[str, list[Measurement]], name: str
) -> None:
    """Every byte at the peak of every rank has a part, and both ranks were measured whole."""
    assert [(m.rank, m.world_size, m.outcome) for m in seen[name]] == [(0, 2, "ok"), (1, 2, "ok")]
    for m in seen[name]:
        assert m.run == RUNS[name]
        assert m.ledger is not None
        assert m.memory is not None
        assert len(m.steps) == 2
        assert m.ledger.total() == m.memory.peak_allocated_bytes == sum(i.nbytes for i in m.ledger.items)
        assert m.throughput.model_flops == seen[name][0].throughput.model_flops


@pytest.mark.parametrize("name", RUNS)
def test_parameters_are_those_of_the_whole_model(seen: dict[str, list[Measurement]], name: str) -> None:
    parameters = list(build_model(RUNS[name].replace(gpus=1, shard="none"), "meta").parameters())
    counted = {
        "total": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
    }
    assert [m.parameters for m in seen[name]] == [counted, counted]


@pytest.mark.parametrize(("deed", "name"), [*(("measure", name) for name in RUNS), *(("four", name) for name in FOUR)])
def test_the_simulated_rank_has_the_same_bytes(ended: dict[str, Any], deed: str, name: str) -> None:
    """The first of two and of four real ranks, under torch's profiler: each part, each phase and the peak, to the byte.

    Later ranks have the same, or less where the rows of a table cannot be shared evenly.
    """
    run = RUNS[name] if deed == "measure" else FOUR[name]
    real = [Measurement.from_json(m).memory for m in ended[deed][name]["measurements"]]
    simulated = predict_on_cpu(run, threads=1).memory
    assert simulated == real[0]
    assert len(real) == run.gpus
    assert all(m is not None and m.peak_allocated_bytes <= simulated.peak_allocated_bytes for m in real)


@pytest.mark.parametrize(("deed", "name"), [*(("sent", name) for name in RUNS), *(("sent by four", n) for n in FOUR)])
def test_ranks_send_what_both_engines_say(ended: dict[str, Any], deed: str, name: str) -> None:
    """Every collective of a later step of real ranks, seen where torch dispatches it: by kind, to the byte."""
    run = RUNS[name] if deed == "sent" else FOUR[name]
    sent = sent_bytes([(kind, nbytes) for kind, nbytes in ended[deed][name]], run.gpus)
    assert predict_on_cpu(run, threads=1).communication_bytes == sent
    if name in SIMULATED:
        with pytest.raises(UnsupportedError, match="no closed form"):
            predict(catalogued(run))
    else:
        assert predict(catalogued(run)).communication_bytes == sent


def catalogued(run: RunSpec) -> RunSpec:
    """The run, its model read as the catalog reads it; closed forms have no unfused attention in fp32."""
    return run.replace(model=spec_from_config(run.model.name, run.model.config), attn="eager")


def unrounded(prediction: Any, category: Category, but: str = "-") -> int:
    """Bytes of a part at the peak of a closed form, before each tensor is rounded up to what the allocator gives."""
    items = [i for i in prediction.ledger.items if i.category is category and not i.tensor.startswith(but)]
    return sum(math.prod(map(int, re.findall(r"\d+", i.shape))) * ITEMSIZE[i.dtype] * i.count for i in items)


@pytest.mark.parametrize(
    ("deed", "name"),
    [*(("measure", name) for name in RUNS if name not in SIMULATED), *(("four", name) for name in FOUR)],
)
def test_closed_forms_have_what_the_first_rank_holds(ended: dict[str, Any], deed: str, name: str) -> None:
    """Weights, adapters and optimizer states of a real rank, to the byte; gradients but for rounding to 512 bytes."""
    run = RUNS[name] if deed == "measure" else FOUR[name]
    real = Measurement.from_json(ended[deed][name]["measurements"][0])
    assert real.memory is not None
    found = predict(catalogued(run))
    assert unrounded(found, Category.WEIGHTS) == real.memory.weights_bytes
    assert unrounded(found, Category.ADAPTERS) == real.memory.adapter_bytes
    trained = sum(p.requires_grad for p in build_model(run.replace(gpus=1, shard="none"), "meta").parameters())
    # on the device of the rank, where that is a CPU
    counters = 4 * trained if run.resolved_optimizer in ("adamw", "lorafa") else 0
    assert unrounded(found, Category.OPTIMIZER) == real.memory.optimizer_bytes - counters
    assert 0 <= found.memory.trained_gradients_bytes - real.memory.trained_gradients_bytes < 512 * trained


def whole_and_half(name: str) -> tuple[int, int]:
    """Bytes of the weights (adapters too), whole, and as FSDP2 shards them: half of the rows, rounded up."""
    model = build_model(RUNS[name].replace(gpus=1, shard="none"), "meta")
    buffers = sum(b.numel() * b.itemsize for b in model.buffers())
    parameters = list(model.parameters())
    rows = [(p.shape[0], math.prod(p.shape[1:]) * p.itemsize) for p in parameters]
    return buffers + sum(n * size for n, size in rows), buffers + sum(-(-n // 2) * size for n, size in rows)


@pytest.mark.parametrize("name", RUNS)
def test_weights_are_whole_under_ddp_and_halved_under_fsdp(seen: dict[str, list[Measurement]], name: str) -> None:
    """A rank keeps half of each parameter's rows, an odd number padded; buffers stay whole."""
    all_of_it, half = whole_and_half(name)
    for m in seen[name]:
        assert m.memory is not None
        found = (m.memory.weights_bytes or 0) + (m.memory.adapter_bytes or 0)
        if "frozen" in name:
            assert half < found < all_of_it
        else:
            assert found == (half if "fsdp" in name else all_of_it)


def test_what_ranks_communicate_in_is_named(seen: dict[str, list[Measurement]]) -> None:
    """DDP keeps every gradient once more, in buckets; FSDP2 has the gathered weights of the root and of one block."""
    for name in ("ddp full", "ddp lora"):
        for m in seen[name]:
            assert m.ledger is not None
            assert m.memory is not None
            buckets = sum(i.nbytes for i in m.ledger.items if i.tensor == "DDP bucket")
            assert buckets == m.parameters["trainable"] * 4 == m.memory.workspace_bytes
    for m in seen["fsdp full"]:
        assert m.ledger is not None
        gathered = {(i.module, i.tensor): i for i in m.ledger.items if "gather" in i.tensor}
        assert gathered["lm_head", "gathered weight"].nbytes == 252 * 48 * 4
        assert all(i.category is Category.WORKSPACES for i in gathered.values())


def test_the_wrapper_leaves_no_trace_in_names(seen: dict[str, list[Measurement]]) -> None:
    for measurements in seen.values():
        for m in measurements:
            assert m.ledger is not None
            modules = {i.module for i in m.ledger.items} | {s.module for s in m.timeline}
            assert not {x for x in modules if x.startswith(("module", "base_model", "FSDP", "Distributed"))}


def test_ranks_stay_alike_and_learn_what_one_process_learns(ended: dict[str, Any]) -> None:
    """Weights are the same on both ranks; losses, weights and gradients those of one process with both batches."""
    run = run_of("none", "full", gpus=1)
    work = Workload.build(run, "cpu")
    batches = [batch(run, "cpu", part) for part in range(2)]
    losses: list[list[float]] = [[], []]
    for _ in range(STEPS):
        _both_batches(work, batches, losses)
        work.optimizer.step()
        work.optimizer.zero_grad(set_to_none=True)
    _both_batches(work, batches, losses)
    for ranks in ended["train"].values():
        assert ranks[0]["weights"] == ranks[1]["weights"]
        assert ranks[0]["gradients"] == ranks[1]["gradients"]
        for rank in range(2):
            assert ranks[rank]["losses"] == pytest.approx(losses[rank][:STEPS], rel=1e-5)
        for name, p in work.model.named_parameters():
            torch.testing.assert_close(
                torch.tensor(ranks[0]["weights"][name]), torch.tensor(whole(p)), rtol=0, atol=1e-5
            )
            torch.testing.assert_close(
                torch.tensor(ranks[0]["gradients"][name]), torch.tensor(whole(p.grad)), rtol=1e-2, atol=1e-5
            )


def _both_batches(work: Workload, batches: list[dict[str, torch.Tensor]], losses: list[list[float]]) -> None:
    for rank, data in enumerate(batches):
        loss = work.model(**data).loss
        losses[rank].append(float(loss.detach()))
        (loss / 2).backward()


def test_a_rank_that_runs_out_of_memory_is_on_record_and_holds_nobody_up(ended: dict[str, Any]) -> None:
    first, second = (Measurement.from_json(m) for m in ended["full-1"]["measurements"])
    assert (second.rank, second.outcome, len(second.steps)) == (1, "oom", 1)
    assert "out of memory" in str(second.error)
    assert (first.outcome, first.error) == ("error", "stopped: rank 1 has failed")
    assert first.parameters == second.parameters is not None


def test_a_fault_of_the_rank_that_writes_is_on_record(ended: dict[str, Any]) -> None:
    first, second = (Measurement.from_json(m) for m in ended["fail-0"]["measurements"])
    assert first.outcome == "error"
    assert "RuntimeError: a fault" in str(first.error)
    assert (second.rank, second.outcome, second.error) == (1, "error", "stopped: rank 0 has failed")


def test_a_rank_that_is_killed_is_missed(ended: dict[str, Any]) -> None:
    first, second = (Measurement.from_json(m) for m in ended["die-1"]["measurements"])
    assert first.outcome == "error"
    assert first.parameters is not None
    assert (second.rank, second.world_size, second.outcome) == (1, 2, "killed")


def test_when_time_is_over_all_ranks_end(ended: dict[str, Any]) -> None:
    """Rank 0 waits in a collective, rank 1 does not come; both keep what was observed."""
    first, second = (Measurement.from_json(m) for m in ended["hang-1"]["measurements"])
    assert first.outcome == second.outcome == "timeout"
    assert first.error == "not done within the time that was given"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"shard": "zero3"}, UnsupportedError, "--shard fsdp"),
        ({"shard": "none"}, BadInputError, "--shard ddp or fsdp"),
        ({"shard": "fsdp", "gpus": 4}, BadInputError, "--gpus 4 .* 2 processes"),
        ({"shard": "fsdp", "quant": "nf4"}, UnsupportedError, "--shard ddp"),
        ({"shard": "fsdp", "optimizer": "adamw-8bit"}, UnsupportedError, "--optimizer adamw"),
        ({"shard": "fsdp", "method": "lora-fa-peft"}, UnsupportedError, "LoRA-FA optimizer"),
    ],
)
def test_what_cannot_be_done_together_is_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        refuse_in_group(run_of(**{"method": "lora", "shard": "ddp", **options}), Group(rank=0, world_size=2))


def test_without_a_group_several_gpus_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="several GPUs"):
        Workload.build(run_of("fsdp", "lora"), "meta")


def test_buckets_are_found_among_nameless_blocks_by_their_size() -> None:
    """A block that has a name is none; two buckets of one size are two blocks."""
    bucket = Name(Category.WORKSPACES, "", "DDP bucket", (256,), "float32", 1024)
    base = {number * 4096: BaseBlock(1024, 1024) for number in (1, 2, 3)} | {4 * 4096: BaseBlock(512, 512)}
    assert found_by_size([bucket, bucket], {4096: bucket}, base) == {2 * 4096: bucket, 3 * 4096: bucket}
    assert found_by_size([bucket], {}, {4096: BaseBlock(512, 512)}) == {}


def test_the_command_under_torchrun_speaks_with_one_voice(ended: dict[str, Any], folder: Path) -> None:
    """Rank 0 writes the file and tells how it went; the other one is silent."""
    assert (folder / "command-0.out").read_text() == (folder / "command-1.out").read_text() == ""
    said = (folder / "command-0.err").read_text()
    assert "rank 0: ok" in said
    assert "rank 1: ok" in said
    assert "lorafa-prof:" not in (folder / "command-1.err").read_text()
    ranks = [(m["rank"], m["outcome"], m["environment"]["options"]["steps"]) for m in ended["command"]["measurements"]]
    assert ranks == [(0, "ok", 1), (1, "ok", 1)]


def test_under_torchrun_one_configuration_is_measured_and_one_rank_complains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["measure", "--model", "llama2-7b", "--bs", "1,2", "--device", "cpu"]
    for rank, code, complaint in (("0", 2, True), ("1", 0, False)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main(command) == code
        assert ("one configuration" in capsys.readouterr().err) is complaint
