"""The operators of domain `llcompile` as functions of standard operators: what they mean, runnable anywhere.

Attention's body attends over what it is given: it holds for an empty cache and positions from 0.
`scale`, `window`, `softcap` and `alibi` mean what the package's docstring says; `layer` and `causal` are for
readers of the graph.
"""

from __future__ import annotations

from onnx import FunctionProto, parser

_LINEAR = """
<domain: "llcompile", opset_import: ["": 23]>
Linear (x, w, b) => (y)
{
    any = Constant <value_ints = [-1]> ()
    outputs = Shape <start = 0, end = 1> (w)
    features = Shape <start = 1, end = 2> (w)
    batch = Shape <start = 0, end = -1> (x)
    row_shape = Concat <axis = 0> (any, features)
    rows = Reshape (x, row_shape)
    products = Gemm <transB = 1> (rows, w, b)
    shape = Concat <axis = 0> (batch, outputs)
    y = Reshape (products, shape)
}
"""

_EMBEDDING = """
<domain: "llcompile", opset_import: ["": 23]>
Embedding (w, ids) => (y)
{
    y = Gather <axis = 0> (w, ids)
}
"""

_ATTENTION = """
<domain: "llcompile", opset_import: ["": 23]>
Attention <layer, scale, window, softcap, causal, alibi: floats = [0.0]> (q, k, v) => (y)
{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    none = Constant <value_float = 0.0> ()
    unit = Constant <value_float = 1.0> ()
    factor = Constant <value_float: float = @scale> ()
    look_back = Constant <value_int: int = @window> ()
    cap = Constant <value_float: float = @softcap> ()
    slopes = Constant <value_floats: floats = @alibi> ()
    any = Constant <value_ints = [-1]> ()
    single = Constant <value_ints = [1]> ()
    second = Constant <value_ints = [2]> ()
    kv_heads = Shape <start = 1, end = 2> (k)
    rest = Shape <start = 2, end = 4> (q)
    dim_v = Shape <start = 3, end = 4> (v)
    lead = Shape <start = 0, end = 3> (q)
    n = Shape <start = 2, end = 3> (q)
    grouped_shape = Concat <axis = 0> (single, kv_heads, any, rest)
    q_grouped = Reshape (q, grouped_shape)
    k_grouped = Unsqueeze (k, second)
    v_grouped = Unsqueeze (v, second)
    k_columns = Transpose <perm = [0, 1, 2, 4, 3]> (k_grouped)
    products = MatMul (q_grouped, k_columns)
    scaled = Mul (products, factor)
    is_capped = Greater (cap, none)
    divisor = Where (is_capped, cap, unit)
    fraction = Div (scaled, divisor)
    squashed = Tanh (fraction)
    capped = Mul (squashed, divisor)
    scores_grouped = Where (is_capped, capped, scaled)
    head_shape = Concat <axis = 0> (lead, n)
    scores = Reshape (scores_grouped, head_shape)
    n_scalar = Squeeze (n)
    positions = Range (zero, n_scalar, one)
    keys_shape = Constant <value_ints = [1, 1, 1, -1]> ()
    queries_shape = Constant <value_ints = [1, 1, -1, 1]> ()
    slopes_shape = Constant <value_ints = [1, -1, 1, 1]> ()
    keys = Reshape (positions, keys_shape)
    queries = Reshape (positions, queries_shape)
    slope = Reshape (slopes, slopes_shape)
    keys_float = Cast <to = 1> (keys)
    bias = Mul (slope, keys_float)
    biased = Add (scores, bias)
    distance = Sub (queries, keys)
    past = GreaterOrEqual (distance, zero)
    near = Less (distance, look_back)
    unbounded = Equal (look_back, zero)
    reached = Or (near, unbounded)
    seen = And (past, reached)
    lowest = Constant <value_float = -3.0e38> ()
    masked = Where (seen, biased, lowest)
    weights = Softmax <axis = -1> (masked)
    group_shape = Concat <axis = 0> (single, kv_heads, any, n, n)
    weights_grouped = Reshape (weights, group_shape)
    mixed = MatMul (weights_grouped, v_grouped)
    out_shape = Concat <axis = 0> (lead, dim_v)
    y = Reshape (mixed, out_shape)
}
"""


def local_functions() -> list[FunctionProto]:
    """Bodies of llcompile.Linear (bias optional), llcompile.Embedding and llcompile.Attention, opset 23."""
    return [parser.parse_function(text) for text in (_ATTENTION, _EMBEDDING, _LINEAR)]
