"""Two records of a step, operation by operation; by hand, and for any operations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from lorafa_prof.diff import diff
from lorafa_prof.errors import BadInputError
from lorafa_prof.ledger import Category
from lorafa_prof.reports.diff import difference_tables, records_table
from lorafa_prof.reports.table import render_csv, render_markdown
from lorafa_prof.results import Throughput
from lorafa_prof.results.step_record import Operation, StepRecord, step_records_to_json
from tests.support.hand_made import RUN, VERSIONS, memory


def operation(module: str, operator: str, size: int, count: int = 2, **fields: Any) -> Operation:
    """Storages of `size` bytes each, as many alive at the peak as are made in a step."""
    known: dict[str, Any] = {
        "phase": "forward", "module": module, "operator": operator, "name": "", "category": "activations",
        "shape": f"({size // 4})", "dtype": "fp32", "step_count": count, "step_bytes": size * count,
        "peak_count": count, "peak_bytes": size * count,
    }  # fmt: skip
    return Operation(**known | fields)


def record(*operations: Operation, **fields: Any) -> StepRecord:
    known: dict[str, Any] = {
        "run": RUN, "versions": VERSIONS, "device": None, "settings": "as they are by default", "memory": memory(),
        "throughput": Throughput(model_flops=10, executed_flops=12), "parameters": {"total": 4, "trainable": 2},
        "operations": operations,
    }  # fmt: skip
    return StepRecord(**known | fields)


def test_added_removed_changed_and_moved() -> None:
    """Each kind is told, the largest change first; what moved to another module is no change."""
    before = record(
        operation("a", "mm", 512), operation("b", "clone", 4096), operation("c", "mul.Tensor", 1024),
        operation("old.place", "silu", 2048), operation("same", "add", 512),
    )  # fmt: skip
    after = record(
        operation("a", "mm", 512), operation("d", "_softmax", 8192), operation("c", "mul.Tensor", 512, dtype="bf16"),
        operation("new.place", "silu", 2048), operation("same", "add", 512),
    )  # fmt: skip
    found = diff(before, after).peak
    assert [(change.kind, change.module, change.operation, change.change_bytes) for change in found.changes] == [
        ("added", "d", "_softmax", 16384), ("removed", "b", "clone", -8192), ("changed", "c", "mul.Tensor", -1024),
    ]  # fmt: skip
    assert found.moved_bytes == 4096
    changed = found.changes[2]
    assert changed.before is not None
    assert changed.after is not None
    assert (changed.before.what, changed.after.what) == ("2 x (256) fp32", "2 x (128) bf16")


def test_what_is_freed_in_the_step_is_no_part_of_the_peak() -> None:
    """The two respects are told apart."""
    gone = operation("a", "clone", 4096, peak_count=0, peak_bytes=0)
    found = diff(record(), record(gone))
    assert found.peak.changes == ()
    assert [change.operation for change in found.step.changes] == ["clone"]


def test_a_name_counts_before_the_operator() -> None:
    """A gradient is a gradient, whichever operator makes it."""
    one, other = (operation("a", op, 512, name="gradient of weight") for op in ("mm", "addmm"))
    assert diff(record(one), record(other)).peak.changes == ()


def test_other_shapes_of_as_many_bytes_are_a_change() -> None:
    """Of 0 bytes, listed last."""
    one, other = (operation("a", "mm", 512, shape=shape) for shape in ("(2, 64)", "(64, 2)"))
    [change] = diff(record(one), record(other)).peak.changes
    assert (change.kind, change.change_bytes) == ("changed", 0)


_OPERATIONS = st.lists(
    st.builds(
        lambda module, operator, shape, count, at_peak: operation(
            module, operator, 512, count, shape=shape, peak_count=min(count, at_peak),
            peak_bytes=512 * min(count, at_peak),
        ),
        st.sampled_from("abc"), st.sampled_from(["mm", "clone"]), st.sampled_from(["(1)", "(2)"]),
        st.integers(1, 3), st.integers(0, 3),
    ),
    max_size=8,
)  # fmt: skip


@given(before=_OPERATIONS, after=_OPERATIONS)
def test_changes_add_up(before: list[Operation], after: list[Operation]) -> None:
    """For any operations the changes are the change of the total, and nothing differs from itself."""
    found = diff(record(*before), record(*after))
    for view, name in ((found.peak, "peak_bytes"), (found.step, "step_bytes")):
        left, right = (sum(getattr(each, name) for each in side) for side in (before, after))
        assert (view.before_bytes, view.after_bytes) == (left, right)
        assert sum(change.change_bytes for change in view.changes) == right - left
    same = diff(record(*before), record(*before))
    assert same.peak.changes == same.step.changes == ()
    assert same.peak.moved_bytes == same.step.moved_bytes == 0


def test_a_record_reads_back() -> None:
    """JSON and back is the same record; another document is refused."""
    made = record(*(operation("a", "mm", 512, category=category.value) for category in Category))
    [data] = step_records_to_json([made])["step_records"]
    assert StepRecord.from_json(data) == made
    for wrong in ({**data, "schema": 99}, {**data, "kind": "prediction"}, {**data, "operations": [{"phase": 1}]}):
        with pytest.raises(BadInputError):
            StepRecord.from_json(wrong)
    with pytest.raises(BadInputError, match="not a category"):
        operation("a", "mm", 512, category="nonsense")


def test_tables() -> None:
    """Both sides, their releases, the operations with what they make, and how many more there are."""
    before = record(versions={**VERSIONS, "transformers": "4.48.1"}, source="old/bin/python")
    after = record(
        *(operation(f"m{n}", "clone", 512 * (n + 1)) for n in range(5)), run=RUN.replace(attn="eager"),
        memory=memory("backward: a"),
    )  # fmt: skip
    figures, peak, step = difference_tables(diff(before, after), most=2)
    said = " ".join(figures.notes)
    assert "old/bin/python: torch 2.13.0+cpu, transformers 4.48.1" in said
    assert "The runs differ in attn (sdpa, eager)." in said
    assert "The peaks are in other moments" in said
    assert [row[0] for row in peak.rows] == ["added", "added", "3 more", "in all"]
    assert "2 x (640) fp32" in render_markdown(peak)
    assert [row[0] for row in step.rows] == [row[0] for row in peak.rows]
    lines = render_csv(records_table(diff(before, after))).splitlines()
    assert sum(line.startswith("peak,added") for line in lines) == 5


def test_nothing_differs() -> None:
    """Said in words, with the totals."""
    one = record(operation("a", "mm", 512))
    _, peak, _ = difference_tables(diff(one, one), most=5)
    assert peak.notes == ("No operation differs.",)
    assert [row[0] for row in peak.rows] == ["in all"]
