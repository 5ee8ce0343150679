"""Multi-head latent attention (DeepSeek-V2): keys and values pass through a narrow latent.

A part of each head carries the rotary positions, as a complex product; the keys of all heads share theirs. Follows
transformers' DeepseekV2Attention, variable by variable.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.attention import AttentionOptions, attend_with_weights, split_heads
from lorafa_prof.analytic.builder import Builder, Linear, Norm
from lorafa_prof.analytic.families.common import not_modelled
from lorafa_prof.analytic.ops_norm import rms_norm
from lorafa_prof.analytic.tape import Tape
from lorafa_prof.analytic.tensors import Grads, Tensor
from lorafa_prof.specs import ITEMSIZE, MlaSpec, RunSpec


@dataclass(frozen=True, slots=True)
class LatentShared:
    """What the model's forward hands to every layer, and so holds to its end."""

    table: Tensor
    options: AttentionOptions
    mask: Tensor | None
    positions: Tensor


class LatentAttention:
    """Projections into and out of the latents, rotary positions, attention, output projection."""

    def __init__(self, builder: Builder, mla: MlaSpec) -> None:
        spec = builder.spec
        d, heads, bias = spec.hidden_size, spec.num_heads, spec.attention_bias
        self.mla, self.heads, latent = mla, heads, mla.kv_lora_rank
        self.head_dim = mla.qk_nope_head_dim + mla.qk_rope_head_dim
        rank = mla.q_lora_rank
        with builder.inside("self_attn"):
            self.narrow: tuple[Linear, Norm] | None = None
            if rank is None:
                self.query = builder.linear("q_proj", d, heads * self.head_dim, role="q")
            else:
                self.narrow = builder.linear("q_a_proj", d, rank, bias), builder.norm("q_a_layernorm", rank)
                self.query = builder.linear("q_b_proj", rank, heads * self.head_dim, role="q")
            self.compress = builder.linear("kv_a_proj_with_mqa", d, latent + mla.qk_rope_head_dim, bias)
            self.norm = builder.norm("kv_a_layernorm", latent)
            self.expand = builder.linear("kv_b_proj", latent, heads * (mla.qk_nope_head_dim + mla.v_head_dim), role="v")
            self.out = builder.linear("o_proj", heads * mla.v_head_dim, d, spec.attention_out_bias)

    def __call__(self, x: Tensor, shared: LatentShared) -> tuple[Tensor, Tensor | None]:
        """Attend: (b, s, d) to (b, s, d), and the eager code's weights, which the layer holds to its end."""
        mla, h, rope = self.mla, self.heads, self.mla.qk_rope_head_dim
        with x.tape.scope("self_attn"):
            q = split_heads(self._queries(x), h, self.head_dim, copies_gradient=True)
            q_plain, q_turned = ops.split(q, [("b", h, "s", mla.qk_nope_head_dim), ("b", h, "s", rope)])
            compressed = self.compress(x)
            latent, k_turned = ops.split(compressed, [("b", "s", mla.kv_lora_rank), ("b", "s", rope)])
            latent = ops.view(self.norm(latent, rms_norm), "b", 1, "s", mla.kv_lora_rank)
            k_turned = ops.view(k_turned, "b", 1, "s", rope)
            q_turned, k_turned = _rotated(q_turned, k_turned, shared.table)
            query = ops.cat((q_plain, q_turned), "b", h, "s", self.head_dim)
            key, value = self._expanded(latent, k_turned)
            out, weights = attend_with_weights(query, key, value, shared.options, shared.mask)
            out = self.out(out)
            del q, q_plain, q_turned, compressed, latent, k_turned, query, key, value
            return out, weights

    def _queries(self, x: Tensor) -> Tensor:
        if self.narrow is None:
            return self.query(x)
        project, norm = self.narrow
        return self.query(norm(project(x), rms_norm))

    def _expanded(self, latent: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (b, h, s, d), written part by part into a new tensor, and values, a view of what the latent gave."""
        mla, h = self.mla, self.heads
        wide = split_heads(self.expand(latent), h, mla.qk_nope_head_dim + mla.v_head_dim, copies_gradient=True)
        plain, value = ops.split(wide, [("b", h, "s", mla.qk_nope_head_dim), ("b", h, "s", mla.v_head_dim)])
        return _written(plain, _for_all_heads(turned, h), self.head_dim), value


def _rotated(q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Turn q and k as complex numbers, in fp32 and back."""
    wide_q, wide_k = ops.cast(q, "fp32", "rotary q"), ops.cast(k, "fp32", "rotary k")
    out_q = ops.cast(_turned(wide_q, table), q.dtype, "rotary q")
    out_k = ops.cast(_turned(wide_k, table), k.dtype, "rotary k")
    del wide_q, wide_k
    return out_q, out_k


def _turned(x: Tensor, table: Tensor) -> Tensor:
    """A complex product with the table, which it saves; its backward multiplies by a conjugate made for it."""
    tape = x.tape
    out = ops.like(x, "rotary product")
    if tape.needs_grad(x):
        shape, of_table = x.shape, table.shape

        def backward(g: Grads) -> list[Tensor | None]:
            conjugate = tape.new("conjugate rotary table", of_table, "fp32")
            made = tape.new("gradient of rotary product", shape, "fp32")
            del conjugate
            return [made]

        tape.record("complex mul", [x], out, [table], backward)
    return out


def _for_all_heads(x: Tensor, heads: int) -> Tensor:
    """View one head as all; their gradients are summed."""
    tape = x.tape
    out = Tensor(tape, x.storage, ("b", heads, *x.shape[2:]), x.dtype)
    if tape.needs_grad(x):
        shape = x.shape

        def backward(g: Grads) -> list[Tensor | None]:
            grad = g[0]
            assert grad is not None
            if heads == 1:
                return [grad]
            return [tape.new("gradient summed over heads", shape, grad.dtype)]

        tape.record("expand", [x], out, [], backward)
    return out


def _written(plain: Tensor, turned: Tensor, head_dim: int) -> Tensor:
    """A new tensor with both parts copied into it (CopySlices).

    The backward of each copy copies the whole gradient, and its own part out of that.
    """
    tape = plain.tape
    shape, dtype = ("b", plain.shape[1], "s", head_dim), plain.dtype
    key = tape.new("keys", shape, dtype)
    parts = [part.shape for part in (plain, turned)]

    def first(g: Grads) -> list[Tensor | None]:
        whole = tape.new("copied gradient of keys", shape, dtype)
        part = tape.new("gradient of keys without position", parts[0], dtype)
        del whole
        return [part]

    def second(g: Grads) -> list[Tensor | None]:
        whole = tape.new("copied gradient of keys", shape, dtype)
        part = tape.new("gradient of keys with position", parts[1], dtype)
        zeros = tape.new("zeros", parts[1], dtype)
        del zeros
        return [whole, part]

    half = Tensor(tape, key.storage, shape, dtype)
    if tape.needs_grad(plain):
        tape.record("copy slice", [plain], half, [], first)
    full = Tensor(tape, key.storage, shape, dtype)
    if tape.needs_grad(half, turned):
        tape.record("copy slice", [half, turned], full, [], second)
    return full


def rotary_table(tape: Tape, width: int) -> Tensor:
    """Return the complex numbers exp(i*angle) for each position: `width` real ones a row."""
    angles = tape.new("rotary angles", ("s", width // 2), "fp32")
    ones = tape.new("rotary radii", ("s", width // 2), "fp32")
    table = tape.new("rotary table", ("s", width), "fp32")
    del ones
    scaled = tape.new("scaled rotary table", ("s", width), "fp32")
    del table, angles
    return scaled


def latent_options(run: RunSpec, mla: MlaSpec) -> AttentionOptions:
    """Return the options of latent attention, whose keys are wider than its values.

    Raises:
        UnsupportedError: flash attention, or widths that memory-efficient attention does not take.
    """
    spec, head_dim = run.spec, mla.qk_nope_head_dim + mla.qk_rope_head_dim
    itemsize = 2 if run.amp else ITEMSIZE[run.dtype]
    kernel = "eager" if run.attn == "eager" else "efficient"
    if run.attn == "flash":
        raise not_modelled(spec, "with flash attention, for which its values are narrower than its keys")
    if kernel == "efficient" and (head_dim * itemsize % 16 or mla.v_head_dim * itemsize % 16):
        raise not_modelled(spec, "with sdpa where heads are not a multiple of 16 bytes wide")
    if kernel == "efficient" and not run.padded and itemsize == 2 and head_dim == mla.v_head_dim <= 256:
        kernel = "flash"
    return AttentionOptions(
        kernel=kernel, heads=spec.num_heads, kv_heads=spec.num_heads, head_dim=head_dim, value_dim=mla.v_head_dim,
        dropout=spec.attention_dropout, single=run.bs == 1, by_heads=True, softmax_dtype="fp32",
    )  # fmt: skip
