"""ONNX files as captured programs: read, compared with ONNX Runtime, and pruned like any other network."""

from latprune.onnx_reader.inputs import OnnxInput
from latprune.onnx_reader.loading import load_onnx, onnx_inputs

__all__ = ["OnnxInput", "load_onnx", "onnx_inputs"]
