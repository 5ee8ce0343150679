"""A measuring process may die in any way: its end is an outcome, what it had told is kept, and nothing stays behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from lorafa_prof.errors import DeviceError, LorafaProfError
from lorafa_prof.measure.frames import read_frame, write_frame
from lorafa_prof.measure.isolate import Ended, Place, find_place, measure_isolated
from lorafa_prof.measure.stop import Stop
from lorafa_prof.results import Measurement, run_to_json
from lorafa_prof.specs import MethodSpec, RunSpec
from tests.measure.faults import ENVIRONMENT, VERSIONS
from tests.measure.runs import FAULTS, OPTIONS, faulty_run
from tests.support.configs import model_spec, tiny_configs

ROOT = Path(__file__).resolve().parents[2]
PLACE = Place(environment=ENVIRONMENT, versions=VERSIONS)
posix = pytest.mark.skipif(os.name == "nt", reason="signals and process groups of POSIX")


def measured(deeds: str, *, timeout_s: float | None = 60.0, stop: Stop | None = None) -> Ended:
    return measure_isolated(
        faulty_run(deeds), OPTIONS, PLACE, stop or Stop(), timeout_s=timeout_s, child=FAULTS
    )  # fmt: skip


def is_running(pid: int) -> bool:
    """Whether a process is there, one that waits to be reaped not counted."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until_gone(pid: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not is_running(pid):
            return True
        time.sleep(0.02)
    return False


# -- every way to end --------------------------------------------------------------------------------------------


def test_a_whole_measurement() -> None:
    """What the worker returns arrives, with the options that it was measured with."""
    seen = measured("well").measurement
    assert (seen.outcome, seen.error, seen.exit_code) == ("ok", None, None)
    assert [step.step_s for step in seen.steps] == [0.125, 0.25, 0.375, 0.5]
    assert seen.memory is not None
    assert seen.environment == {**ENVIRONMENT, "options": OPTIONS}
    assert seen.run == faulty_run("well")
    assert Measurement.from_json(seen.to_json()) == seen


@pytest.mark.parametrize(
    ("deeds", "outcome", "exit_code", "said"),
    [
        pytest.param("sigkill", "killed", -9, "killed by SIGKILL (perhaps the kernel's OOM killer", marks=posix),
        pytest.param("sigsegv", "killed", -11, "killed by SIGSEGV", marks=posix),
        pytest.param("half-a-frame", "killed", -9, "killed by SIGKILL", marks=posix),
        ("oom", "oom", 1, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        ("cpu-oom", "oom", 1, "RuntimeError: DefaultCPUAllocator: can't allocate memory"),
        ("memory-error", "oom", 1, "MemoryError"),
        ("error", "error", 1, "ValueError: the layers do not match"),
        ("sys-exit", "error", 1, "SystemExit: 5"),
        ("exit7", "error", 7, "the measuring process left with exit code 7 and without a result"),
        ("exit0", "error", 0, "the measuring process left with exit code 0 and without a result"),
    ],
)
def test_what_was_told_before_the_end_is_kept(deeds: str, outcome: str, exit_code: int, said: str) -> None:
    """The two steps before the third, in which it happens; the error says what happened."""
    ended = measured(deeds)
    seen = ended.measurement
    assert (seen.outcome, seen.exit_code) == (outcome, exit_code)
    assert seen.error is not None
    assert seen.error.startswith(said)
    assert [step.step_s for step in seen.steps] == [0.125, 0.25]
    assert (ended.began, ended.refusal) == (True, None)
    assert seen.memory is None
    assert Measurement.from_json(seen.to_json()) == seen


def test_an_exception_says_where_it_was_raised() -> None:
    """The last lines of the traceback are kept with its text; out of memory is told in one line."""
    error = measured("error").measurement.error or ""
    assert "Traceback" in error
    assert "faults.py" in error
    assert "\n" not in (measured("oom").measurement.error or "")


@posix
def test_a_crash_says_how_far_it_was_and_what_it_last_wrote() -> None:
    """The stage, and the end of stderr, where faulthandler says where a segmentation fault happened."""
    error = measured("stderr+sigsegv").measurement.error or ""
    assert ", after: step 2 of 4" in error
    assert "last words of the child" in error
    assert "Fatal Python error: Segmentation fault" in error


def test_who_dies_before_a_word_leaves_what_was_known() -> None:
    """Run, options, device and versions are there all the same."""
    ended = measured("mute+exit7")
    seen = ended.measurement
    assert (seen.outcome, seen.steps, ended.began) == ("error", (), False)
    assert (seen.run, seen.versions) == (faulty_run("mute+exit7"), VERSIONS)
    assert seen.environment == {**ENVIRONMENT, "options": OPTIONS}


@pytest.mark.parametrize("deeds", ["bad-input", "unsupported"])
def test_a_refusal_keeps_its_text_and_exit_code(deeds: str) -> None:
    """For the caller to raise where it stands alone, or to record."""
    ended = measured(deeds)
    assert isinstance(ended.refusal, LorafaProfError)
    assert ended.refusal.exit_code == 2
    assert ended.measurement.outcome == "error"
    assert ended.measurement.error == str(ended.refusal)


@pytest.mark.parametrize("deeds", ["garbage", "flood"])
def test_noise_does_no_harm(deeds: str) -> None:
    """Whatever is printed to stdout, by the process or by another that it starts, and however much to stderr."""
    seen = measured(deeds).measurement
    assert (seen.outcome, len(seen.steps)) == ("ok", 4)


@posix
@pytest.mark.parametrize("deeds", ["hang", "stubborn"])
def test_a_timeout_ends_even_who_does_not_listen(deeds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM first, then SIGKILL; the steps that were done are kept."""
    monkeypatch.setattr("lorafa_prof.measure.process.GRACE_S", 0.3)
    seen = measured(deeds, timeout_s=1.5).measurement
    assert (seen.outcome, seen.exit_code) == ("timeout", -15 if deeds == "hang" else -9)
    assert seen.error == "not done after 1.5 s, after: step 2 of 4"
    assert len(seen.steps) == 2


@posix
@pytest.mark.parametrize("deeds", ["grandchild", "grandchild+hang", "grandchild+sigkill"])
def test_nothing_that_the_child_started_stays_behind(
    deeds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the child ends, its process group ends with it."""
    monkeypatch.setenv("FAULTS_GRANDCHILD", str(tmp_path / "pid"))
    outcome = measured(deeds, timeout_s=2.0).measurement.outcome
    assert outcome == {"grandchild": "ok", "grandchild+hang": "timeout", "grandchild+sigkill": "killed"}[deeds]
    assert wait_until_gone(int((tmp_path / "pid").read_text()))


def test_a_request_to_stop_keeps_what_was_told() -> None:
    """The child is ended at once; stages arrive while it runs."""
    stop, stages = Stop(), []

    def on_stage(stage: str) -> None:
        stages.append(stage)
        if stage == "step 2 of 4":
            threading.Timer(0.1, stop.request).start()

    began = time.monotonic()
    ended = measure_isolated(
        faulty_run("hang"), OPTIONS, PLACE, stop, timeout_s=60.0, on_stage=on_stage, child=FAULTS
    )  # fmt: skip
    assert (ended.measurement.outcome, ended.measurement.error) == ("interrupted", "interrupted, after: step 2 of 4")
    assert (len(ended.measurement.steps), ended.began) == (2, True)
    assert stages == ["start", "step 1 of 4", "step 2 of 4"]
    assert time.monotonic() - began < 30


@posix
def test_a_signal_is_a_request_and_handlers_return() -> None:
    """Ctrl-C, SIGTERM and a closed terminal are noted while a Stop is entered, and mean what they did afterwards."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with Stop() as stop:
            os.kill(os.getpid(), number)
            assert stop.requested
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


@posix
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("deeds", ["hang", "stubborn"])
def test_the_child_goes_when_its_parent_is_killed(deeds: str, tmp_path: Path) -> None:
    """SIGKILL leaves the parent no time to end it."""
    log = tmp_path / "log"
    script = (
        "from lorafa_prof.measure.isolate import measure_isolated, Place\n"
        "from lorafa_prof.measure.stop import Stop\n"
        "from tests.measure.runs import FAULTS, OPTIONS, faulty_run\n"
        f"measure_isolated(faulty_run({deeds!r}), OPTIONS, Place(), Stop(), child=FAULTS)\n"
    )
    environment = {**os.environ, "FAULTS_LOG": str(log), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment) as parent:
        end = time.monotonic() + 30
        while not (log.exists() and "pid=" in log.read_text()) and time.monotonic() < end:
            time.sleep(0.02)
        child = int(log.read_text().strip().rpartition("=")[2])
        assert is_running(child)
        parent.kill()
        parent.wait()
        assert wait_until_gone(child)


@posix
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_the_child_goes_when_nobody_holds_its_stdin(tmp_path: Path) -> None:
    """Where no signal tells of the parent's death, the end of the pipe does; what the child started goes too."""
    environment = {
        **os.environ, "FAULTS_GRANDCHILD": str(tmp_path / "pid"), "FAULTS_LOG": str(tmp_path / "log"),
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", FAULTS], cwd=ROOT, env=environment, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        request = {"run": run_to_json(faulty_run("grandchild+hang")), "options": OPTIONS}
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
        end = time.monotonic() + 30
        while not (tmp_path / "log-hanging").exists() and time.monotonic() < end:
            time.sleep(0.02)
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(10) == -signal.SIGKILL
    assert wait_until_gone(int((tmp_path / "pid").read_text()))


# -- the place ---------------------------------------------------------------------------------------------------


def test_the_place_tells_device_and_versions() -> None:
    """Found by a process of its own, so that this one holds no device."""
    place = find_place(OPTIONS, Stop(), child=FAULTS)
    assert place == Place(environment=ENVIRONMENT, versions={**VERSIONS, "bitsandbytes": "9.9"})


def test_a_place_that_is_refused() -> None:
    """The child's error and exit code."""
    with pytest.raises(LorafaProfError, match="no CUDA device; --device cpu measures there") as caught:
        find_place({**OPTIONS, "device": "cuda"}, Stop(), child=FAULTS)
    assert caught.value.exit_code == 4


def test_a_child_that_cannot_even_start() -> None:
    """What Python says about it is passed on."""
    with pytest.raises(DeviceError, match=r"cpu cannot be used: .*exit code 1(.|\n)*No module named"):
        find_place(OPTIONS, Stop(), child="tests.measure.no_such_module")


def test_a_stop_while_the_place_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known, and nothing is wrong."""
    monkeypatch.setenv("FAULTS_NO_PLACE", "1")
    stop = Stop()
    threading.Timer(0.5, stop.request).start()
    assert find_place(OPTIONS, stop, child=FAULTS) is None


def test_a_device_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for without end."""
    monkeypatch.setenv("FAULTS_NO_PLACE", "1")
    with pytest.raises(DeviceError, match=r"cpu does not answer within 0\.5 s"):
        find_place(OPTIONS, Stop(), timeout_s=0.5, child=FAULTS)


@pytest.mark.parametrize("package", ["torch", "transformers", "peft"])
def test_a_package_that_is_missing(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that installs it, and exit code 3."""
    monkeypatch.setenv("MISSING_PACKAGE", package)
    with pytest.raises(
        LorafaProfError, match=rf"measuring needs {package}: pip install 'lorafa-prof\[torch\]'"
    ) as caught:
        find_place(OPTIONS, Stop(), child="tests.measure.without_package")
    assert caught.value.exit_code == 3


def test_the_light_half_imports_nothing_heavy() -> None:
    """Starting processes costs no torch."""
    code = (
        "import sys, lorafa_prof.measure.isolate\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow
def test_the_real_harness_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing pretended: a tiny model on the CPU, whose device and versions agree with those found beforehand."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = model_spec("tiny", tiny_configs()["llama"])
    run = RunSpec(model=model, method=MethodSpec(name="lora", rank=4), bs=2, seq=16)
    place = find_place(OPTIONS, Stop())
    assert place is not None
    ended = measure_isolated(run, {**OPTIONS, "steps": 2}, place, Stop(), timeout_s=300)
    seen = ended.measurement
    assert (seen.outcome, len(seen.steps), seen.run) == ("ok", 2, run)
    assert seen.memory is not None
    assert seen.environment.items() >= place.environment.items()
    assert place.versions.items() >= seen.versions.items()


# -- frames ------------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(body=plain, noise=st.binary(max_size=20).filter(lambda noise: b"\n" not in noise))
def test_a_frame_is_read_whatever_stands_before_it(body: object, noise: bytes) -> None:
    """A library's print without a line end may precede it on its line."""
    stream = io.BytesIO()
    write_frame(stream, "done", body)
    frame = read_frame(noise + stream.getvalue())
    assert frame is not None
    assert (frame.kind, frame.body()) == ("done", body)


@given(body=plain, data=st.data())
def test_part_of_a_frame_is_none(body: object, data: st.DataObject) -> None:
    """Cut anywhere before its line end."""
    stream = io.BytesIO()
    write_frame(stream, "measurement", body)
    text = stream.getvalue()
    assert text.count(b"\n") == 1
    assert read_frame(text[: data.draw(st.integers(0, len(text) - 1))]) is None


@given(line=st.binary())
def test_no_line_is_too_strange(line: bytes) -> None:
    """Bytes that are no frame are none."""
    frame = read_frame(line)
    assert frame is None or frame.data.endswith(b"\n")


def test_a_figure_that_is_no_number_is_refused() -> None:
    """JSON has no NaN; the results file could not be written."""
    with pytest.raises(ValueError, match="JSON"):
        write_frame(io.BytesIO(), "done", float("nan"))
