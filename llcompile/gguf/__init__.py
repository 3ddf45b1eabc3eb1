"""GGUF files, as llama.cpp writes them: what is in one, and its blocks as float32. What frontend and quantize stand on.

read_header     keys and tensors of a file, with bounds; no byte of a tensor is read
is_gguf         whether a file begins as one
BLOCKS          the quantised types that can be read, by name
row_bytes       what a row of a tensor takes in the file
dequantise      rows of blocks as float32

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Only here is the gguf package imported. Of its reader
nothing is used: it keeps an object for every word of a vocabulary (3.5 s and 170 MB for 49,000), and a header that
announces more than there is keeps it busy for ever.
"""

from llcompile.gguf.blocks import BLOCKS, FLOATS, dequantise, row_bytes
from llcompile.gguf.cursor import Value
from llcompile.gguf.header import Header, Tensor, is_gguf, read_header

__all__ = [
    "BLOCKS",
    "FLOATS",
    "Header",
    "Tensor",
    "Value",
    "dequantise",
    "is_gguf",
    "read_header",
    "row_bytes",
]
