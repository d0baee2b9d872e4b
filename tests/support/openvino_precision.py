"""What OpenVINO makes of a precision on this processor, asked of OpenVINO itself: its list of capabilities leaves out what it emulates."""

from __future__ import annotations

import numpy as np

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def computes_in(precision: str) -> bool:
    """Whether a network asked for in ``precision`` is one of that precision."""
    import openvino
    from openvino import opset13

    x = opset13.parameter([1, 8], name="x")
    model = openvino.Model([opset13.matmul(x, opset13.constant(np.ones((8, 8), np.float32)), False, False)], [x])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": HINTS[precision]})
    return bool(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == HINTS[precision])
