"""How long the ways from a PyTorch module to a compiled network take: TorchScript and dynamo exporters to ONNX, OpenVINO's direct reader.

python benchmarks/latency/conversion.py --output benchmarks/results/latency-conversion.json
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from result_file import ResultFile

from latprune.latency import Target
from latprune.latency.engines.inputs import prepare_inputs
from latprune.latency.engines.onnx_graph import export_onnx
from latprune.zoo import cifar_resnet, mobilenet_v2, resnet50


def seconds(call: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    import onnxruntime
    import openvino

    torch.set_num_threads(1)
    core = openvino.Core()
    config = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    results = ResultFile(args.output, "latency-conversion", key=("model",), torch=str(torch.__version__))
    print("seconds")
    print(f"{'model':13} {'torchscript':>11} {'dynamo':>8} {'openvino direct':>15} {'read onnx':>9} {'compile':>8} {'ort session':>11}")
    models = {
        "resnet56": (lambda: cifar_resnet(depth=56), (1, 3, 32, 32)),
        "mobilenet_v2": (mobilenet_v2, (1, 3, 224, 224)),
        "resnet50": (resnet50, (1, 3, 224, 224)),
    }
    for name, (build, shape) in models.items():
        model, x = build().eval(), torch.randn(*shape)
        inputs = prepare_inputs(x, Target(), dtype=None)
        data = export_onnx(model, inputs).data
        read = core.read_model(io.BytesIO(data))
        row = {
            "model": name,
            "torchscript": seconds(lambda m=model, i=inputs: export_onnx(m, i), args.repeats),
            "dynamo": seconds(lambda m=model, i=inputs: export_onnx(m, i, exporter="dynamo"), args.repeats),
            "openvino_direct": seconds(
                lambda m=model, i=x: openvino.convert_model(m, example_input=i, input=[list(i.shape)]), args.repeats
            ),
            "openvino_read": seconds(lambda d=data: core.read_model(io.BytesIO(d)), args.repeats),
            "openvino_compile": seconds(lambda r=read: core.compile_model(r, "CPU", config), args.repeats),
            "onnxruntime_session": seconds(
                lambda d=data: onnxruntime.InferenceSession(d, options, providers=["CPUExecutionProvider"]), args.repeats
            ),
        }
        results.add(row)
        print(
            f"{name:13} {row['torchscript']:>11.2f} {row['dynamo']:>8.2f} {row['openvino_direct']:>15.2f} {row['openvino_read']:>9.2f} "
            f"{row['openvino_compile']:>8.2f} {row['onnxruntime_session']:>11.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
