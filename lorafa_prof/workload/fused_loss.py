"""Head and loss in one, chunk by chunk: what Liger's fused linear cross entropy does, in PyTorch's own operators.

Liger's kernel (liger-kernel 0.8.5, ops/fused_linear_cross_entropy.py) is Triton's, and runs on a GPU alone. Here the
same buffers are made and written in place, so that the step costs the same memory on every device:

- the logits of one chunk of tokens at a time, in the dtype of the product; their gradient is written over them;
- the gradient of the hidden states, made in the forward, as large as they are and kept for the backward;
- the gradient of the head's weight, in the weight's dtype, where that is trained; the chunks add up in it;
- one fp32 loss a token.

Neither hidden states nor logits are kept for the backward, which multiplies those gradients by its own in place.
Where Liger's kernel computes a row in fp32 registers and rounds its gradient once, the probability here is rounded to
the logits' dtype before 1 is subtracted from it. Beside Liger's buffers there are the places of the labels (8 bytes a
token) and a probability for each token of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import RunSpec

#: The label that no loss is computed for.
IGNORED = -100


def chunk_of(tokens: int, vocabulary: int, hidden: int) -> int:
    """Return how many tokens make a chunk, as Liger has it.

    As many as keep a chunk's logits about as large as all hidden states: the tokens divided by vocabulary / hidden,
    rounded up, then up to a power of two, and all tokens at most.
    """
    parts = -(-tokens // -(-vocabulary // hidden))
    return min(1 << (parts - 1).bit_length(), tokens)


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """The mean cross entropy of hidden @ weight.T; hidden (N, m), weight (v, m), target (N,)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, autocast: bool
    ) -> torch.Tensor:
        tokens, chunk = hidden.shape[0], chunk_of(hidden.shape[0], weight.shape[0], weight.shape[1])
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        losses = torch.zeros(tokens, dtype=torch.float32, device=hidden.device)
        counted = target != IGNORED
        scale = counted.sum().reciprocal()
        # where the label of each token is in its chunk's logits; of an ignored one the first word is taken
        places = torch.arange(tokens, device=hidden.device).remainder_(chunk).mul_(weight.shape[0])
        places.add_(target.clamp(min=0))
        # autocast does not reach a product that is told where to write, so that is for what it would not cast
        direct = hidden.dtype == weight.dtype and (not autocast or hidden.dtype == torch.bfloat16)
        storage = hidden.new_empty(chunk, weight.shape[0]) if direct else None
        for begin in range(0, tokens, chunk):
            part = slice(begin, min(begin + chunk, tokens))
            logits = _product(hidden[part], weight, storage)
            torch._softmax(logits, 1, False, out=logits)
            chosen = logits.take(places[part])
            losses[part].copy_(chosen)
            logits.put_(places[part], chosen.sub_(1.0))  # the gradient, but for the scale
            del chosen
            logits.mul_(counted[part].unsqueeze(1))
            if direct:
                torch.mm(logits, weight, out=grad_hidden[part])
            else:
                grad_hidden[part] = logits @ weight
            if grad_weight is not None:
                torch.addmm(grad_weight, logits.t(), hidden[part], out=grad_weight)
            del logits
        del storage
        for gradient in (grad_hidden, grad_weight):
            if gradient is not None:
                gradient.mul_(scale)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return losses.clamp_(min=torch.finfo(torch.float32).tiny).log_().neg_().mul_(counted).sum().mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grads[0]), None if grad_weight is None else grad_weight.mul_(grads[0]), None, None


def _product(hidden: torch.Tensor, weight: torch.Tensor, storage: torch.Tensor | None) -> torch.Tensor:
    """Return the logits of a chunk, in the storage that is there for them or, under autocast, in a tensor of theirs."""
    if storage is None:
        return hidden @ weight.t()
    return torch.mm(hidden, weight.t(), out=storage[: hidden.shape[0]])


class FusedLinearCrossEntropy(torch.nn.modules.loss._Loss):
    """transformers' ForCausalLMLoss, of hidden states and the head that was to make logits of them.

    Args:
        autocast: whether the forward runs under bf16 autocast.
    """

    def __init__(self, *, autocast: bool) -> None:
        super().__init__()
        self.autocast = autocast

    def forward(self, hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of hidden states (b, s, m) and labels (b, s), each token predicting the next."""
        padded = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)
        shifted = padded[..., 1:].contiguous()
        loss: torch.Tensor = _FusedLinearCrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch's
            hidden.view(-1, hidden.shape[-1]), head.weight, shifted.view(-1), self.autocast
        )
        return loss


def fuse_loss(model: Any, run: RunSpec) -> None:
    """Let a causal language model compute head and loss in one: its head hands the hidden states on to the loss.

    Raises:
        UnsupportedError: another task, a head that is no plain matrix, capped logits, a transformers whose models do
            not take their loss from a table, or a trained head under autocast.
    """
    head = model.get_output_embeddings()
    refused = (
        (run.model.task != "causal-lm", f"for {run.model.task}"),
        (type(head) is not torch.nn.Linear or head.bias is not None, "over a head that is no plain matrix"),
        (getattr(model.config, "final_logit_softcapping", None) is not None, "with capped logits"),
        (not hasattr(type(model), "loss_function"), "with this transformers (4.46 or later)"),
        (run.amp and run.method.name == "full", "with a trained head under autocast"),
    )
    for is_refused, what in refused:
        if is_refused:
            raise UnsupportedError(f"{run.model.name}: the fused loss is not built {what}; --loss hf is")
    loss = FusedLinearCrossEntropy(autocast=run.amp)
    head.forward = _same

    def loss_function(logits: torch.Tensor, labels: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return loss(logits, head, labels)  # type: ignore[no-any-return]

    model.loss_function = loss_function


def refuse_adapted_head(model: Any, run: RunSpec) -> None:
    """Refuse adapters on the head, which the fused loss would pass by.

    Raises:
        UnsupportedError: there is one.
    """
    if type(model.get_output_embeddings()) is not torch.nn.Linear:
        raise UnsupportedError(f"{run.model.name}: the fused loss is not built over an adapted head; --loss hf is")


def _same(hidden: torch.Tensor) -> torch.Tensor:
    """What the head does in its forward."""
    return hidden
