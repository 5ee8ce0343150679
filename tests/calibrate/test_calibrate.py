"""calibrate: what it makes of times, on a device that only pretends, and on this machine's CPU."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lorafa_prof.calibrate import measuring
from lorafa_prof.calibrate.bench import CpuBench
from lorafa_prof.calibrate.kernels import Deadline, bandwidth_curve, copies, products, sustained
from lorafa_prof.cli.calibrate import command
from lorafa_prof.cli.program import main
from lorafa_prof.errors import BadInputError
from lorafa_prof.speed.profile_file import read_profile
from lorafa_prof.speed.rates import Rates
from lorafa_prof.speed.work import MatrixProduct
from tests.speed.made import product


class Clock:
    """A clock that goes on by what it is told."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Pretended:
    """A device on which every run takes as long as it says."""

    torch_name = "cpu"

    def __init__(self, seconds: float) -> None:
        self.takes, self.runs = seconds, 0

    def seconds(self, run: Callable[[], object], limit_s: float) -> float:
        del limit_s
        run()
        self.runs += 1
        return self.takes

    def kernel_seconds(self) -> float:
        return 0.0


class TestDeadline:
    """Time is shared by what is left to do."""

    def test_each_has_its_share_of_what_is_left(self) -> None:
        """Ten seconds for four, of which the first takes four."""
        clock = Clock()
        shares = []
        for item, limit in Deadline(10.0, clock).share("abcd"):
            shares.append((item, limit))
            clock.now += 4.0 if item == "a" else 1.0
        assert shares == [("a", 2.5), ("b", 2.0), ("c", 2.5), ("d", 4.0)]

    def test_the_first_has_its_turn_though_no_time_is_left(self) -> None:
        """A profile needs one figure of each kind."""
        assert [item for item, _ in Deadline(0.0, Clock(1.0)).share("abc")] == ["a"]


class TestCpuBench:
    """Medians, by a clock that is passed in."""

    def test_a_long_run_is_taken_as_it_is(self) -> None:
        """Once is enough where once is all there is time for."""
        clock = Clock()

        def run() -> None:
            clock.now += 3.0

        assert CpuBench(clock).seconds(run, limit_s=1.0) == 3.0

    def test_the_median_of_several(self) -> None:
        """One that was disturbed does not count."""
        clock, takes = Clock(), iter([0.01, 0.01, 0.5, 0.01, 0.01, 0.01, *[0.01] * 100])

        def run() -> None:
            clock.now += next(takes)

        assert CpuBench(clock).seconds(run, limit_s=1.0) == pytest.approx(0.01)

    def test_short_runs_are_timed_together(self) -> None:
        """1 us each: 200 at a time, so that the clock does not count."""
        clock, runs = Clock(), []

        def run() -> None:
            clock.now += 1e-6
            runs.append(1)

        assert CpuBench(clock).seconds(run, limit_s=1.0) == pytest.approx(1e-6)
        assert len(runs) > 5 * 199


class TestFigures:
    """Rates from times."""

    def test_bandwidth_is_without_what_an_operation_takes_without_work(self) -> None:
        """1 us of 2 and of 11 is no traffic; sizes that take hardly longer than nothing are left out."""
        curve = bandwidth_curve([(100, 1.1e-6), (1000, 2e-6), (10_000, 11e-6)], overhead_s=1e-6)
        assert curve.points == ((1000.0, pytest.approx(1e9)), (10_000.0, pytest.approx(1e9)))

    def test_a_larger_copy_is_never_faster(self) -> None:
        """What a clock says beyond that is noise."""
        curve = bandwidth_curve([(1000, 3e-6), (2000, 2e-6), (4000, 4e-6)], overhead_s=0.0)
        times = [size / rate for size, rate in curve.points]
        assert times == pytest.approx([3e-6, 3e-6, 4e-6])

    def test_the_sustained_rate_is_the_best_of_all(self) -> None:
        """Of 2 x 10^9 operations in 10 ms and 2 x 10^6 in 1 ms."""
        timed = [(MatrixProduct(batch=1, m=n, n=n, k=n), s) for n, s in ((1000, 1e-2), (100, 1e-3))]
        assert sustained(timed) == pytest.approx(2e11)

    def test_all_shapes_and_sizes_are_run(self) -> None:
        """Products in the three layouts of training, batched ones, and copies."""
        bench = Pretended(1e-3)
        timed = products(bench, "bf16", [(1, 8, 4, 2), (3, 8, 4, 2)], Deadline(60.0))
        assert [shape for shape, _ in timed] == [MatrixProduct(batch=b, m=8, n=4, k=2) for b in (1, 3)]
        assert copies(bench, (64, 128), Deadline(60.0)) == [(64, 1e-3), (128, 1e-3)]
        assert bench.runs == 3 + 1 + 2


class TestOnThisCpu:
    """The whole, in little time."""

    def test_a_profile_is_written_and_gives_back_the_products_that_it_timed(self, tmp_path: Path) -> None:
        """Every rate is there and positive, with "measured" as its source; read again it is the same."""
        path = tmp_path / "cpu.json"
        done = CliRunner().invoke(command, ["--device", "cpu", "--budget-s", "2", "-o", str(path)])
        assert done.exit_code == 0, done.output
        profile = read_profile(str(path))
        assert profile.to_json() == json.loads(path.read_text())
        assert (profile.kind, profile.measured, profile.peak_flops) == ("cpu", True, {})
        assert set(profile.matmul) == set(profile.attention) == {"fp32", "bf16"}
        assert set(profile.sources.values()) == {"measured"}
        assert all(0 < seconds < 0.1 for seconds in profile.host.op_s.values())
        assert profile.environment["torch"] == torch.__version__
        assert profile.environment["threads"] == torch.get_num_threads()
        for timed in profile.matmul["fp32"].timed:
            work = product(timed.m, timed.n, timed.k, timed.batch, dtype="fp32")
            if work.product is not None and timed.seconds > 1e-4:
                again = Rates(profile).seconds(work)
                assert again == pytest.approx(timed.seconds, rel=0.3)

    def test_an_interrupt_leaves_nothing_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-C in the midst of it: 130, and the file that was there stays as it was."""
        path = tmp_path / "gpu.json"
        path.write_text("before")

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(measuring, "host_times", interrupted)
        assert main(["calibrate", "--device", "cpu", "--budget-s", "1", "-o", str(path)]) == 130
        assert path.read_text() == "before"
        assert os.listdir(tmp_path) == ["gpu.json"]

    def test_a_device_that_is_not_there_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Without a card: 4; another name: 2; a file that cannot be written is told before anything is measured."""
        if not torch.cuda.is_available():
            assert main(["calibrate"]) == 4
            assert "no CUDA device" in capsys.readouterr().err
        with pytest.raises(BadInputError, match="no device is called 'tpu'"):
            measuring.calibrate("tpu", 1.0)
        assert main(["calibrate", "--device", "cpu", "-o", "missing/folder/x.json"]) == 2
        assert "does not exist" in capsys.readouterr().err
