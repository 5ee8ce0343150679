"""Two engines that share no code on the way agree: closed forms, and the real step on meta tensors.

The closed forms follow the modelling code by hand; the simulation runs it. Where the peak is not inside a kernel, both
say the same bytes, and of every part the same: weights, activations, temporaries and all others.
"""

from __future__ import annotations

from typing import Any

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.analytic.plan import plan
from lorafa_prof.catalog import load_model
from lorafa_prof.ledger import Category
from lorafa_prof.simulate.engine import predict as simulate
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.ledgers import moment
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.specs import METHODS, MethodSpec, RunSpec
from lorafa_prof.units import allocated
from tests.analytic.runs import run_of
from tests.analytic.test_experts import observed_phases, phases
from tests.support.supported import ARCHITECTURES, architecture_run

A100 = DeviceTraits((8, 0), 108)

FAMILIES = (
    "llama", "mistral-window", "gemma3_text-window", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "granite",
    "gpt2", "gpt_bigcode", "t5",
)  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "autocast": {"amp": True, "dtype": "fp32"},
    "checkpointing": {"checkpointing": "full"},
    "eager, dropout": {"attn": "eager", "dropout": 0.1},
}


#: Bytes of each category at the peak; together they are the peak.
Parts = dict[Category, int]


def simulated(run: RunSpec, inside: str = "") -> tuple[Parts, str]:
    """What is alive at the peak of the second step, and where that is.

    Each storage is rounded up to 512 bytes, as closed forms do; buffers of kernels and libraries are left out, but for
    those of operators whose names begin with `inside`.
    """
    platform = Cuda(A100, "2.13.0")
    trace = record(run, platform).trace(2, platform)
    left_out = [b.category is Category.WORKSPACES and not (inside and b.op.startswith(inside)) for b in trace.blocks]
    sizes = [0 if left else allocated(b.nbytes) for b, left in zip(trace.blocks, left_out, strict=True)]
    live = top = peak = 0
    second = trace.position("forward")
    for position, event in enumerate(trace.events):
        live += sizes[event] if event >= 0 else -sizes[~event]
        if position >= second and live > top:
            top, peak = live, position
    parts = dict.fromkeys(Category, 0)
    for number in trace.alive_at(peak):
        category = trace.blocks[number].category
        parts[Category.TEMPORARIES if category is Category.WORKSPACES else category] += sizes[number]
    return parts, moment(trace.blocks[trace.events[peak]])


def closed_form(run: RunSpec) -> Parts:
    """The analytic engine's parts without cuBLAS workspaces; the peak has to be one that is in no kernel."""
    prediction = predict(run)
    assert prediction.ledger is not None
    hidden = ("attention backward", "gradient of expanded", "dequantised weight")
    assert not any(item.tensor.startswith(hidden) for item in prediction.ledger.items)
    parts = prediction.ledger.parts()
    assert sum(parts.values()) == prediction.memory.peak_allocated_bytes
    return parts | {Category.WORKSPACES: 0}


def cases() -> list[Any]:
    """Every family with one method a time; the whole product is left to the slow tests."""
    made = []
    for i, family in enumerate(FAMILIES):
        for j, method in enumerate(("full", "lora", "lora-fa", "vera")):
            for k, (name, options) in enumerate(OPTIONS.items()):
                marks = () if (i + j + k) % 4 == 0 else pytest.mark.slow
                made.append(pytest.param(family, method, options, id=f"{family}-{method}-{name}", marks=marks))
    return made


@pytest.mark.parametrize(("family", "method", "options"), cases())
def test_tiny_models(family: str, method: str, options: dict[str, Any]) -> None:
    """With a vocabulary so large that the loss is the peak."""
    run = run_of(family, method, layers=5, changes={"vocab_size": 6000}, optimizer="adamw", **options)
    assert simulated(run)[0] == closed_form(run)


LORA_FA: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16 adapters": {"adapter_dtype": "bf16"},
    "autocast over fp32": {"amp": True, "dtype": "fp32"},
    "autocast, checkpointing": {"amp": True, "checkpointing": "full"},
    "selective, dropout": {"checkpointing": "selective", "dropout": 0.1},
    "eager, dropout, fp32": {"attn": "eager", "dropout": 0.1, "dtype": "fp32"},
    "fp16, one sequence": {"dtype": "fp16", "bs": 1, "rank": 17},
}


def lora_fa_cases() -> list[Any]:
    """Every family with every option; one in seven by default."""
    made = []
    for i, family in enumerate((*FAMILIES, "llama-bias", "roberta")):
        for k, (name, options) in enumerate(LORA_FA.items()):
            if family == "t5" and "fp16" in name:
                continue  # closed forms do not have that
            marks = () if (i + k) % 7 == 0 else pytest.mark.slow
            made.append(pytest.param(family, "lora-fa", options, id=f"{family}-{name}", marks=marks))
    return made


@pytest.mark.parametrize(("family", "method", "options"), lora_fa_cases())
def test_every_phase_of_our_lora_fa(family: str, method: str, options: dict[str, Any]) -> None:
    """Its node of autograd and its optimizer: forward, backward and step are each as high as the real step's; and what
    autograd keeps is as much.
    """
    run = run_of(family, method, layers=6, **options)
    assert phases(plan(run), run) == observed_phases(run)
    assert simulate(run).memory.saved_activations_bytes == predict(run).memory.saved_activations_bytes


def test_what_our_lora_fa_keeps() -> None:
    """Beside what full checkpointing of nothing would keep: 2 N r bytes a module, where PEFT's casts make it 4 N r."""
    kept = {
        method: predict(run_of("llama", method, layers=9, rank=rank)).memory.saved_activations_bytes or 0
        for method, rank in (("lora-fa", 4), ("lora-fa-peft", 4))
    }
    more = predict(run_of("llama", "lora-fa", layers=9, rank=12)).memory.saved_activations_bytes or 0
    modules, tokens = 9 * 7, 3 * 22
    assert more - kept["lora-fa"] == modules * tokens * 2 * 8
    assert kept["lora-fa-peft"] - kept["lora-fa"] == modules * tokens * 2 * 4


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "mixtral", "gpt_bigcode"])
@pytest.mark.parametrize(("method", "options"), [("full", {}), ("lora", {"bs": 1}), ("lora-fa", {"seq": 400})])
def test_grouped_heads_in_fp32(family: str, method: str, options: dict[str, Any]) -> None:
    """No fused kernel takes them: the unfused one, whose scores are the peak of long sequences."""
    longer = {"n_positions": 400} if family == "gpt_bigcode" else {"max_position_embeddings": 400}
    method = "lora-fa-peft" if (family, method) == ("mixtral", "lora-fa") else method
    run = run_of(family, method, dtype="fp32", optimizer="adamw", changes=longer, **options)
    assert simulated(run)[0] == closed_form(run)


MASKED = ("llama", "mistral-window", "gemma3_text-window", "qwen3", "gemma2", "phi3", "gpt2", "gpt_bigcode", "mixtral")


@pytest.mark.parametrize("seq", [22, 32])
@pytest.mark.parametrize("family", MASKED)
def test_padded_batches(family: str, seq: int) -> None:
    """A mask of which not all is set: every layer of sdpa makes a bias of it, padded to multiples of 16 tokens."""
    for number, options in enumerate(OPTIONS.values()):
        if (number + len(family)) % 2:
            continue
        kept = {
            k: v for k, v in options.items() if (family, k) != ("mixtral", "dropout")
        }  # PEFT refuses it for experts
        method = "lora" if number % 2 == 0 else "lora-fa-peft" if family == "mixtral" else "lora-fa"
        run = run_of(
            family, method, layers=5, changes={"vocab_size": 6000}, optimizer="adamw",
            padded=True, seq=seq, **kept,
        )  # fmt: skip
        assert simulated(run)[0] == closed_form(run)


#: Architectures of which no other test here has the methods, and methods of which none has the architectures.
WHOLE_COLUMNS = ("gemma", "bert", "xlm-roberta", "qwen2_moe", "qwen3_moe")
WHOLE_ROWS = ("lora-fa-peft", "pissa", "lora-plus", "lora-fb", "lora-qv", "qlora", "qlora-fa", "adalora", "lora-pro")


#: What PEFT, the optimizer or our LoRA-FA does not have for fused experts.
NOT_OF_EXPERTS = ("dora", "pissa", "lora-pro", "lora-fa", "qlora-fa")


def rest() -> list[Any]:
    """What no other test here has: architectures beside their nearest relatives, methods beside theirs."""
    made = []
    for i, architecture in enumerate(ARCHITECTURES):
        for j, method in enumerate(METHODS):
            if method == "lora-ga":
                continue  # which has a test of its own
            if architecture in WHOLE_COLUMNS or method in WHOLE_ROWS:
                if architecture in ("mixtral", "deepseek_v2", "qwen3_moe") and method in NOT_OF_EXPERTS:
                    continue
                marks = () if (i + j) % 11 == 0 else pytest.mark.slow
                made.append(pytest.param(architecture, method, id=f"{architecture}-{method}", marks=marks))
    return made


@pytest.mark.parametrize(("architecture", "method"), rest())
def test_the_rest_of_the_methods(architecture: str, method: str) -> None:
    """Each architecture of the catalog with methods that share their forms with others."""
    options = {} if method == "lora-pro" else {"optimizer": "adamw"}
    if architecture in ("bert", "roberta", "xlm-roberta"):
        # a classifier's loss is small: the peak is in a layer, with flash attention inside its backward, whose
        # accumulators `simulated` leaves out
        options["attn"] = "eager"
    run = architecture_run(architecture, method, layers=5, changes={"vocab_size": 6000}, **options)
    assert simulated(run)[0] == closed_form(run)


ADALORA: dict[str, dict[str, Any]] = {
    **OPTIONS,
    "bf16 adapters, dropout": {"adapter_dtype": "bf16", "dropout": 0.1},
    "autocast over bf16, checkpointing": {"amp": True, "checkpointing": "full"},
    "fp16, one sequence": {"dtype": "fp16", "bs": 1},
    "sgd": {"optimizer": "sgd"},
    "adamw-fused": {"optimizer": "adamw-fused"},
}


def adalora_cases() -> list[Any]:
    """Layers with and without biases, whose products are views or not; one option each is quick."""
    made = []
    for i, family in enumerate(("llama", "gpt2", "llama-bias", "qwen3", "gemma2", "phi3", "t5", "roberta")):
        for k, (name, options) in enumerate(ADALORA.items()):
            marks = () if i == k and i < 4 else pytest.mark.slow
            made.append(pytest.param(family, options, id=f"{family}-{name}", marks=marks))
    return made


@pytest.mark.parametrize(("family", "options"), adalora_cases())
def test_adalora(family: str, options: dict[str, Any]) -> None:
    """Its regulariser runs over all layers after the loss; its importances are made anew after the optimizer's step."""
    run = run_of(family, "adalora", layers=6, changes={"vocab_size": 6000}, **{"optimizer": "adamw", **options})
    assert simulated(run)[0] == closed_form(run)


def test_adalora_where_the_importances_are_the_peak() -> None:
    """SGD has no temporaries of its own. Of two tokens and 64 words little is kept; of one wide B there are three new
    tensors as the importances are made, beside two gradients at the most in backward.
    """
    small = {"vocab_size": 64, "intermediate_size": 4096}
    run = run_of(
        "llama", "adalora", layers=1, rank=64, bs=1, seq=2, targets=("up_proj",), optimizer="sgd", changes=small
    )  # fmt: skip
    found, where = simulated(run)
    assert where.startswith("optimizer")
    # the one of the three that stays counts among the states there, among the temporaries here
    new = 4 * 64 * 4096
    form = closed_form(run)
    assert found == form | {
        Category.OPTIMIZER: form[Category.OPTIMIZER] + new, Category.TEMPORARIES: form[Category.TEMPORARIES] - new
    }  # fmt: skip


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_adalora_over_micro_batches(family: str) -> None:
    """A gradient that the regulariser has made waits for its layer's, which comes last; only then is it added to that
    of the micro-batch before: in the layers between the ends too, of which one stands for all.
    """
    run = run_of(family, "adalora", layers=7, changes={"vocab_size": 20000}, optimizer="adamw", accumulation=2)
    assert simulated(run)[0] == closed_form(run)


def quantised_cases() -> list[Any]:
    """Layers of all kinds: GPT-2's, which are transposed before they are quantised, with biases and without."""
    made = []
    for i, family in enumerate(("gpt2", "gpt_bigcode", "llama-bias", "qwen3")):
        for j, (method, quant) in enumerate(
            (("qlora", "nf4"), ("qlora-fa", "nf4-dq"), ("lora-fb", "nf4"), ("vera", "nf4-dq"))
        ):
            for k, (name, options) in enumerate({**OPTIONS, "fp16": {"dtype": "fp16"}}.items()):
                quick = (family == "gpt2" and (j + k) % 3 == 0) or (i + j + k) % 5 == 0
                marks = () if quick else pytest.mark.slow
                made.append(pytest.param(family, method, quant, options, id=f"{family}-{method}-{name}", marks=marks))
    return made


@pytest.mark.parametrize(("family", "method", "quant", "options"), quantised_cases())
def test_quantised_weights(family: str, method: str, quant: Any, options: dict[str, Any]) -> None:
    """Packed weights, their scales and tables, products in bf16 whatever the dtype, biases that become bf16."""
    changes = {"vocab_size": 6000}
    run = run_of(family, method, quant=quant, layers=5, changes=changes, optimizer="adamw", **options)
    assert simulated(run)[0] == closed_form(run)


@pytest.mark.parametrize("family", ["t5", pytest.param("llama", marks=pytest.mark.slow)])
def test_clones_of_quantised_results(family: str) -> None:
    """PEFT clones what a 4-bit layer returns, for VeRA too: where the layer runs again what was kept of it goes, and
    the clone is there.
    """
    options = {"checkpointing": "selective", "attn": "eager", "optimizer": "sgd"}
    run = run_of(family, "vera", quant="nf4", layers=3, **options)
    assert simulated(run)[0] == closed_form(run)


INT8: dict[str, dict[str, Any]] = {
    "plain": {"changes": {"vocab_size": 6000}},
    "autocast": {"amp": True, "dtype": "fp32", "changes": {"vocab_size": 6000}},
    "fp16": {"dtype": "fp16", "changes": {"vocab_size": 6000}},
    "eager, dropout": {"attn": "eager", "dropout": 0.1},
    "checkpointing": {"attn": "eager", "checkpointing": "full"},
    "selective": {"attn": "eager", "checkpointing": "selective", "amp": True},
    "prepared": {"attn": "eager", "prepare_kbit": "peft"},
    "one sequence": {"attn": "eager", "bs": 1, "rank": 17},
}


def int8_cases() -> list[Any]:
    """Layers with biases and without, transposed ones, experts beside them; one in ten by default."""
    made = []
    for i, family in enumerate(("llama", "llama-bias", "gpt2", "qwen3", "phi3", "roberta", "mixtral", "t5")):
        for j, method in enumerate(("lora", "lora-fa", "lora-fb", "vera")):
            for k, (name, options) in enumerate(INT8.items()):
                if family == "mixtral" and ("dropout" in name or name == "prepared"):
                    continue  # PEFT has no dropout for experts, closed forms do not prepare them
                if family == "mixtral" and method == "lora-fa":
                    continue  # ours adapts linear layers alone
                if family == "t5" and name == "fp16":
                    continue  # closed forms do not have it
                # roberta's loss is small, and no peak: attention's would be, inside its kernel
                chosen = {**options, "attn": "eager"} if family == "roberta" else options
                marks = () if (i + j + k) % 10 == 0 else pytest.mark.slow
                made.append(pytest.param(family, method, chosen, id=f"{family}-{method}-{name}", marks=marks))
    return made


@pytest.mark.parametrize(("family", "method", "options"), int8_cases())
def test_int8_weights(family: str, method: str, options: dict[str, Any]) -> None:
    """LLM.int8(): each layer's input stays as long as the graph does, also where it is checkpointed; the backward makes
    a weight of 16 or 32 bits at a time. What the two operators allocate inside counts too.
    """
    run = run_of(family, method, quant="int8", layers=5, optimizer="sgd", **options)
    assert simulated(run, inside="bitsandbytes.int8")[0] == closed_form(run)


def test_int8_layers_keep_their_inputs() -> None:
    """What bitsandbytes holds in its contexts, whatever is checkpointed: in 16 bits the input of query, key and value
    (48 wide), of the output projection (6 heads of 16), of gate and up (48) and of down (112), of 3 x 22 tokens.
    """
    kept = {
        (quant, checkpointing): predict(
            run_of("llama", "lora-fa", quant=quant, layers=9, checkpointing=checkpointing)
        ).memory.saved_activations_bytes or 0
        for quant in ("nf4", "int8") for checkpointing in ("none", "full")
    }  # fmt: skip
    assert kept["int8", "none"] - kept["nf4", "none"] > 0
    assert kept["int8", "full"] - kept["nf4", "full"] == 9 * 3 * 22 * 2 * (48 + 6 * 16 + 48 + 112)


def prepared_cases() -> list[Any]:
    """Families with what each has beside quantised layers; under autocast, as TRL trains, and without."""
    made = []
    for i, family in enumerate(("llama-bias", "gpt2", "gemma2", "qwen3", "granite", "phi3", "gpt_bigcode", "roberta")):
        for j, preparation in enumerate(("peft", "trl")):
            for k, (name, options) in enumerate({"autocast": {"amp": True}, "eager": {"attn": "eager"}}.items()):
                if family == "roberta" and (preparation, name) != ("peft", "eager"):  # TRL's are causal models
                    continue
                if (preparation, name) == ("trl", "eager"):  # TRL trains under autocast
                    continue
                marks = () if (i + j + k) % 3 == 0 else pytest.mark.slow
                made.append(
                    pytest.param(family, preparation, options, id=f"{family}-{preparation}-{name}", marks=marks)
                )
    return made


@pytest.mark.parametrize(("family", "preparation", "options"), prepared_cases())
def test_prepared_weights(family: str, preparation: Any, options: dict[str, Any]) -> None:
    """Norms, embeddings and head in fp32, or the last two back in bf16: and all that their dtype makes of the rest."""
    run = run_of(
        family, "qlora", layers=5, changes={"vocab_size": 6000}, optimizer="adamw", prepare_kbit=preparation, **options
    )
    assert simulated(run)[0] == closed_form(run)


@pytest.mark.parametrize("family", ["mistral-window", "gemma3_text-window"])
@pytest.mark.parametrize("options", [{}, {"checkpointing": "full"}], ids=["plain", "checkpointing"])
def test_windows_of_flash_attention(family: str, options: dict[str, Any]) -> None:
    """A window that is shorter than the sequence costs flash attention nothing: no mask, no other kernel."""
    run = run_of(family, "lora", attn="flash", layers=5, changes={"vocab_size": 6000}, **options)
    assert simulated(run)[0] == closed_form(run)


def test_autocast_of_repeated_heads() -> None:
    """With a mask, and one key/value head for all: autocast copies the head once a query head, though it is a view."""
    changes = {"vocab_size": 6000, "num_key_value_heads": 1}
    run = run_of("gemma3_text-window", "lora", layers=5, changes=changes, amp=True, dtype="fp32")
    assert simulated(run)[0] == closed_form(run)


@pytest.mark.parametrize(
    ("model", "method", "options"),
    [
        ("llama2-7b", "lora-fa", {"bs": 8, "seq": 1024}),
        ("llama2-7b", "lora-fa-peft", {"bs": 8, "seq": 1024}),
        ("gpt2", "lora", {"bs": 4, "seq": 512, "quant": "nf4-dq"}),
        ("llama3-8b", "qlora", {"bs": 2, "seq": 2048, "checkpointing": "full"}),
        pytest.param("mistral-7b", "lora", {"bs": 4, "seq": 4096, "checkpointing": "full"}, marks=pytest.mark.slow),
        pytest.param("qwen3-8b", "vera", {"bs": 3, "seq": 512}, marks=pytest.mark.slow),
        pytest.param(
            "llama3.2-1b", "full", {"bs": 4, "seq": 1024, "dtype": "fp32", "amp": True}, marks=pytest.mark.slow
        ),
        pytest.param("llama3-70b", "lora", {"bs": 1, "seq": 1024}, marks=pytest.mark.slow),
    ],
)
def test_models_of_full_size(model: str, method: str, options: dict[str, Any]) -> None:
    """Real configurations: billions of parameters, of which no byte is allocated."""
    run = RunSpec(model=load_model(model), method=MethodSpec(name=method), **options)
    assert simulated(run)[0] == closed_form(run)


# -- checkpointed steps whose peak is in a layer ---------------------------------------------------------------------


def checkpointed() -> list[Any]:
    """Every family with every method, in bf16 and under autocast; a third of them by default."""
    made = []
    for i, family in enumerate((*FAMILIES, "gemma3_text-window", "roberta")):
        for j, method in enumerate(("full", "lora", "lora-fa", "vera", "lora-fa-peft")):
            for k, (name, options) in enumerate({"bf16": {}, "autocast": OPTIONS["autocast"]}.items()):
                marks = () if (i + j + k) % 3 == 0 else pytest.mark.slow
                made.append(pytest.param(family, method, options, id=f"{family}-{method}-{name}", marks=marks))
    return made


@pytest.mark.parametrize(("family", "method", "options"), checkpointed())
def test_parts_of_checkpointed_layers(family: str, method: str, options: dict[str, Any]) -> None:
    """Of recomputed tensors both say which are kept and which are there for a moment, to the byte.

    SGD has no states and eager attention no buffers, so that the peak is in a layer's recomputation or backward. There
    is nothing to be allowed for. Under LoRA-FA some layers keep less than the loss of 250 words; it has fewer.
    """
    fewer = {"changes": {"vocab_size": 100}} if method == "lora-fa" else {}
    options = {**options, **fewer, "attn": "eager"}
    run = run_of(family, method, layers=5, checkpointing="full", optimizer="sgd", **options)
    parts, where = simulated(run)
    assert parts == closed_form(run)
    said = predict(run).memory.peak_moment
    assert said.startswith(("recompute: ", "backward: "))
    assert where.startswith(said)  # the simulation's may name a module further in: an adapter's, an activation


@pytest.mark.parametrize(
    ("model", "method", "options"),
    [
        ("roberta-base", "qlora", {"bs": 2, "seq": 512}),
        ("bert-base", "lora-fa", {"bs": 2, "seq": 512}),
        pytest.param("qwen3-30b-a3b", "lora-fa", {"bs": 1, "seq": 512}, marks=pytest.mark.slow),
        pytest.param("qwen1.5-moe-a2.7b", "lora", {"bs": 1, "seq": 512}, marks=pytest.mark.slow),
        ("roberta-base", "lora", {"bs": 2, "seq": 512}),
        ("llama2-7b", "lora", {"bs": 4, "seq": 512}),
        pytest.param("llama2-7b", "full", {"bs": 4, "seq": 512, "optimizer": "sgd"}, marks=pytest.mark.slow),
        pytest.param("mistral-7b", "qlora", {"bs": 4, "seq": 512}, marks=pytest.mark.slow),
        pytest.param("qwen3-8b", "qlora", {"bs": 4, "seq": 512}, marks=pytest.mark.slow),
        pytest.param("gemma2-2b", "lora-fa", {"bs": 4, "seq": 512}, marks=pytest.mark.slow),
        pytest.param("t5-base", "full", {"bs": 4, "seq": 512, "optimizer": "sgd"}, marks=pytest.mark.slow),
    ],
)
def test_parts_of_checkpointed_models(model: str, method: str, options: dict[str, Any]) -> None:
    """Real configurations, with the attention that they run by default."""
    run = RunSpec(model=load_model(model), method=MethodSpec(name=method), checkpointing="full", **options)
    assert simulated(run)[0] == closed_form(run)


SELECTIVE: dict[str, dict[str, Any]] = {
    "eager": {"attn": "eager"},
    "eager, autocast": {"attn": "eager", "amp": True, "dtype": "fp32"},
    "sdpa, one sequence": {"bs": 1, "changes": {"vocab_size": 12000}},
    "sdpa, dropout": {"dropout": 0.1, "amp": True, "changes": {"vocab_size": 6000}},
    "eager, fp16": {"attn": "eager", "dtype": "fp16"},
}


def selective_cases() -> list[Any]:
    """Every family with every method and option; one in thirteen by default."""
    made = []
    for i, family in enumerate((*FAMILIES, "roberta", "mixtral", "deepseek_v2")):
        for j, method in enumerate(("full", "lora", "lora-fa", "vera", "dora", "qlora", "lora-fa-peft")):
            for k, (name, options) in enumerate(SELECTIVE.items()):
                experts = family in ("mixtral", "deepseek_v2")
                if experts and (method in ("dora", "lora-fa") or "dropout" in name):
                    continue  # experts have none of these
                if family == "t5" and "fp16" in name:
                    continue  # closed forms do not have it
                marks = () if (i + j + k) % 13 == 0 else pytest.mark.slow
                made.append(pytest.param(family, method, options, id=f"{family}-{method}-{name}", marks=marks))
    return made


@pytest.mark.parametrize(("family", "method", "options"), selective_cases())
def test_parts_of_selectively_checkpointed_layers(family: str, method: str, options: dict[str, Any]) -> None:
    """Results of products and attention stay, to be taken when their layer runs again; all others come anew."""
    run = run_of(family, method, layers=6, checkpointing="selective", optimizer="sgd", **options)
    assert simulated(run)[0] == closed_form(run)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "t5", "roberta"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_the_forward_leaves(family: str, checkpointing: str, method: str) -> None:
    """Autograd keeps the same: with checkpointing also the leaf that enable_input_require_grads makes, and all that a
    region is given to run once more.
    """
    run = run_of(family, method, checkpointing=checkpointing)
    assert simulate(run).memory.saved_activations_bytes == predict(run).memory.saved_activations_bytes


@pytest.mark.parametrize("family", ["llama", "gemma2", "t5"])
def test_the_heads_weight_under_autocast(family: str) -> None:
    """Its copy in bf16 is kept for the backward of a product: an activation, for it is neither logits nor the loss."""
    run = run_of(family, "lora", changes={"vocab_size": 6000}, amp=True, dtype="fp32")
    copy = f"(6000, {run.model.hidden_size})", "bf16"
    for prediction in (predict(run), simulate(run)):
        assert prediction.ledger is not None
        assert [item.category for item in prediction.ledger.items if (item.shape, item.dtype) == copy] == [
            Category.ACTIVATIONS
        ]
    assert simulated(run)[0] == closed_form(run)


# -- the optimizer's step --------------------------------------------------------------------------------------------


def highest_while_stepping(run: RunSpec) -> int:
    """Most that is alive in the second step's optimizer, counted as in `simulated`."""
    platform = Cuda(A100, "2.13.0")
    trace = record(run, platform).trace(2, platform)
    sizes = [0 if b.category is Category.WORKSPACES else allocated(b.nbytes) for b in trace.blocks]
    begins, ends = trace.position("optimizer"), trace.position("zero_grad")
    live = highest = 0
    for position, event in enumerate(trace.events[:ends]):
        live += sizes[event] if event >= 0 else -sizes[~event]
        highest = max(highest, live) if position >= begins else 0
    return highest


def stepping_cases() -> list[Any]:
    """LoRA-Pro's two kinds of moments; ranks at which one or another of its matrices is the largest."""
    options: dict[str, dict[str, Any]] = {
        "rank 4": {}, "rank 1": {"rank": 1}, "rank 32": {"rank": 32}, "bf16 adapters": {"adapter_dtype": "bf16"},
        "autocast, rank 17": {"dtype": "fp32", "amp": True, "rank": 17},
    }  # fmt: skip
    made = []
    for i, family in enumerate(("llama", "gpt2", "roberta")):
        for j, optimizer in enumerate(("lora-pro", "lora-pro-full")):
            for k, (name, chosen) in enumerate(options.items()):
                marks = () if (i + j + k) % 5 == 0 else pytest.mark.slow
                made.append(pytest.param(family, optimizer, chosen, id=f"{family}-{optimizer}-{name}", marks=marks))
    return made


@pytest.mark.parametrize(("family", "optimizer", "options"), stepping_cases())
def test_the_step_of_lora_pro(family: str, optimizer: Any, options: dict[str, Any]) -> None:
    """What its optimizer holds at most, and the peak: of two tokens the optimizer's step often is the peak."""
    run = run_of(family, "lora-pro", layers=5, bs=1, seq=2, attn="eager", optimizer=optimizer, **options)
    assert highest_while_stepping(run) == plan(run).peak(run.bs, run.seq).phases["optimizer step"]
    assert simulated(run)[0] == closed_form(run)
