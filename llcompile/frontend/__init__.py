"""From a Hugging Face directory, a GGUF file or a hub id to ONNX without weights.

    load_model(model, random_seed) -> ir.model.Model
    read_text(path), text_ids(text, model, most) -> a user's text as token ids
    passes(), run_pass(pass, program, weights), read_program(path), serialized(graph): its passes by themselves

The graph: opset 23 and domain `llcompile` version 1, float32 throughout, one symbolic dimension n. Inputs
`input_ids` and `position_ids`, int64 (1, n), then one input per weight under its checkpoint name; output
`logits` (1, n, vocabulary). No shape arithmetic, no mask, no cache. Own operators, each with a model-local
function body:

- llcompile.Linear(x (1, n, K), W (N, K) [, b (N)]) -> (1, n, N): y = x Wᵀ + b.
- llcompile.Embedding(W (rows, columns), ids (1, n)) -> (1, n, columns): rows of a table.
- llcompile.Attention(q (1, H, n, d), k (1, Hkv, n, d), v (1, Hkv, n, dv)) -> (1, H, n, dv): k and v are
  appended to the cache of layer `layer` at position_ids[0, 0]; then softmax(scale · q kᵀ) v over the cache,
  query head h reading key head h // (H / Hkv). `softcap` c (0: none) turns scores s into c · tanh(s / c);
  `alibi` (a slope a head; absent: none) adds slope · key position; `causal` is 1; `window` w (0: all):
  position p sees keys p - w + 1 to p.

A weight matrix is read by Linear and Embedding only. RotaryEmbedding(X (1, H, n, d), cos, sin (1, n, r / 2))
has no position_ids input; rotary_embedding_dim = r when only the first r features turn (absent: all d),
interleaved = 0. RMSNormalization has axis -1 and may read a scale that is computed (Gemma: Add(weight, 1)).
The other operators are those of canonical/check.py.

The graph is right for texts of up to `max_positions` tokens: rotary frequencies that change with a text's length are
constant up to there (rotary.py). What ends a text is in ends.py, which stored tables are used in tied.py.
"""

from llcompile.frontend.calibration_text import read_text, text_ids
from llcompile.frontend.load import load_model
from llcompile.frontend.printer import text
from llcompile.frontend.program import passes, read_program, run_pass, serialized

__all__ = [
    "load_model",
    "passes",
    "read_program",
    "read_text",
    "run_pass",
    "serialized",
    "text",
    "text_ids",
]
