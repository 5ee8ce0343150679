"""The numbers and claims of the LoRA-FA paper (arXiv 2308.03303): each with where it stands and how sure it is.

Nothing here is ours: what the engines say of them is computed in `lorafa_prof.claims`. The paper's formulas are in the
modules beside this one.
"""

from __future__ import annotations

from lorafa_prof.results.claims import Statement

#: The ten methods of Fig. 2, in the order of section 6.4.1.
FIGURE_2_METHODS = (
    "lora", "qlora", "vera", "pissa", "lora-plus", "dora", "adalora", "lora-ga", "lora-pro", "lora-fa",
)  # fmt: skip
FIGURE_2_MODEL, FIGURE_2_CARD = "llama2-7b", "a800-80gb"
FIGURE_2_BATCH, FIGURE_2_SEQUENCE, FIGURE_2_RANK = 8, 1024, 64

#: What the paper leaves unsaid of Fig. 2, and how it is read.
FIGURE_2_ASSUMED = (
    "Section 6.4 names neither model, batch, length nor rank: those of appendix C.3 (Llama2-7B, 8 x 1024) and of the "
    "other tables (rank 64, all linear layers) are taken"
)
USED = Statement(
    key="fig2a-used", where="Fig. 2(a), 6.4.1", says="LoRA-FA uses 52.2 GB of one 80 GB A800", value=52.2,
    certainty="uncertain",
    assumed="GB is read as GiB: the benchmarking tool that the paper names divides what the driver "
    "reports by 1024³.",
)  # fmt: skip
OTHERS = Statement(
    key="fig2a-others", where="Fig. 2(a), 6.4.1", says="every other method runs out of memory there",
    certainty="uncertain",
)  # fmt: skip
SAVED = Statement(
    key="fig2a-saved", where="6.4.1", says="LoRA-FA saves more than 27.8 GB over LoRA (80 against 52.2)", value=27.8,
    certainty="uncertain",
    assumed="The 80 are the card: LoRA's demand was not seen, so that 27.8 is the least that the "
    "statement can mean.",
)  # fmt: skip
DOMINANT = Statement(
    key="activations", where="6.4.1", says="activations are the largest part of the memory", certainty="uncertain",
)  # fmt: skip
UNRELATED = Statement(
    key="parameters", where="6.4.1", says="fewer trained parameters do not mean less memory", certainty="uncertain",
    assumed="Read as: VeRA trains fewer parameters than LoRA-FA and takes more memory.",
)  # fmt: skip
BATCH = Statement(
    key="batch", where="6.4.2", says="LoRA-FA's batch goes from 8 to 12", value=12, certainty="uncertain",
    assumed="That no other method reaches 12 is implied.",
)  # fmt: skip
MFU = Statement(
    key="fig2b-mfu", where="Fig. 2(b), 6.4.2",
    says="LoRA-FA's MFU is LoRA's or higher, and above all others'; LoRA-Pro's is nearly unusable",
    certainty="uncertain",
    assumed="The bars have no numbers in the text; methods that Fig. 2(a) has run out of memory have an MFU here, so "
    "that the two were run differently.",
)  # fmt: skip
REMOVED = Statement(
    key="removed", where="6.4.2", says="LoRA-FA removes A's products from the forward and the backward pass",
    certainty="paper",
)  # fmt: skip

FIGURE_4_MODEL, FIGURE_4_RANK = "llama2-7b", 64
SHORT, SHORT_CARD = 2048, "rtx4090"
LONG, LONG_CARD = 4096, "a100-40gb"
FITS_24 = Statement(
    key="fig4a-24", where="Fig. 4(a), E.1, Table 9", certainty="paper",
    says="with FlashAttention LoRA-FA trains 2,048 tokens on an RTX 4090 (24 GB)",
)  # fmt: skip
FAILS_24 = Statement(
    key="fig4a-lora", where="Fig. 4(a), E.1", says="there LoRA runs out of memory", certainty="paper",
)  # fmt: skip
FITS_40 = Statement(
    key="fig4a-40", where="Fig. 4(a), E.1, Table 9", says="LoRA-FA trains 4,096 tokens in 40 GB",
    certainty="uncertain",
    assumed="The text names an A100 of 40 GB, Table 9 an A800 of 80 GB: the smaller one is asked.",
)  # fmt: skip

SWEEP_BATCH, SWEEP_SEQUENCE, SWEEP_RANK = 1, 1024, 64
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
RANK = Statement(
    key="fig4b-rank", where="Fig. 4(b), E.2, Table 11",
    says="LoRA-FA's memory is not significantly affected by the rank, from 1 to 128", certainty="uncertain",
    assumed="Significant is read as more than 10 % from the lowest to the highest; the attention kernel is not named: "
    "FlashAttention, as in Fig. 4(a).",
)  # fmt: skip
LAYERS = Statement(
    key="fig4b-layers", where="Fig. 4(b), E.2, Table 10",
    says="more LoRA-FA layers do not raise the peak", certainty="uncertain",
    assumed="Table 10 does not say which shares of the layers: here all linear layers of the first blocks, from one "
    "block to all. More than 10 % is read as a rise.",
)  # fmt: skip
#: More than this share of the lowest is read as significant.
SIGNIFICANT = 0.10

TERABYTE = Statement(
    key="1tb", where="section 1", value=1e12, certainty="uncertain",
    says="parameters, gradients and AdamW's states of a fully fine-tuned Llama3-70B take more than 1 TB",
    assumed="The precision is not said; 16 bytes a parameter are those of fp32 weights, or of 16-bit ones with an fp32 "
    "master copy.",
)  # fmt: skip
WEIGHTS_65B = Statement(
    key="130gb", where="E.4", says="the 16-bit weights of LLaMA-65B take 130 GB", value=130e9, certainty="paper",
)  # fmt: skip
FEWER_BITS = Statement(
    key="bits", where="E.4", says="8-bit and 4-bit weights take half and a quarter", certainty="paper",
    assumed="bitsandbytes' int8 and NF4; embeddings, norms and head stay in 16 bits.",
)  # fmt: skip
INVERSE = Statement(
    key="8kb", where="5", says="the cached inverse of AᵀA takes about 8 KB at rank 64", value=8192, certainty="paper",
    assumed="In 16 bits, for one layer.",
)  # fmt: skip
SAVING_C3 = Statement(
    key="c3", where="C.3", says="LoRA-FA keeps at least 18 GB of activations less than LoRA (Llama2-7B, 8 x 1024)",
    value=18e9, certainty="uncertain", assumed="The formula behind it is reconstructed: see table C.3 below.",
)  # fmt: skip
HALF = Statement(
    key="half", where="6.2", says="at one rank LoRA-FA trains half of LoRA's parameters; at twice the rank as many",
    certainty="paper",
)  # fmt: skip
