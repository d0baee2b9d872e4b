"""What ONNX's operators compute, one family per file."""

import latprune.onnx_reader.operators.contractions
import latprune.onnx_reader.operators.elementwise
import latprune.onnx_reader.operators.indexing
import latprune.onnx_reader.operators.norms
import latprune.onnx_reader.operators.pooling
import latprune.onnx_reader.operators.shapes  # noqa: F401
from latprune.onnx_reader.operators.registry import OPERATORS, Call, Operand, as_tensor, dtype_of, operator, plain

__all__ = ["OPERATORS", "Call", "Operand", "as_tensor", "dtype_of", "operator", "plain"]
