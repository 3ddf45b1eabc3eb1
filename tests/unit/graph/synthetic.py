"""Small canonical graphs written by hand: structures whose blocks are known, without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from llcompile.ir.model import Model, WeightSource

VOCAB = 50
OPSETS = [helper.make_opsetid("", 23), helper.make_opsetid("llcompile", 1)]


@dataclass
class Writer:
    """Writes nodes; every method returns the name of the tensor it makes."""

    hidden: int = 16
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 40
    vocab: int = VOCAB
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        return self.hidden // self.heads

    def op(self, kind: str, *inputs: str, name: str = "", domain: str = "", **attributes: object) -> str:
        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def weight(self, name: str, *shape: int) -> str:
        self.weights[name] = shape
        return name

    def constant(self, value: object, dtype: str = "float32") -> str:
        name = f"const_{len(self.constants)}"
        self.constants[name] = np.array(value, dtype)
        return name

    def linear(self, x: str, name: str, rows: int, columns: int, bias: bool = False) -> str:
        extra = [self.weight(f"{name}.bias", rows)] if bias else []
        return self.op("Linear", x, self.weight(f"{name}.weight", rows, columns), *extra, domain="llcompile")

    def embedding(self, ids: str, name: str, rows: int, columns: int | None = None) -> str:
        return self.op("Embedding", self.weight(name, rows, columns or self.hidden), ids, domain="llcompile")

    def norm(self, x: str, name: str) -> str:
        return self.op("RMSNormalization", x, self.weight(name, self.hidden), epsilon=1e-5, axis=-1)

    def split_heads(self, x: str, heads: int) -> str:
        shaped = self.op("Reshape", x, self.constant([1, -1, heads, self.dim], "int64"))
        return self.op("Transpose", shaped, perm=[0, 2, 1, 3])

    def rotary_table(self, theta: float = 100.0) -> tuple[str, str]:
        """cos and sin (1, n, dim / 2)."""
        frequency = self.constant(theta ** -(np.arange(self.dim // 2) * 2 / self.dim)[None, None])
        position = self.op("Cast", self.op("Unsqueeze", "position_ids", self.constant([2], "int64")), to=1)
        angle = self.op("Mul", position, frequency)
        return self.op("Cos", angle), self.op("Sin", angle)

    def attention(
        self, x: str, layer: int, table: tuple[str, str] | None, bias: bool = False, **attrs: object
    ) -> str:
        """Projections, rotation, attention and output projection of the normed `x`."""
        name, width = f"layers.{layer}.attn", self.dim
        q = self.split_heads(self.linear(x, f"{name}.q", self.heads * width, self.hidden, bias), self.heads)
        k = self.split_heads(
            self.linear(x, f"{name}.k", self.kv_heads * width, self.hidden, bias), self.kv_heads
        )
        v = self.split_heads(
            self.linear(x, f"{name}.v", self.kv_heads * width, self.hidden, bias), self.kv_heads
        )
        if table:
            q, k = (self.op("RotaryEmbedding", value, *table) for value in (q, k))
        attrs = {"scale": width**-0.5, "window": 0, "softcap": 0.0, "causal": 1, **attrs}
        a = self.op("Attention", q, k, v, domain="llcompile", layer=layer, **attrs)
        merged = self.op(
            "Reshape",
            self.op("Transpose", a, perm=[0, 2, 1, 3]),
            self.constant([1, -1, self.hidden], "int64"),
        )
        return self.linear(merged, f"{name}.o", self.hidden, self.hidden, bias)

    def gated_mlp(self, x: str, layer: int) -> str:
        gate = self.linear(x, f"layers.{layer}.gate", self.ffn, self.hidden)
        up = self.linear(x, f"layers.{layer}.up", self.ffn, self.hidden)
        activated = self.op("Mul", self.op("Mul", gate, self.op("Sigmoid", gate)), up)
        return self.linear(activated, f"layers.{layer}.down", self.hidden, self.ffn)

    def mlp(self, x: str, layer: int) -> str:
        inner = self.op("Gelu", self.linear(x, f"layers.{layer}.up", self.ffn, self.hidden, True))
        return self.linear(inner, f"layers.{layer}.down", self.hidden, self.ffn, True)

    def head(self, x: str) -> None:
        matrix = self.weight("lm_head", self.vocab, self.hidden)
        self.op("Linear", x, matrix, domain="llcompile", name="logits")

    def model(self, name: str = "synthetic") -> Model:
        ids = [
            helper.make_tensor_value_info(n, TensorProto.INT64, [1, "n"])
            for n in ("input_ids", "position_ids")
        ]
        weights = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in self.weights.items()]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "n", self.vocab])
        constants = [numpy_helper.from_array(value, key) for key, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, name, ids + weights, [logits], constants)
        proto = helper.make_model(graph, opset_imports=OPSETS, functions=functions(), ir_version=10)
        sources = {n: WeightSource(n, s, "f32") for n, s in self.weights.items()}
        return Model(
            name, "Synthetic", proto.SerializeToString(), sources, self.vocab, self.hidden, 64, None, (), ()
        )


def functions() -> list[onnx.FunctionProto]:
    """Bodies of the llcompile operators, for windowless attention over an empty cache."""
    make = helper.make_node
    attention = make("Attention", ["q", "k", "v"], ["o"], is_causal=1)
    scale = attention.attribute.add()
    scale.name, scale.ref_attr_name, scale.type = "scale", "scale", onnx.AttributeProto.FLOAT
    embedding = [make("Gather", ["w", "ids"], ["y"], axis=0)]
    linear = [make("Transpose", ["w"], ["t"], perm=[1, 0]), make("MatMul", ["x", "t"], ["y"])]
    names = ["layer", "scale", "window", "softcap", "causal"]
    return [
        helper.make_function(
            "llcompile", "Attention", ["q", "k", "v"], ["o"], [attention], OPSETS[:1], names
        ),
        helper.make_function("llcompile", "Embedding", ["w", "ids"], ["y"], embedding, OPSETS[:1]),
        helper.make_function("llcompile", "Linear", ["x", "w"], ["y"], linear, OPSETS[:1]),
    ]


Layer = Callable[[Writer, str, int, tuple[str, str]], str]


def sequential(w: Writer, x: str, layer: int, table: tuple[str, str]) -> str:
    x = w.op("Add", x, w.attention(w.norm(x, f"layers.{layer}.norm1"), layer, table))
    return w.op("Add", x, w.gated_mlp(w.norm(x, f"layers.{layer}.norm2"), layer))


def parallel(w: Writer, x: str, layer: int, table: tuple[str, str]) -> str:
    """GPT-NeoX: the MLP's branch is written first, so that order must come from the graph."""
    mlp = w.gated_mlp(w.norm(x, f"layers.{layer}.norm2"), layer)
    attention = w.attention(w.norm(x, f"layers.{layer}.norm1"), layer, table)
    return w.op("Add", w.op("Add", mlp, attention), x)


def post_norms(w: Writer, x: str, layer: int, table: tuple[str, str]) -> str:
    """Gemma: a norm before and after each half."""
    a = w.attention(w.norm(x, f"layers.{layer}.norm1"), layer, table)
    x = w.op("Add", x, w.norm(a, f"layers.{layer}.norm2"))
    m = w.gated_mlp(w.norm(x, f"layers.{layer}.norm3"), layer)
    return w.op("Add", x, w.norm(m, f"layers.{layer}.norm4"))


def normed_sums(w: Writer, x: str, layer: int, table: tuple[str, str]) -> str:
    """The first transformer's order: the sum is normed."""
    x = w.norm(w.op("Add", x, w.attention(x, layer, table)), f"layers.{layer}.norm1")
    return w.norm(w.op("Add", x, w.gated_mlp(x, layer)), f"layers.{layer}.norm2")


def decoder(layers: int = 2, layer: Layer = sequential, **sizes: int) -> Model:
    """Embedding, `layers` of `layer`, norm, output head; rotary positions."""
    w = Writer(**sizes)
    x = w.embedding("input_ids", "embed", w.vocab)
    table = w.rotary_table()
    for number in range(layers):
        x = layer(w, x, number, table)
    w.head(w.norm(x, "norm"))
    return w.model()


def random_weights(model: Model, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s.shape).astype(np.float32) * 0.3 for n, s in model.weights.items()}
