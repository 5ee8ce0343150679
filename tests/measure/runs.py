"""Runs for measuring processes that go wrong: what they do stands in the name of the model."""

from __future__ import annotations

from lorafa_prof.specs import MethodSpec, ModelSpec, RunSpec

#: The module of the measuring process, see there for the words.
FAULTS = "tests.measure.faults"
OPTIONS = {"device": "cpu", "steps": 4, "warmup": 1, "trace": True, "cap_bytes": None}


def faulty_run(deeds: str = "well", *, bs: int = 2) -> RunSpec:
    """A run whose measuring process does these deeds, joined by "+", before its third step."""
    model = ModelSpec(
        name=deeds, architecture="llama", task="causal-lm", hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1,
        head_dim=8, intermediate_size=8, vocab_size=8, max_positions=None, tie_word_embeddings=False,
        hidden_act="silu", config={"model_type": "llama"},
    )  # fmt: skip
    return RunSpec(model=model, method=MethodSpec(name="lora", rank=4), bs=bs, seq=16)
