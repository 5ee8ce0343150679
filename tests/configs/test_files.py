"""Files that somebody else wrote: whatever they hold, the answer is a reading or one clear line, soon."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings, strategies as st

from lorafa_prof.configs import Reading, read_configs
from lorafa_prof.configs.files import LARGEST_FILE, read_mapping
from lorafa_prof.configs.formats import FORMATS
from lorafa_prof.configs.reading import OPTIONS
from lorafa_prof.errors import LorafaProfError
from tests.support.tool_files import PARTS, WHOLE

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def refusal(tmp_path: Path, text: str | bytes) -> str:
    file = tmp_path / "f.yml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(LorafaProfError) as error:
        read_mapping(str(file))
    assert error.value.exit_code == 2
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "values are too many"),
        ("a: &a [*a]", "alias that contains itself"),
        ("a: &a {b: {c: *a}}", "alias that contains itself"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a:\n" + "\n".join(f"{'  ' * n}b:" for n in range(1, 60)), "nested too deeply"),
        ("a: 1\na: 2", "key 'a' is there twice"),
        ("x:\n  a: 1\n  a: 2", "key 'a' is there twice"),
        ("[1, 2]: 3", "is no name"),
        ("1: 2", "is no name"),
        ("- a", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("a: !!python/object/apply:os.system ['echo no']", "not valid YAML"),
        ("a: !!python/name:os.system", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: 2001-99-99", "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        (b"a: \xff", "not valid UTF-8"),
        ('{"a": 1, "a": 2}', "there twice"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "nested too deeply"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_hostile_files_are_refused(text: str | bytes, words: str, tmp_path: Path) -> None:
    """Bombs, loops, depth, code, keys given twice: one line with the reason."""
    began = time.monotonic()
    assert words in refusal(tmp_path, text)
    assert time.monotonic() - began < 20


def test_a_file_has_a_largest_size(tmp_path: Path) -> None:
    """It is looked at before it is read."""
    assert "too large" in refusal(tmp_path, b"#" * (LARGEST_FILE + 1))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe without a writer would never end."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LorafaProfError, match="not a regular file"):
        read_mapping(str(tmp_path / "pipe"))


def test_anchors_that_people_use_are_read(tmp_path: Path) -> None:
    """An alias or a merge is fine as long as it stands for little."""
    file = tmp_path / "f.yml"
    file.write_text("base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\nlist: [*b, *b]\n")
    assert read_mapping(str(file))["more"] == {"x": 1, "y": 3}


#: Values of every kind, in the places of those that are expected.
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["auto", "1e-4", "lora", "qlora", "bf16", "no", "cpu", "all-linear", "LORA", "FSDP", "../x", "\x1b[2J"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


def _keys() -> list[str]:
    """Keys that the readers know: those of the files written for the tests, and every format's signs."""
    found = {key for known in FORMATS for key in known.signs}
    for file in (*WHOLE, *PARTS):
        found |= set(yaml.safe_load(file.text))
    return sorted(found)


KEYS = _keys()


def check(path: Path) -> None:
    """Read the file: a reading whose options are plain values and whose lines are text, or an error of ours."""
    try:
        reading: Reading | LorafaProfError = read_configs([str(path)])
    except LorafaProfError as error:
        reading = error
    if isinstance(reading, LorafaProfError):
        assert reading.exit_code == 2
        assert len(str(reading)) < 2000
        return
    assert set(reading.options) <= set(OPTIONS)
    assert all(isinstance(value, (str, int, float, bool)) for value in reading.options.values())
    assert all(isinstance(line, str) for line in reading.lines())


@settings(max_examples=300, deadline=None)
@given(data=st.dictionaries(st.sampled_from(KEYS), _VALUES, max_size=12))
def test_any_value_under_a_known_key(data: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever stands under a key that a reader knows, it is read or refused, and never raises anything else."""
    path = tmp_path_factory.mktemp("f", numbered=True) / "f.yml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    check(path)


@settings(max_examples=200, deadline=None)
@given(
    file=st.sampled_from([*WHOLE, *PARTS]), key=st.integers(0, 50), value=_VALUES, inner=st.booleans(), data=st.data()
)
def test_a_good_file_with_one_bad_value(
    file: object, key: int, value: object, inner: bool, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One value of a whole file, or of one of its sections, is replaced by any other."""
    parsed = yaml.safe_load(file.text)  # type: ignore[attr-defined]
    names = sorted(parsed)
    name = names[key % len(names)]
    if inner and isinstance(parsed[name], dict) and parsed[name]:
        parsed[name][data.draw(st.sampled_from(sorted(parsed[name])))] = value
    else:
        parsed[name] = value
    path = tmp_path_factory.mktemp("f", numbered=True) / "f.yml"
    path.write_text(yaml.safe_dump(parsed), encoding="utf-8", errors="surrogatepass")
    check(path)


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="abx:-[]{}&*!<>|?'\"#%@ \n\t0129.~", max_size=80))
def test_any_text(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """YAML and JSON that nobody meant."""
    path = tmp_path_factory.mktemp("f", numbered=True) / "f.yml"
    path.write_text(text, encoding="utf-8")
    check(path)


@settings(max_examples=100, deadline=None)
@given(value=st.recursive(st.none() | st.integers() | st.text(max_size=8), st.lists, max_leaves=20))
def test_json_is_read_like_yaml(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same data in either language makes the same reading."""
    folder = tmp_path_factory.mktemp("f", numbered=True)
    document = {"base_model": "a/b", "micro_batch_size": 2, "unheard_of": value}
    (folder / "a").write_text(json.dumps(document))
    (folder / "b").write_text(yaml.safe_dump(document))
    one, other = (read_configs([str(folder / name)]) for name in "ab")
    assert one.options == other.options
