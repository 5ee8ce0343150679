"""Files of results that somebody else wrote, or that broke on the way: read, or refused in one line."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from lorafa_prof.analytic import predict
from lorafa_prof.analytic.thresholds import ClosedForms
from lorafa_prof.catalog import load_device, load_model
from lorafa_prof.cli.results_files import read_collection
from lorafa_prof.compare import compare
from lorafa_prof.ledger import Category
from lorafa_prof.results import predictions_to_json
from lorafa_prof.results.saved import read_saved
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.thresholds import find_threshold
from tests.fuzz.feeding import SEEDS, altered, call, damaged, fuzz, read_or_refused
from tests.support.hand_made import ledger, measurement, prediction

RUN = RunSpec(model=load_model("llama2-7b"), method=MethodSpec(name="lora-fa"), bs=2, seq=256)


def documents() -> list[dict[str, Any]]:
    """One of each kind that commands write, with everything that it can hold."""
    card = load_device("rtx4090")
    seen = replace(measurement(), ledger=ledger((Category.WEIGHTS, "model", "weight", 100)))
    said = prediction()
    return [
        json.loads(predictions_to_json([predict(RUN, [card]), said])),
        {"measurements": [seen.to_json()]},
        {"comparisons": [compare(seen, [said]).to_json()]},
        {"thresholds": [find_threshold(ClosedForms(), RUN, "bs", card).to_json()]},
        {"sweep": {}, "rows": [ROW]},
    ]


ROW: dict[str, Any] = {
    "model": "llama2-7b", "method": "lora", "engine": "analytic", "bs": 2, "seq": 256, "rank": 64, "amp": False,
    "dropout": 0.0, "gpus": 1, "peak_allocated_bytes": 2**34, "peak_moment": "loss", "device": "rtx4090",
    "capacity_bytes": 2**35, "context_bytes": 2**28, "fits": True, "headroom_bytes": 2**34, "max_bs": 5, "error": None,
}  # fmt: skip
TABLE = "\r\n".join(
    [",".join(ROW), *(",".join("" if value is None else str(value) for value in ROW.values()) for _ in range(3)), ""]
)
DOCUMENTS = documents()
TEXTS = [json.dumps(document).encode() for document in DOCUMENTS]


def read_and_use(folder: Path, name: str, data: bytes) -> None:
    """Read a file of results; of what is read make plain data, which must be JSON."""
    path = folder / name
    path.write_bytes(data)
    found = read_or_refused(lambda: read_collection([str(path)]))
    if found is None:
        return
    for each in (*found.measurements, *found.predictions, *found.comparisons, *found.thresholds):
        json.dumps(each.to_json())
    for row in found.rows:
        assert row.settings["model"]


@fuzz(1500, seed=SEEDS)
def test_documents_with_other_values(folder: Path, seed: int) -> None:
    """Some values of a good document are others, of any type, missing or doubled."""
    chance = random.Random(seed)
    document = altered(chance.choice(DOCUMENTS), chance)
    read_and_use(folder, "run.json", json.dumps(document).encode("utf-8", "surrogatepass"))


@fuzz(1000, seed=SEEDS)
def test_damaged_documents(folder: Path, seed: int) -> None:
    """Bytes of a good document are changed, cut out, doubled."""
    chance = random.Random(seed)
    read_and_use(folder, "run.json", damaged(chance.choice(TEXTS), chance))


@fuzz(700, seed=SEEDS)
def test_damaged_tables(folder: Path, seed: int) -> None:
    """The same of a sweep's CSV."""
    chance = random.Random(seed)
    read_and_use(folder, "sweep.csv", damaged(TABLE.encode(), chance))


@fuzz(700, seed=SEEDS)
def test_a_file_that_a_measurement_goes_on_with(folder: Path, seed: int) -> None:
    """Whatever was cut off or changed: the measurements that are whole, or a refusal that leaves the file alone."""
    chance = random.Random(seed)
    text = damaged(TEXTS[1], chance).decode("utf-8", "replace")
    saved = read_or_refused(lambda: read_saved(text))
    if saved is not None:
        json.dumps(saved.entries, allow_nan=False)


class _Tags(HTMLParser):
    """Collects what a page would do beyond showing text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.handlers: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.handlers |= {name for name, _ in attrs if name.startswith("on")}


_TEXTS_OF_TAGS = (
    "<script>alert(1)</script>",
    "</td></table><img src=x onerror=alert(1)>",
    "<b onclick=x>",
    "&lt;i&gt;",
)


def with_tags(value: Any, chance: random.Random) -> Any:
    """Return plain data in which about a third of the texts hold HTML."""
    if isinstance(value, dict):
        return {key: with_tags(inner, chance) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_tags(inner, chance) for inner in value]
    return chance.choice(_TEXTS_OF_TAGS) if isinstance(value, str) and chance.random() < 0.35 else value


@fuzz(150, seed=SEEDS)
def test_no_text_of_a_file_becomes_a_tag(folder: Path, seed: int) -> None:
    """A page of results whose names, messages and versions are HTML shows it as text."""
    chance = random.Random(seed)
    document = json.loads(TEXTS[chance.randrange(len(TEXTS) - 1)])
    (kind,) = document
    for entry in document[kind]:  # free texts; where a name has to be known, another would only be refused
        for key in ("versions", "environment", "assumptions", "unmodelled", "error", "command"):
            if key in entry:
                entry[key] = with_tags(entry[key], chance)
    (folder / "run.json").write_text(json.dumps(document))
    answer = call(["report", "run.json", "--no-figures", "-o", "-", "--title", chance.choice(_TEXTS_OF_TAGS)])
    if answer.code == 0:
        page = _Tags()
        page.feed(answer.out)
        assert not page.tags & {"script", "img", "b", "i"}
        assert not page.handlers
        assert not re.search(r"<script|onerror=[^&]*>", answer.out)


@fuzz(150, seed=SEEDS)
def test_commands_over_altered_files(folder: Path, seed: int) -> None:
    """report, compare and predictions that are read again, over documents with other values."""
    chance = random.Random(seed)
    for name in ("a.json", "b.json"):
        (folder / name).write_text(json.dumps(altered(chance.choice(DOCUMENTS[:4]), chance, most=2)), "utf-8")
    args = chance.choice(
        (
            ["report", "a.json", "b.json", "--no-figures", "-o", "page.html"],
            ["compare", "a.json", "b.json", "--engine", "analytic", "--format", "json"],
            ["compare", "a.json", "b.json", "--engine", "analytic"],
        )
    )
    answer = call(args)
    if "json" in args and answer.code == 0:
        json.loads(answer.out)
