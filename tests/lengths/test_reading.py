"""Files of lengths: four formats, seen by how the text begins; whatever is wrong names the file and the line."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from lorafa_prof.errors import BadInputError
from lorafa_prof.lengths import read_lengths, reading

LENGTHS = st.lists(st.integers(1, 2**30), min_size=1, max_size=40)


def written(folder: Path, text: str | bytes, name: str = "lengths") -> str:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def as_csv(lengths: list[int]) -> str:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["text", "length"])
    rows.writerows(['a "quoted",\ntext', length] for length in lengths)
    return text.getvalue()


FORMATS = {
    "plain": lambda lengths: "\n".join(map(str, lengths)),
    "csv": as_csv,
    "list": json.dumps,
    "list of objects": lambda lengths: json.dumps([{"id": 1, "length": length} for length in lengths], indent=1),
    "lines": lambda lengths: "\n".join(json.dumps({"length": length, "x": [None]}) for length in lengths),
    "windows": lambda lengths: "\ufeff" + "\r\n".join(map(str, lengths)) + "\r\n\r\n",
}


@pytest.mark.parametrize("form", FORMATS)
@given(lengths=LENGTHS)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, form: str, lengths: list[int]) -> None:
    """Every format holds the same lengths in the same order."""
    folder = tmp_path_factory.mktemp("lengths")
    assert read_lengths(written(folder, FORMATS[form](lengths))).tolist() == lengths


@given(st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=9), min_size=1, max_size=9))
def test_token_ids_are_counted(tmp_path_factory: pytest.TempPathFactory, sequences: list[list[int]]) -> None:
    """A data set's own JSON Lines, or its JSON, will do."""
    folder, rows = tmp_path_factory.mktemp("ids"), [{"input_ids": ids, "labels": ids} for ids in sequences]
    wanted = [len(ids) for ids in sequences]
    assert read_lengths(written(folder, "\n".join(map(json.dumps, rows)))).tolist() == wanted
    assert read_lengths(written(folder, json.dumps(rows))).tolist() == wanted


WRONG = {
    "": "holds no lengths",
    "\n \n": "holds no lengths",
    "[]": "holds no lengths",
    "length\n": "holds no lengths",
    "12\n0\n": "line 2: a length must be between 1 and 1073741824, not 0",
    "12\n\n-3\n": "line 3: a length must be between 1 and 1073741824, not -3",
    "1073741825": "line 1: a length must be between",
    "5\n6.5": "line 2: a number is no integer",
    "5\nabc": "line 2: not valid JSON",
    "5\n" + "9" * 5000: "line 2: ",
    "abc": "line 1: neither an integer, nor JSON, nor a CSV header with a column 'length': 'abc'",
    "12,13\n14,15": "line 1: neither an integer",
    "length,length\n1,2": "line 1: neither an integer",
    "a,length\n1,2\n3\n": "line 3 has 1 fields where the header has 2",
    "a,length\n1,x\n": "line 2: 'x' is no integer",
    "a,length\n1,\n": "line 2: '' is no integer",
    'a,length\n"1,2': "line 2: no CSV",
    '{"length": true}': "line 1: length: true is no integer",
    '{"length": "7"}': "line 1: length: '7' is no integer",
    '{"a": 1}': "line 1 has neither 'length' nor 'input_ids'",
    '{"input_ids": "abc"}': "line 1: input_ids must be a list, not a string",
    '{"input_ids": []}': "line 1: the number of input_ids: a length must be between",
    '{"length": 3, "input_ids": [1, 2]}': "line 1: length is 3 but there are 2 input_ids",
    '{"length": 3}\n{"length": 3': "line 2: not valid JSON",
    '[1, "2"]': "element 2: '2' is no integer",
    "[1, [2]]": "element 2: a list is no integer",
    "[1, 2": "not valid JSON",
    "[" * 100_000: "nested too deeply",
    '{"length":' + "[" * 100_000: "line 1: nested too deeply",
    '{"length": ' + "9" * 5000 + "}": "is no integer",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_named(tmp_path: Path, text: str) -> None:
    """One line: the file, the line, and what is wrong there."""
    path = written(tmp_path, text)
    with pytest.raises(BadInputError) as caught:
        read_lengths(path)
    assert str(caught.value).startswith(path)
    assert WRONG[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """No file, a folder, a FIFO that nobody writes to, no UTF-8, a path that is none."""
    os.mkfifo(tmp_path / "fifo")
    for path, said in (
        (str(tmp_path / "absent"), "No such file"),
        (str(tmp_path), "not a regular file"),
        (str(tmp_path / "fifo"), "not a regular file"),
        (written(tmp_path, b"12\n\xff\xfe"), "not valid UTF-8"),
        ("a\0b", "not a usable path"),
    ):
        with pytest.raises(BadInputError, match=said):
            read_lengths(path)


def test_absurd_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line, a list, a file and a data set have a largest size; here it is small, for the test to be."""
    for name, text in (
        ("LONGEST_LINE", "1\n" + " " * 40),
        ("LARGEST_LIST", "[1,        2]"),
        ("LARGEST_FILE", "1\n" * 9),
    ):
        with monkeypatch.context() as small:
            small.setattr(reading, name, 8)
            with pytest.raises(BadInputError, match=r"too large|more than 8|longer than 8"):
                read_lengths(written(tmp_path, text))
    monkeypatch.setattr(reading, "MOST_SEQUENCES", 3)
    assert read_lengths(written(tmp_path, "1\n2\n3\n")).tolist() == [1, 2, 3]
    with pytest.raises(BadInputError, match="more than 3 sequences"):
        read_lengths(written(tmp_path, "1\n2\n3\n4"))


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Nothing but the one error, whatever the file holds."""
    path = written(tmp_path_factory.mktemp("bytes"), data)
    try:
        found = read_lengths(path)
    except BadInputError:
        return
    assert found.size
    assert found.min() >= 1
