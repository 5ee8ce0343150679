"""Products with quantised weights, as bitsandbytes 0.50 runs them on CUDA: 4-bit, and LLM.int8()."""

from __future__ import annotations

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.arithmetic import Product
from lorafa_prof.analytic.sizes import Shape, elements
from lorafa_prof.analytic.tape import Tape
from lorafa_prof.analytic.tensors import Grads, Parameter, Tensor


def dequantized_linear(x: Tensor, weight: Parameter, bias: Tensor | None, *, double: bool) -> Tensor:
    """bitsandbytes' 4-bit matmul: the weight is dequantised for each product, forward and backward, and not kept.

    Products run in the compute dtype, bf16, whatever the input's is. Forward dequantises into that dtype, backward into
    the one that the weight was loaded in, and casts. The (frozen) bias is added within the product. With double
    quantisation the scales are dequantised before.
    """
    del bias
    tape = x.tape
    source = x.dtype
    x = ops.cast(x, ops.COMPUTE_DTYPE, "compute input")
    k, m = int(weight.shape[0]), int(weight.shape[1])
    flops = ops.matmul_flops(x.shape[:-1], m, k)
    product = Product(ops.COMPUTE_DTYPE, (), x.shape[:-1], (m,), (k,))
    dense = None
    if not tape.takes_results:
        dense = tape.new("dequantised weight", weight.shape, ops.COMPUTE_DTYPE)
        _dequantised(weight, dense, double=double)
    tape.count_flops("linear", flops, of=product)
    out = tape.result("linear output", (*x.shape[:-1], k), ops.COMPUTE_DTYPE)
    del dense
    if tape.needs_grad(x):
        shape = x.shape

        def backward(g: Grads) -> list[Tensor | None]:
            dense = tape.new("dequantised weight", weight.shape, weight.dtype)
            _dequantised(weight, dense, double=double)
            dense = ops.cast(dense, ops.COMPUTE_DTYPE, "dequantised weight")
            grad = tape.new("gradient of linear input", shape, ops.COMPUTE_DTYPE)
            del dense
            tape.count_flops("linear", flops, backward=True, of=product.backwards[0])
            return [grad]

        tape.record("MatMul4Bit", [x], out, [], backward)
    return ops.cast(out, source, "linear output")


def _dequantised(weight: Tensor, dense: Tensor, *, double: bool) -> None:
    """Note what dequantising a 4-bit weight moves: half a byte a value, a scale for 64 of them, one for 256 scales."""
    tape = dense.tape
    if tape.moves is None:
        return
    numel = elements(weight.shape)[0]
    scales = Tensor(tape, None, (-(-numel // 64),), "fp32")
    if double:
        codes = Tensor(tape, None, scales.shape, "uint8")
        of_codes = Tensor(tape, None, (-(-numel // (64 * 256)),), "fp32")
        tape.moved("dequantise scales", [codes, of_codes], [scales])
        tape.moved("add offset", [scales], [scales])
    tape.moved("dequantise", [Tensor(tape, None, (-(-numel // 2),), "uint8"), scales], [dense])


def int8_linear(x: Tensor, weight: Parameter, bias: Parameter | None) -> Tensor:
    """LLM.int8(): x (..., m) is quantised row by row, multiplied in integers by weight (k, m), and scaled back.

    No column has outliers, which would be multiplied in 16 bits. Where x needs a gradient the operation's context keeps
    x itself, past autograd's book: checkpointing does not drop it, and it is there as long as the graph. Backward makes
    the weight in x's dtype.
    """
    tape, dtype = x.tape, x.dtype
    k, m = int(weight.shape[0]), int(weight.shape[1])
    if bias is not None:
        bias.dtype = dtype  # cast in the first forward, once and for all
    flops = ops.matmul_flops(x.shape[:-1], m, k)
    product = Product("int8", (), x.shape[:-1], (m,), (k,))
    rows, scales = _quantised_rows(x)
    out = _integer_product(x, k, product, scales)
    if tape.needs_grad(x):
        shape = x.shape

        def backward(g: Grads) -> list[Tensor | None]:
            dense = tape.new("int8 weight in 16 bits" if dtype != "fp32" else "int8 weight in fp32", (k, m), dtype)
            tape.moved("_to_copy", [weight], [dense])
            factors = tape.new("scales / 127", (k, 1), "fp32")
            tape.moved("mul", [factors], [factors])
            tape.moved("mul_", [dense, factors], [dense])
            del factors
            grad = tape.new("gradient of linear input", shape, dtype)
            del dense
            tape.count_flops("linear", flops, backward=True, of=product._replace(dtype=dtype).backwards[0])
            return [grad]

        tape.record("MatMul8bitLt", [x], out, [], backward, held=x)
    del rows, scales
    return out


def _quantised_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x in 8 bits and a scale for each row. It is looked for outliers inside, in fp16."""
    tape = x.tape
    half = ops.like(x, "fp16 input", "fp16") if x.dtype != "fp16" else x
    if half is not x:
        tape.moved("_to_copy", [x], [half])
    rows, scales = ops.like(x, "int8 input", "int8"), tape.new("scales of rows", x.shape[:-1], "fp32")
    magnitudes = ops.like(half, "outliers: magnitudes")
    tape.moved("abs", [half], [magnitudes])
    beyond = ops.like(half, "outliers: mask", "bool")
    tape.moved("ge", [magnitudes], [beyond])
    del magnitudes
    tape.moved("any", [beyond], [Tensor(tape, None, (), "bool")], waits=True)
    columns = tape.new("outliers: mask of columns", x.shape[-1:], "bool")
    tape.moved("int8_vectorwise_quant", [half], [rows, scales])
    del half, beyond, columns
    return rows, scales


def _integer_product(x: Tensor, k: int, product: Product, scales: Tensor) -> Tensor:
    """Return the product in x's dtype, made of one in 32-bit integers and, unless it is in fp16 itself, one in fp16."""
    tape, shape = x.tape, (*x.shape[:-1], k)
    held = [] if tape.takes_results else _inside(tape, shape, x.dtype)
    out = tape.result("linear output", shape, x.dtype)
    tape.count_flops("linear", ops.matmul_flops(x.shape[:-1], int(product.k[0]), k), of=product)
    if held:
        half = held[1] if len(held) > 1 else out
        tape.moved("scale", [held[0], scales, Tensor(tape, None, (k,), "fp32")], [half])
        if half is not out:
            tape.moved("_to_copy", [half], [out])
    del held
    return out


def _inside(tape: Tape, shape: Shape, dtype: str) -> list[Tensor]:
    held = [tape.new("int8 product: integers", shape, "int32")]
    return held if dtype == "fp16" else [*held, tape.new("int8 product: in fp16", shape, "fp16")]
