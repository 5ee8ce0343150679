"""`lorafa-prof measure`: outcomes and exit codes, a file that survives everything, and going on where one stopped.

The measuring process is the one of tests/measure/faults.py, which goes wrong as the model's folder is called.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from lorafa_prof.cli import main
from lorafa_prof.cli.measurement_file import MeasurementFile, Setup
from lorafa_prof.errors import BadInputError
from lorafa_prof.results import Measurement
from tests.measure.runs import FAULTS, pretend, saved

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 512,
}  # fmt: skip
posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and measuring processes that only pretend."""
    return pretend(tmp_path, monkeypatch)


def model(folder: Path, deeds: str) -> str:
    (folder / deeds).mkdir(exist_ok=True)
    (folder / deeds / "config.json").write_text(json.dumps(CONFIG))
    return f"./{deeds}"


def command(folder: Path, deeds: str, *args: str) -> list[str]:
    return ["measure", "--model", model(folder, deeds), "--device", "cpu", "--seq", "64", "--steps", "4", *args]


def begun(folder: Path) -> list[str]:
    """The runs whose measurement really began: method, batch, tokens, rank."""
    log = folder / "log"
    return [line.rpartition(" pid=")[0] for line in log.read_text().splitlines()] if log.exists() else []


def outcomes(path: Path) -> list[str]:
    return [entry["outcome"] for entry in saved(path)]


# -- what it answers ---------------------------------------------------------------------------------------------


def test_a_sweep_on_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without -o the table, one column a combination; full fine-tuning has no rank and is measured once."""
    args = command(folder, "well", "--bs", "1,2", "--rank", "4,8", "--method", "lora", "--method", "full")
    assert main(args) == 0
    out, err = capsys.readouterr()
    assert begun(folder) == [
        "lora 1 64 4", "lora 1 64 8", "lora 2 64 4", "lora 2 64 8", "full 1 64 4", "full 2 64 4",
    ]  # fmt: skip
    assert "measured on Fake 1: ./well, bf16, sdpa attention" in out
    assert "peak allocated" in out
    assert "lorafa-prof: 6/6 full, batch 2 x 64: ok, peak allocated 8.00 MiB, 500.00 ms a step" in err


def test_json_and_csv_on_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON is the document of a results file; CSV has bytes as integers, and empty fields for what is not known."""
    assert main(command(folder, "well", "--format", "json")) == 0
    [entry] = json.loads(capsys.readouterr().out)["measurements"]
    assert entry["run"]["method"]["name"] == "lora-fa"
    assert main(command(folder, "well", "--format", "csv", "--method", "lora,full")) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["method"] for row in rows] == ["lora", "full"]
    assert (rows[0]["peak_allocated_bytes"], rows[0]["peak_reserved_bytes"]) == (str(8 * 2**20), "")
    assert rows[0]["outcome"] == "ok"


def test_minus_o_means_json_whatever_it_is_called(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless the name ends as another format's; then the result is written once, at the end."""
    assert main(command(folder, "well", "-o", "results")) == 0
    assert outcomes(folder / "results") == ["ok"]
    assert main(command(folder, "well", "-o", "results.csv")) == 0
    assert (folder / "results.csv").read_text().startswith("model,method,")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("deeds", "code", "outcome"),
    [("oom", 0, "oom"), ("error", 4, "error"), ("exit7", 4, "error"), ("sigkill", 4, "killed"), ("hang", 4, "timeout")],
)
@posix
def test_one_configuration_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], deeds: str, code: int, outcome: str
) -> None:
    """That it does not fit is a result; what else ends it is said with exit code 4, and its steps are on record."""
    assert main(command(folder, deeds, "--timeout", "1.5", "-o", "run.json")) == code
    out, err = capsys.readouterr()
    assert out == ""
    [entry] = saved(folder / "run.json")
    assert (entry["outcome"], len(entry["steps"])) == (outcome, 2)
    if code:
        assert entry["error"].splitlines()[0] in err.splitlines()[-1]


def test_in_a_sweep_every_end_is_a_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The next configuration goes on; exit code 0; the table says which ended how, and why."""
    assert main(command(folder, "error", "--bs", "1,2")) == 0
    out, err = capsys.readouterr()
    assert len(begun(folder)) == 2
    assert out.count("ValueError: the layers do not match") == 2
    assert "lorafa-prof: 2/2 lora-fa, batch 2 x 64, rank 64: error: ValueError: the layers do not match" in err


class Terminal(io.StringIO):
    """Pretends to be one."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage overwrites the one before; what stays is how it ended."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert main(command(folder, "well", "-o", "run.json")) == 0
    *stages, end = terminal.getvalue().rstrip("\n").split("\r")
    assert [line.rpartition(": ")[2] for line in stages if line.strip()] == [
        "start", "start", *(f"step {number} of 4" for number in range(1, 5)),
    ]  # fmt: skip
    assert end == "lorafa-prof: 1/1 lora-fa, batch 1 x 64, rank 64: ok, peak allocated 8.00 MiB, 500.00 ms a step"


def test_a_refusal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone it is the program's own, with its exit code; in a sweep it is recorded."""
    assert main(command(folder, "bad-input", "-o", "run.json")) == 2
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[-1]) == ("", "lorafa-prof: the targets match nothing")
    assert not (folder / "run.json").exists()
    assert main(command(folder, "bad-input", "--bs", "1,2", "-o", "run.json")) == 0
    assert [(e["outcome"], e["error"], e["exit_code"]) for e in saved(folder / "run.json")] == [
        ("error", "the targets match nothing", 2)
    ] * 2


def test_a_device_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said once, before anything is measured, whatever the number of configurations."""
    assert main([*command(folder, "well", "--bs", "1,2"), "--device", "cuda"]) == 4
    assert capsys.readouterr().err == "lorafa-prof: no CUDA device; --device cpu measures there\n"
    assert begun(folder) == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--bs", "1,x"], "'1,x' is not a comma list of integers"),
        (["--bs", "1,,2"], "is not a comma list of integers"),
        (["--bs", "0"], "batch size must be between 1"),
        (["--seq", "64,100000"], "beyond the 512 positions"),
        (["--method", "lora,"], "an empty name"),
        (["--method", "lora,lara"], "unknown method 'lara'"),
        (["--steps", "0"], "--steps"),
        (["--timeout", "0"], "--timeout"),
        (["--cap", "many"], "not a size in bytes"),
        (["--gpu", "h1000"], "unknown gpu 'h1000'"),
        (["-o", "nowhere/run.json"], "does not exist"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(
    folder: Path, capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    """Every combination is checked before the first begins."""
    assert main(command(folder, "well", *args)) == 2
    out, err = capsys.readouterr()
    assert (out, begun(folder)) == ("", [])
    assert said in err


@pytest.mark.slow
def test_a_real_step(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing pretended: a tiny model on the CPU, one batch too large for the cap; the file is gone on with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    args = command(tmp_path, "tiny", "--rank", "4", "--method", "lora-fa", "--cap", "1.3MiB", "-o", "run.json")
    assert main([*args, "--bs", "1,4"]) == 0
    small, large = saved(tmp_path / "run.json")
    assert (small["outcome"], large["outcome"]) == ("ok", "oom")
    assert len(small["steps"]) == 4
    assert 0 < small["memory"]["peak_allocated_bytes"] <= 1.3 * 2**20 < large["memory"]["peak_allocated_bytes"]
    assert small["environment"]["options"]["steps"] == 4
    capsys.readouterr()
    assert main([*args, "--bs", "4,1"]) == 0
    out, err = capsys.readouterr()
    assert (out, err.count("kept from run.json"), err.count("measuring")) == ("", 2, 0)
    assert saved(tmp_path / "run.json") == [small, large]


# -- going on ----------------------------------------------------------------------------------------------------


def test_what_is_there_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Results of the same run, device, versions and options are not measured again, and said to be kept."""
    assert main(command(folder, "well", "--bs", "1,2", "-o", "run.json")) == 0
    before = (folder / "run.json").read_bytes()
    (folder / "log").unlink()
    capsys.readouterr()
    assert main(command(folder, "well", "--bs", "1,2,4", "-o", "run.json")) == 0
    assert begun(folder) == ["lora-fa 4 64 64"]
    assert "1/3 lora-fa, batch 1 x 64, rank 64: kept from run.json (ok); --restart" in capsys.readouterr().err
    assert [entry["run"]["bs"] for entry in saved(folder / "run.json")] == [1, 2, 4]
    assert (folder / "run.json").read_bytes().startswith(before.rstrip(b"\n ]}"))


@pytest.mark.parametrize("change", [["--steps", "5"], ["--warmup", "4"], ["--no-trace"], ["--cap", "8GiB"]])
def test_other_options_are_another_measurement(folder: Path, change: list[str]) -> None:
    """It is measured, and what is there stays."""
    assert main(command(folder, "well", "-o", "run.json")) == 0
    assert main([*command(folder, "well", "-o", "run.json"), *change]) == 0
    assert len(begun(folder)) == 2
    assert len(saved(folder / "run.json")) == 2


@pytest.mark.parametrize("key", ["device", "torch", "total_bytes"])
def test_another_device_or_release_is_another_measurement(folder: Path, key: str) -> None:
    """What was measured elsewhere stays beside it."""
    assert main(command(folder, "well", "-o", "run.json")) == 0
    [entry] = saved(folder / "run.json")
    (entry["versions"] if key == "torch" else entry["environment"])[key] = "another"
    (folder / "run.json").write_text(json.dumps({"measurements": [entry]}))
    assert main(command(folder, "well", "-o", "run.json")) == 0
    first, second = saved(folder / "run.json")
    assert (first, second["outcome"]) == (entry, "ok")


def test_restart_measures_anew(folder: Path) -> None:
    """In place of what is there."""
    for args in ([], ["--restart"]):
        assert main(command(folder, "well", "--bs", "1,2", "-o", "run.json", *args)) == 0
    assert len(begun(folder)) == 4
    assert outcomes(folder / "run.json") == ["ok", "ok"]


@pytest.mark.parametrize(
    ("outcome", "times"), [("oom", 0), ("killed", 1), ("timeout", 1), ("error", 1), ("interrupted", 1)]
)
def test_what_ended_badly_is_measured_again(folder: Path, outcome: str, times: int) -> None:
    """Out of memory would be so again; the other ends may not, and the new result takes their place."""
    assert main(command(folder, "well", "--bs", "1,2", "-o", "run.json")) == 0
    entries = saved(folder / "run.json")
    # As who died before a word leaves it: with all versions that are installed.
    entries[0] |= {
        "outcome": outcome,
        "error": "it happened",
        "versions": {**entries[0]["versions"], "bitsandbytes": "9.9"},
    }
    (folder / "run.json").write_text(json.dumps({"measurements": entries}))
    (folder / "log").unlink()
    assert main(command(folder, "well", "--bs", "1,2", "-o", "run.json")) == 0
    assert len(begun(folder)) == times
    assert outcomes(folder / "run.json") == ["ok" if times else "oom", "ok"]


# -- interrupted -------------------------------------------------------------------------------------------------

DRIVER = """
import sys
import lorafa_prof.measure.isolate as isolate
import lorafa_prof.measure.process as process
isolate.CHILD, process.GRACE_S = {child!r}, 0.3
from lorafa_prof.cli import main
sys.exit(main(sys.argv[1:]))
"""


@contextlib.contextmanager
def started(args: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, which is gone in the end whatever happens here."""
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(child=FAULTS), *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    ) as process:  # fmt: skip
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def hanging(folder: Path) -> Callable[[], bool]:
    """Whether a measuring process hangs; for the next one to come, begin anew."""
    sign = folder / "log-hanging"
    sign.unlink(missing_ok=True)
    return sign.exists


def child_of(folder: Path) -> int:
    return int((folder / "log").read_text().splitlines()[-1].rpartition("=")[2])


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("deeds", ["hang", "stubborn+hang"])
def test_an_interrupted_sweep(folder: Path, number: int, deeds: str) -> None:
    """What was there stays on record, the interrupted configuration is added with its steps, no process is left, and
    the exit code is 130.
    """
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("processes that are started here ignore the signal, as under nohup")
    assert main(command(folder, "well", "-o", "run.json")) == 0
    model(folder, deeds)
    with started(command(folder, deeds, "--bs", "1,2", "-o", "run.json")) as process:
        wait_for(hanging(folder))
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "lorafa-prof: interrupted"
    assert is_gone(child_of(folder))
    first, second = saved(folder / "run.json")
    assert (first["outcome"], second["outcome"], len(second["steps"])) == ("ok", "interrupted", 2)
    assert sorted(path.name for path in folder.iterdir()) == sorted(["well", deeds, "log", "log-hanging", "run.json"])


@posix
def test_a_second_signal_does_not_cut_the_ending_short(folder: Path) -> None:
    """Impatience costs no result."""
    with started(command(folder, "stubborn", "-o", "run.json")) as process:
        wait_for(hanging(folder))
        for _ in range(5):
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert outcomes(folder / "run.json") == ["interrupted"]
    assert is_gone(child_of(folder))


@posix
def test_nothing_known_is_nothing_recorded(folder: Path) -> None:
    """A configuration that had told nothing leaves nothing; without -o what is known goes to stdout."""
    with started(command(folder, "mute+hang", "-o", "run.json")) as process:
        wait_for(lambda: len(begun(folder)) == 1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert not (folder / "run.json").exists()
    with started(command(folder, "hang", "--format", "json")) as process:
        wait_for(hanging(folder))
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert [entry["outcome"] for entry in json.loads(out)["measurements"]] == ["interrupted"]


@posix
def test_a_result_is_not_given_up_for_an_interrupted_one(folder: Path) -> None:
    """--restart that is interrupted keeps what was there."""
    assert main(command(folder, "well", "-o", "run.json")) == 0
    [entry] = saved(folder / "run.json")
    name = model(folder, "hang")
    entry["run"]["model"]["name"] = name
    (folder / "run.json").write_text(json.dumps({"measurements": [entry]}))
    with started(command(folder, "hang", "-o", "run.json", "--restart")) as process:
        wait_for(hanging(folder))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert saved(folder / "run.json") == [entry]


# -- a disk that is full -----------------------------------------------------------------------------------------


def test_a_full_disk_costs_no_result(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file stays as it was; all measurements are in another place, which is named, exit code 2."""
    assert main(command(folder, "well", "-o", "run.json")) == 0
    before = (folder / "run.json").read_bytes()
    capsys.readouterr()
    (folder / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder / "temporary"))
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "run.json":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", full)
    assert main(command(folder, "well", "--bs", "1,2,4", "-o", "run.json")) == 2
    out, err = capsys.readouterr()
    assert (out, (folder / "run.json").read_bytes()) == ("", before)
    [rescued] = (folder / "temporary").iterdir()
    assert err.splitlines()[-1] == (
        f"lorafa-prof: cannot write 'run.json': No space left on device; the measurements are in {rescued}"
    )
    assert [entry["run"]["bs"] for entry in saved(rescued)] == [1, 2]


@posix
@pytest.mark.parametrize("extra", [[], ["--format", "csv"]])
def test_where_no_disk_takes_anything(folder: Path, extra: list[str]) -> None:
    """The measurements are on stdout, as JSON; nothing half-written is left."""
    import resource

    assert main(command(folder, "well", "-o", "run.json")) == 0
    before = (folder / "run.json").read_bytes()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n"
    done = subprocess.run(
        [sys.executable, "-c", limit + DRIVER.format(child=FAULTS),
         *command(folder, "well", "--bs", "1,2,4", "-o", "run.json", *extra)],
        capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
    )  # fmt: skip
    assert resource.RLIMIT_FSIZE is not None
    assert done.returncode == 2, done.stderr
    assert "File too large; the measurements are on stdout, since no other place" in done.stderr
    assert [e["outcome"] for e in json.loads(done.stdout)["measurements"]] == ["ok"] * (3 if extra else 2)
    assert (folder / "run.json").read_bytes() == before
    assert not list(folder.glob("lorafa-prof-*")) + list(folder.glob(".lorafa-prof-*"))


# -- a file of several ---------------------------------------------------------------------------------------------


def recorded(file: MeasurementFile, *names: str) -> None:
    """Record measurements on devices of these names."""
    for name in names:
        seen = Measurement(outcome="ok", versions={}, environment={"device": name, "pid": id(file)})
        file.record(seen, Setup(seen))


def devices(path: Path) -> list[str]:
    return [entry["environment"]["device"] for entry in saved(path)]


def test_two_sweeps_into_one_file(folder: Path) -> None:
    """Each takes in what the other has written: nothing is lost, and what both measured is there once."""
    one, other = (MeasurementFile("run.json", print) for _ in range(2))
    recorded(one, "a", "b")
    recorded(other, "c", "a")
    recorded(one, "d")
    assert devices(folder / "run.json") == ["a", "b", "c", "d"]
    assert saved(folder / "run.json")[0]["environment"]["pid"] == id(other)


def test_many_processes_into_one_file(folder: Path) -> None:
    """All at once, each with results of its own."""
    code = (
        "import sys\n"
        "from tests.cli.test_measure import MeasurementFile, recorded\n"
        "recorded(MeasurementFile('run.json', print), *(f'{sys.argv[1]}{n}' for n in range(12)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [subprocess.Popen([sys.executable, "-c", code, name], env=environment) for name in "abcd"]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert sorted(devices(folder / "run.json")) == sorted(f"{name}{n}" for name in "abcd" for n in range(12))


@pytest.mark.parametrize("text", ['{"other": 1}', '{"measurements": ['])
def test_a_file_that_becomes_something_else(folder: Path, text: str) -> None:
    """It is not written over; what is on record is kept elsewhere, the last measurement too."""
    file = MeasurementFile("run.json", print)
    recorded(file, "a")
    (folder / "run.json").write_text(text)
    with pytest.raises(
        BadInputError, match=r"'run\.json' was changed meanwhile: .*; the measurements are in "
    ) as caught:
        recorded(file, "b")
    assert (folder / "run.json").read_text() == text
    kept = Path(str(caught.value).rpartition(" in ")[2])
    assert devices(kept) == ["a", "b"]
    kept.unlink()


# -- a file that is not what it should be ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document() -> str:
    """A results file of three measurements, with letters of several bytes."""
    entries = [_entry() | {"error": f"größer {number}"} for number in range(3)]
    return json.dumps({"measurements": entries}, indent=2, ensure_ascii=False) + "\n"


def _entry() -> dict[str, Any]:
    return Measurement(outcome="ok", versions={"torch": "9"}, environment={"device": "é"}).to_json()


def test_a_file_cut_off_anywhere_gives_what_is_whole(document: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Property: after any number of bytes, every measurement that ended before it is kept, and the broken file too."""
    data, folder = document.encode(), tmp_path_factory.mktemp("cut")
    # At four spaces, a closing brace is that of a measurement.
    wholes = [place + len("\n    }") for place in range(len(data)) if data.startswith(b"\n    }", place)]
    assert len(wholes) == 3

    @settings(max_examples=300)
    @given(st.integers(1, len(data) - 3), st.sampled_from([b"", b"\0\0\0\0", b"\xff", b"}]", b",,"]))
    def check(length: int, tail: bytes) -> None:
        for file in folder.iterdir():
            file.unlink()
        path, said = folder / "run.json", list[str]()
        path.write_bytes(data[:length] + tail)
        # A tail that begins with the brace that was missing makes a measurement whole again.
        ended = [whole for whole in wholes if whole <= length]
        if tail.startswith(b"}"):
            ended += [whole for whole in wholes if length < whole and not data[length : whole - 1].strip()]
        expected = len(ended)
        try:
            kept = MeasurementFile(str(path), said.append)
        except BadInputError:  # with this tail it begins like something else: left alone
            assert (bool(tail), expected) == (True, 0)
            assert path.read_bytes() == data[:length] + tail
            return
        assert [entry["error"] for entry in kept.entries] == [f"größer {number}" for number in range(expected)]
        assert (folder / "run.json.broken").read_bytes() == data[:length] + tail
        assert len(json.loads(path.read_text())["measurements"]) == expected
        assert said == [f"{path} was cut off: {expected} whole measurements are kept, the broken file is {path}.broken"]

    check()


def test_a_broken_file_is_put_aside_and_never_over_another(
    folder: Path, capsys: pytest.CaptureFixture[str], document: str
) -> None:
    """run.json.broken, then run.json.broken-2; the command says so and goes on."""
    for name in ("run.json.broken", "run.json.broken-2"):
        half = document[: len(document) // 2]
        (folder / "run.json").write_text(half)
        assert main(command(folder, "well", "-o", "run.json", "--restart")) == 0
        assert (folder / name).read_text() == half
        assert f"run.json was cut off: 1 whole measurements are kept, the broken file is run.json{name[8:]}" in (
            capsys.readouterr().err
        )
        assert [entry["error"] for entry in saved(folder / "run.json")] == ["größer 0", None]


@pytest.mark.parametrize("text", ["", "\n", "\0" * 512])
def test_an_empty_file_is_a_new_one(folder: Path, text: str) -> None:
    """As `mktemp` makes it, or a file system that lost its data leaves it."""
    (folder / "run.json").write_text(text)
    assert main(command(folder, "well", "-o", "run.json")) == 0
    assert outcomes(folder / "run.json") == ["ok"]
    assert not (folder / "run.json.broken").exists()


@pytest.mark.parametrize(
    "text",
    [
        "a letter to my aunt",
        '{"predictions": []}',
        '{"measurements": {}}',
        '{"measurements": [], "more": 1}',
        '{"measurements": [1]}',
        '{"measurements": [{"schema": 999, "engine": "measure"}]}',
        '{"measurements": [{"engine": "measure"}, ',
        '{"measurement',
        "[" * 100_000,
        '{"measurements": ' + "[" * 100_000,
        json.dumps({"measurements": [_entry() | {"environment": []}]}),
        json.dumps({"measurements": [_entry() | {"outcome": "fine"}]}),
        json.dumps({"measurements": [_entry() | {"run": 7}]}),
        '{"measurement": [',
    ],
)
def test_a_file_of_something_else_is_refused_untouched(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """Exit code 2 before anything is measured, or, for the beginning of a file of ours, put aside: nothing is lost."""
    (folder / "run.json").write_text(text)
    code = main(command(folder, "well", "-o", "run.json"))
    err = capsys.readouterr().err
    if (folder / "run.json.broken").exists():
        assert (code, (folder / "run.json.broken").read_text()) == (0, text)
        return
    assert code == 2
    assert (folder / "run.json").read_text() == text
    assert "'run.json' is there already: " in err
    assert begun(folder) == []


def test_a_figure_that_is_no_number_is_not_taken_over(folder: Path, document: str) -> None:
    """1e999 would become Infinity, which cannot be written; the file is put aside as broken from there."""
    text = document.replace('"rank": 0', '"rank": 1e999', 2).replace('"rank": 1e999', '"rank": 0', 1)
    (folder / "run.json").write_text(text)
    assert main(command(folder, "well", "-o", "run.json")) == 0
    assert [entry["error"] for entry in saved(folder / "run.json")] == ["größer 0", None]
    assert (folder / "run.json.broken").read_text() == text
