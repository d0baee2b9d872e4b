"""ONNX in, ONNX out: public networks exported by both of PyTorch's exporters, read, pruned to 60 % of their multiply-adds, written again.

    python benchmarks/onnx_in.py -o benchmarks/results/onnx_in.json [--only 'timm:*'] [--again] [--timeout 240]

Twenty networks of torchvision, timm and Hugging Face with random weights, each exported at one batch size by the TorchScript-based and by
the ``torch.export``-based exporter: forty files; and two YOLO of ultralytics where that package is installed (it is no requirement of
anything here). A row passes when the file is read, the program computes what ONNX Runtime makes of the
file (1e-4) and runs at other batch sizes, a uniform cut brings it to at most 60 % of the multiply-adds (masked and pruned network are
compared on the way), and the pruned network, written as ONNX with an open batch, gives its outputs in ONNX Runtime and OpenVINO. Nothing is
timed. Every file is read in a process of its own; rows that are there are not run again.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]
BUDGET = 0.6
NETWORKS: dict[str, int] = {
    "torchvision:resnet50": 96,
    "torchvision:mobilenet_v3_small": 96,
    "torchvision:efficientnet_b0": 96,
    "torchvision:shufflenet_v2_x0_5": 96,
    "torchvision:densenet121": 96,
    "torchvision:googlenet": 96,
    "torchvision:regnet_y_400mf": 96,
    "torchvision:swin_t": 128,
    "torchvision:vit_b_32": 224,
    "torchvision:deeplabv3_mobilenet_v3_large": 96,
    "timm:deit_tiny_patch16_224": 224,
    "timm:convnext_atto": 96,
    "timm:mobilenetv4_conv_small": 96,
    "timm:ghostnetv2_100": 96,
    "timm:cspdarknet53": 96,
    "timm:poolformerv2_s12": 96,
    "timm:levit_128s": 224,
    "timm:edgenext_xx_small": 128,
    "huggingface:bert": 12,
    "huggingface:segformer": 64,
    "ultralytics:yolov8n": 128,
    "ultralytics:yolo11n": 128,
}
"""Name -> side of the image (or length of the text)."""
EXPORTERS = ("torchscript", "dynamo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "onnx_in.json")
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="names such as 'timm:*'; may be given several times")
    parser.add_argument("--again", action="store_true", help="run rows again that did not pass")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds for one file (default: %(default)s)")
    parser.add_argument("--row", nargs=2, metavar=("NETWORK", "EXPORTER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.row:
        print(json.dumps(run(*args.row)))
        return
    from latprune.storage import write_atomic

    rows: dict[str, Any] = json.loads(args.output.read_text(encoding="utf-8"))["rows"] if args.output.exists() else {}
    for name in NETWORKS:
        if name.startswith("ultralytics") and importlib.util.find_spec("ultralytics") is None:
            continue
        if args.only and not any(fnmatch.fnmatch(name, pattern) for pattern in args.only):
            continue
        for exporter in EXPORTERS:
            key = f"{name}, {exporter}"
            if key in rows and not (args.again and not rows[key]["passed"]):
                continue
            rows[key] = in_process(name, exporter, args.timeout)
            ordered = {k: rows[k] for k in (f"{n}, {e}" for n in NETWORKS for e in EXPORTERS) if k in rows}
            args.output.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(args.output, json.dumps({"benchmark": "onnx_in", "rows": ordered}, indent=1) + "\n")
            print(line(key, rows[key]), flush=True)
    kept = [row for key, row in rows.items() if key.split(", ")[0] in NETWORKS]
    print(f"{sum(row['passed'] for row in kept)} of {len(kept)} passed")


def in_process(name: str, exporter: str, timeout: float) -> dict[str, Any]:
    """A row, run in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--row", name, exporter]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"passed": False, "reason": f"took more than {timeout:.0f} s"}
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"passed": False, "reason": "the process ended: " + (done.stderr.strip().splitlines() or ["without a word"])[-1]}
    return found


def line(key: str, row: dict[str, Any]) -> str:
    """A row for the terminal."""
    if "share" not in row:
        return f"{key}: FAILED at {row.get('at', 'the start')}: {row['reason']}"
    return (
        f"{key}: {row['nodes']} nodes, {row['groups']} groups, {row['blocks']} blocks, {row['share']:.1%} of the multiply-adds"
        f"{', any batch' if row['any_batch'] else ''}" + ("" if row["passed"] else f": FAILED at {row['at']}: {row['reason']}")
    )


def run(name: str, exporter: str) -> dict[str, Any]:
    """Export, read, prune, write; a row says how far it came."""
    import torch

    import latprune
    from latprune.export import export_onnx
    from latprune.export.signature import call
    from latprune.onnx_reader.model_file import read_graph, read_model

    row: dict[str, Any] = {"passed": False, "at": "export", "reason": ""}
    torch.manual_seed(0)
    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "model.onnx", Path(folder) / "small.onnx"
        try:
            inputs = export(name, exporter, path)
            graph = read_graph(read_model(path))
            row |= {"at": "read", "nodes": len(graph.nodes), "operators": len({n.kind for n in graph.nodes}), "opset": graph.opset}
            program = latprune.load_onnx(path)
            row |= {"at": "any batch", "any_batch": not program.program.batch_reason, "batch_reason": program.program.batch_reason}
            if program.program.batch_reason:
                row["reason"] = program.program.batch_reason
            row["at"] = "prune"
            found = latprune.trace(program, inputs)
            row |= {"groups": len(found.groups), "blocks": sum(b.removable for b in found.blocks.values())}
            result = latprune.prune(
                program, inputs, budget=f"flops={BUDGET:.0%}", method="uniform", measure_latency=False, target=latprune.Target()
            )
            row["share"] = result.record.pruned.macs / result.record.dense.macs
            row["at"] = "write"
            written = export_onnx(result.model, inputs, out, dynamic_batch=not program.program.batch_reason)
            largest = max(float(t.abs().max()) for t in call(result.model, inputs))
            row |= {
                "largest": largest,
                "error": max(written.errors.values()),
                "runtimes": sorted(written.errors),
                "exporter": written.exporter,
            }
            names = [[entry.name for entry in read_graph(read_model(p)).inputs] for p in (path, out)]
            row["at"] = "names" if names[0] != names[1] else "budget" if row["share"] > BUDGET * 1.001 else "any batch"
            row["passed"] = row["at"] == "any batch" and row["any_batch"]
        except Exception as error:  # whatever it is, it is the row's reason
            row["reason"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:400]
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def export(name: str, exporter: str, path: Path) -> Any:
    """Write a network as ONNX; returns inputs for it, by position."""
    import torch

    import zoo_models
    from latprune.export.signature import FlatCall, is_plain, named_inputs
    from latprune.quiet import quiet_exporters

    model, example = build(name, zoo_models)
    steady(model, example)
    named = named_inputs(model, example)
    called = model if is_plain(example) else FlatCall(model, example).eval()
    options: dict[str, Any] = {"input_names": list(named), "dynamo": exporter == "dynamo"}
    if exporter == "dynamo":
        options["verbose"] = False
    with quiet_exporters():
        torch.onnx.export(called, tuple(named.values()), str(path), **options)
    tensors = tuple(named.values())
    return tensors[0] if len(tensors) == 1 else tensors


def steady(model: Any, example: Any) -> None:
    """Draw what a fresh network has constant, and give norms the statistics of noise: values that vanish on their way, or a head of zeros,
    would make equality say nothing.
    """
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.view(-1)[0]).all()):
                constant = float(parameter.view(-1)[0])
                parameter.copy_(torch.rand_like(parameter) + 0.5 if constant else 0.05 * torch.randn_like(parameter))
        norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        if norms and isinstance(example, torch.Tensor):
            for norm in norms:
                norm.momentum = 1.0
            model.train()(torch.randn(8, *example.shape[1:]))
    model.eval()


def build(name: str, zoo_models: Any) -> tuple[Any, Any]:
    """A network and its example inputs at batch size 1."""
    import torch

    from support.vision import torchvision

    library, _, kind = name.partition(":")
    side = NETWORKS[name]
    image = torch.randn(1, 3, side, side)
    if library == "torchvision":
        models = torchvision().models
        options: dict[str, Any] = {"weights": None}
        if kind == "googlenet":
            options |= {"aux_logits": False, "init_weights": True}
        if kind.startswith("deeplab"):
            options |= {"weights_backbone": None, "num_classes": 8}
        return models.get_model(kind, **options), image
    if library == "timm":
        torchvision()
        import timm

        size = {"img_size": side} if kind.startswith(("deit", "vit")) else {}
        return timm.create_model(kind, pretrained=False, **size), image
    if library == "ultralytics":
        torchvision()
        from ultralytics.nn.tasks import DetectionModel

        network = DetectionModel(f"{kind}.yaml", verbose=False).eval()
        network.model[-1].export, network.model[-1].format = True, "onnx"  # the head as its own exporter writes it
        network(image)
        return network, image
    model, example = zoo_models.HUGGINGFACE[kind]()
    return model, {n: t[:1] for n, t in example.items()}


if __name__ == "__main__":
    main()
