"""Small graphs before each of the frontend's passes: one it rewrites, one it must leave alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx
import onnx_ir as ir
from onnx import parser

from llcompile.frontend.canonical import rewriting as rw

_HEAD = '<ir_version: 10, opset_import: ["": 23, "llcompile": 1]>\n'


@dataclass(frozen=True)
class Case:
    """ONNX text `graph`, and `near`, which looks alike but means something else. Inputs in `weights` are weights."""

    graph: str
    near: str
    weights: tuple[str, ...] = ("w", "b")


def build(text: str, weights: tuple[str, ...]) -> ir.Model:
    """The graph with its shapes inferred and constants as initializers, as the passes find it."""
    proto = onnx.shape_inference.infer_shapes(parser.parse_model(_HEAD + text), data_prop=True)
    model = ir.from_proto(proto)
    for value in model.graph.inputs:
        if value.name in weights:
            value.metadata_props[rw.WEIGHT] = "1"
    return model


def raw_parameters() -> ir.Model:
    """What the exporter gives: parameters and buffers as initializers with their kind in the metadata."""
    shapes = {"w": (2, 3), "unused": (2, 3), "table": (3,), "kept": (3,)}
    values = ", ".join(
        f"float[{','.join(map(str, shape))}] {name} = {{{', '.join(str(i) for i in range(prod(shape)))}}}"
        for name, shape in shapes.items()
    )
    text = f"g (float[1,n,2] x) => (float[1,n,3] y) <{values}>"
    model = build(text + " {a = MatMul(x, w)\n c = Add(a, table)\n y = Mul(c, kept)}", ())
    for name, value in model.graph.initializers.items():
        kind = "BUFFER" if name in ("table", "kept") else "PARAMETER"
        value.metadata_props.update({rw.KIND: kind, rw.PERSISTENT: str(name == "kept")})
    return model


_NORM = """g (float[1,n,4] x, float[4] w) => (float[1,n,4] y)
<float two = {2.0}, int64[1] last = {AXIS}, float epsilon = {0.00001}>
{ s = Pow(x, two)
  m = ReduceMean<keepdims = 1>(s, last)
  e = Add(m, epsilon)
  r = Sqrt(e)
  i = Reciprocal(r)
  u = Mul(x, i)
  y = Mul(w, u) }"""

_ROTARY = """g (float[1,2,n,8] q, float[1,n,WIDTH] a) => (float[1,2,n,8] y)
<int64[1] one = {1}, int64[1] zero = {0}, int64[1] three = {3}, int64[1] half = {HALF}, int64[1] rot = {ROT},
 int64[1] far = {9223372036854775807}>
{ aa = Concat<axis = -1>(a, a)
  c = Cos(aa)
  s = Sin(aa)
  cos = Unsqueeze(c, one)
  sin = Unsqueeze(s, one)
  x = Slice(q, zero, rot, three, one)
  rest = Slice(q, rot, far, three, one)
  direct = Mul(x, cos)
  lower = Slice(x, zero, half, three, one)
  upper = Slice(x, half, far, three, one)
  minus = Neg(SIDE)
  turned = Concat<axis = -1>(minus, OTHER)
  across = Mul(turned, sin)
  both = Add(direct, across)
  y = Concat<axis = -1>(both, rest) }"""


def _rotary(side: str, other: str) -> str:
    """Rotation of the first 4 of 8 features; `side` of the two halves is negated and comes first."""
    text = _ROTARY.replace("WIDTH", "2").replace("HALF", "2").replace("ROT", "4")
    return text.replace("SIDE", side).replace("OTHER", other)


_GELU = """g (float[1,n,4] x) => (float[1,n,4] y)
<float half = {0.5}, float three = {3.0}, float cubic = {0.044715}, float outer = {OUTER}, float one = {1.0}>
{ h = Mul(x, half)
  p = Pow(x, three)
  k = Mul(p, cubic)
  s = Add(x, k)
  t = Mul(s, outer)
  u = Tanh(t)
  v = Add(u, one)
  y = Mul(h, v) }"""

_SPLIT = """g (float[1,n,6] x) => (float[1,n,2] y)
<int64 two = {2}, int64 zero = {0}, int64 one = {1}>
{ s = SplitToSequence<axis = 2>(x, two)
  a = SequenceAt(s, zero)
  b = SequenceAt(s, one)
  y = Add(a, b) }"""

CASES = {
    "fold-constants": Case(
        """g (float[1,n,6] x) => (float[1,n,2] y)
        { a = Constant<value_int = 2>()
          one = Constant<value_ints = [1]>()
          flat = Constant<value_ints = [-1]>()
          zero = Constant<value_ints = [0]>()
          b = Cast<to = 7>(a)
          c = Reshape(b, flat)
          y = Slice(x, zero, c, c, one) }""",
        "g (float[1,n,6] x) => (float[1,n,6] y) <float k = {2.0}> {y = Mul(x, k)}",
    ),
    "static-shapes": Case(
        """g (float[1,n,6] x) => (float[1,n,2,3] y) <int64[1] one = {1}, int64[2] tail = {2, 3}>
        { n = Shape<start = 1, end = 2>(x)
          s = Concat<axis = 0>(one, n, tail)
          y = Reshape<allowzero = 1>(x, s) }""",
        "g (float[a,b,6] x, int64[3] s) => (float[b,a,6] y) {y = Reshape(x, s)}",
    ),
    "sequences-to-splits": Case(_SPLIT, _SPLIT.replace("float[1,n,6]", "float[1,n,m]")),
    "drop-no-ops": Case(
        """g (float[1,5,6] x) => (float[1,5,6] y)
        <float unit = {1.0}, int64[4] wide = {1, -1, 2, 3}, int64[3] back = {1, -1, 6}, float k = {3.0}>
        { a = Identity(x)
          b = Cast<to = 1>(a)
          c = Mul(b, unit)
          d = Reshape(c, wide)
          e = Reshape(d, back)
          f = Transpose<perm = [0, 1, 2]>(e)
          y = Mul(f, k) }""",
        """g (float[1,n,6] x) => (float[1,n,6] y) <float two = {2.0}, float minus = {-1.0}>
        { a = Mul(x, two)
          b = Transpose<perm = [1, 0, 2]>(a)
          c = Transpose<perm = [1, 0, 2]>(b)
          y = Div(c, minus) }""",
    ),
    "drop-unused": Case(
        """g (float[1,n,6] x, float[6] w, float[6] b) => (float[1,n,6] y)
        { a = Add(x, w)
          c = Add(x, w)
          dead = Mul(x, x)
          y = Mul(a, c) }""",
        "g (float[1,n,6] x, float[6] w) => (float[1,n,6] y) {a = Add(x, w)\n c = Add(a, w)\n y = Mul(a, c)}",
    ),
    "products-to-linear": Case(
        """g (float[1,n,4] x, float[3,4] w, float[3] b, float[3,2] v, float[2] c) => (float[1,n,3] y, float[m,2] z)
        <int64[2] rows = {-1, 3}>
        { wt = Transpose<perm = [1, 0]>(w)
          p = MatMul(x, wt)
          y = Add(p, b)
          f = Reshape(y, rows)
          z = Gemm(f, v, c) }""",
        """g (float[1,n,4] x, float[4,4] w, float[1,4,n] z) => (float[1,n,4] y, float[4,4] t, float[1,n,n] u)
        { p = MatMul(x, w)
          y = Identity(p)
          t = Add(w, w)
          u = MatMul(x, z) }""",
        ("w", "b", "v", "c"),
    ),
    "gathers-to-embedding": Case(
        "g (int64[1,n] ids, float[9,4] w) => (float[1,n,4] y) {y = Gather(w, ids)}",
        "g (int64[1,n] ids, float[9,4] w) => (float[9,1,n] y) {y = Gather<axis = 1>(w, ids)}",
    ),
    "rows-to-sequences": Case(
        """g (float[1,n,4] x, float[3,4] w, float[4] b) => (float[1,n,3] y)
        <int64[2] rows = {-1, 4}, int64[3] back = {1, -1, 3}>
        { f = Reshape(x, rows)
          l = LayerNormalization<axis = 1>(f, b)
          p = llcompile.Linear(l, w)
          y = Reshape(p, back) }
        <domain: "llcompile", opset_import: ["": 23]>
        Linear (x, w) => (y) { t = Transpose<perm = [1, 0]>(w)
          y = MatMul(x, t) }""",
        """g (float[1,n,4] x) => (float[1,n,4] y)
        <int64[2] rows = {-1, 4}, int64[3] back = {1, -1, 4}, int64[1] first = {0}>
        { f = Reshape(x, rows)
          m = ReduceMean(f, first)
          s = Sub(f, m)
          y = Reshape(s, back) }""",
    ),
    "root-mean-square-norms": Case(_NORM.replace("AXIS", "-1"), _NORM.replace("AXIS", "1")),
    "rotary-embeddings": Case(_rotary("upper", "lower"), _rotary("lower", "upper")),
    "order-and-name": Case(
        """g (int64[1,n] position_ids, float[1,n] x) => (float[1,n] y) <float three = {3.0}, float two = {2.0}>
        { z = Relu(x)
          a = Cast<to = 1>(position_ids)
          unused = Mul(a, a)
          c = Mul(a, three)
          b = Mul(a, two)
          s = Add(z, b)
          y = Mul(s, c) }""",
        """g (int64[1,n] position_ids, float[1,n] x) => (float[1,n] y) <float constant_0 = {3.0}>
        { [cast] cast = Cast<to = 1>(position_ids)
          [mul] mul = Mul(cast, constant_0)
          [y] y = Add(x, mul) }""",
    ),
    "gaussian-units": Case(_GELU.replace("OUTER", "0.7978846"), _GELU.replace("OUTER", "0.7")),
}
