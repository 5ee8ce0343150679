"""The architectures that the analytic engine knows, by transformers' model_type."""

from __future__ import annotations

from typing import Protocol

from lorafa_prof.analytic.builder import Builder
from lorafa_prof.analytic.tensors import Tensor
from lorafa_prof.errors import UnsupportedError

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "granite")
MIXTURES_OF_EXPERTS = ("mixtral", "deepseek_v2", "qwen2_moe", "qwen3_moe")
GPT2_LIKE = ("gpt2", "gpt_bigcode")
BERT_LIKE = ("bert", "roberta", "xlm-roberta")
KNOWN = (*LLAMA_LIKE, *MIXTURES_OF_EXPERTS, *GPT2_LIKE, *BERT_LIKE, "t5")


class Model(Protocol):
    """A built model."""

    batch: tuple[Tensor, Tensor, Tensor]
    """Token ids and labels, alive through the step."""

    def loss(self) -> Tensor:
        """Run the forward over a batch and return the loss."""


def build(builder: Builder) -> Model:
    """Build the model of the builder's run.

    Raises:
        UnsupportedError: an architecture that this engine does not know.
    """
    architecture = builder.spec.architecture
    if architecture in LLAMA_LIKE:
        from lorafa_prof.analytic.families.llama import LlamaLike

        return LlamaLike(builder)
    if architecture in MIXTURES_OF_EXPERTS:
        from lorafa_prof.analytic.families.moe import MixtureOfExperts

        return MixtureOfExperts(builder)
    if architecture in GPT2_LIKE:
        from lorafa_prof.analytic.families.gpt2 import Gpt2

        return Gpt2(builder)
    if architecture in BERT_LIKE:
        from lorafa_prof.analytic.families.roberta import Classifier

        return Classifier(builder)
    if architecture == "t5":
        from lorafa_prof.analytic.families.t5 import T5

        return T5(builder)
    raise UnsupportedError(
        f"the analytic engine does not model the architecture {architecture!r} of {builder.spec.name} "
        f"(it does: {', '.join(KNOWN)}); --engine simulate runs it"
    )
