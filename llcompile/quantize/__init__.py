"""Weights -> packed files of blocks, streamed.

write_block     a block's safetensors file: read, quantised and packed band by band, in bounded memory
calibrate       a model run on a few tokens: by what its matrices are rounded to few bits with error feedback
measure         what rounding each set of alike matrices costs the model's output
choose          a format for each of them, of least cost within so many bits a weight
read_rows       a range of rows of a checkpoint's tensor, or of a random one, as float32
pack, unpack    a matrix in one of the layouts of ir/packing.py, and back
dequantised     a tensor as the kernels see it once packed: what quality figures are measured on
"""

from llcompile.quantize.block import dequantised, write_block
from llcompile.quantize.budget import LEAST_BITS, MOST_BITS, choose
from llcompile.quantize.calibrate import TOKENS, Calibration, calibrate, random_sequences, sequences_of
from llcompile.quantize.container import PAGE
from llcompile.quantize.layouts import has_feedback, pack, unpack
from llcompile.quantize.measure import COARSEST, measure
from llcompile.quantize.reader import read_rows

__all__ = [
    "COARSEST",
    "LEAST_BITS",
    "MOST_BITS",
    "PAGE",
    "TOKENS",
    "Calibration",
    "calibrate",
    "choose",
    "dequantised",
    "has_feedback",
    "measure",
    "pack",
    "random_sequences",
    "read_rows",
    "sequences_of",
    "unpack",
    "write_block",
]
