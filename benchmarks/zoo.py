"""Any model? One row a network: captured, groups, blocks, pruned to half width without two blocks, equal to the masked one, usable after.

    python benchmarks/zoo.py -o benchmarks/results/zoo.json [--only 'timm:*'] [--timeout 300] [--again]

Every network runs in a process of its own under a time limit, and is reloaded in another one; a row is written as soon as it is there, and
rows that are there are not run again. Checked in float64 with random scales, shifts and layer scales, and statistics near those of the
data, so that mistakes show (in float32, to 1e-4, where the dense network does not run in float64): the pruned network's outputs against
the masked network's (relative error at most 1e-9), gradients after a backward pass, the same outputs after a reload in a new process from
edits (JSON) and weights, and ONNX (float32, 1e-3, with the weights as built where PyTorch's own float32 is off by more with the random
ones; where the dense network cannot be exported either, that is the reason named). Rows ``program:...`` are pruned as captured programs
(``form="program"``), and come back from their file alone. Rows of packages that are not installed (Ultralytics, Diffusers, Segmentation
Models) are left as they are. A row passes when all hold, multiply-adds fell to at most 50 % (65 % where
something stays whole for a reason that is named), and two blocks went where four exist.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]
LARGE_SHARE = 0.05
ONNX_TOLERANCE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "zoo.json")
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="names such as 'timm:*'; may be given several times")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one network (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="run rows again that did not pass")
    parser.add_argument("--most", type=int, help="stop after so many networks")
    parser.add_argument(
        "--skip-onnx", action="store_true", help="leave ONNX out for now; such rows do not pass and are run again by --again"
    )
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    import zoo_models

    names = [n for n in zoo_models.names() if not args.only or any(fnmatch.fnmatch(n, pattern) for pattern in args.only)]
    if args.list:
        print("\n".join(names))
        return
    rows: dict[str, Any] = json.loads(args.output.read_text(encoding="utf-8"))["rows"] if args.output.exists() else {}
    wanted = [n for n in names if n not in rows or (args.again and not rows[n]["passed"])]
    zoo_models.preload(wanted[: args.most])
    for name in wanted[: args.most]:
        rows[name] = run(name, args.timeout, args.skip_onnx)
        write(args.output, rows)
        print(line(name, rows[name]), flush=True)
    summary(rows)


def run(name: str, timeout: float, skip_onnx: bool) -> dict[str, Any]:
    """One network in a new process, and its reload in another; both start from this process, which has built no network."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        row = _in_process(partial(row_of, skip_onnx=skip_onnx), name, Path(folder), timeout)
        if row.get("equal") and row.get("backward"):
            row["reload"] = not (problem := _in_process(reload_of, name, Path(folder), timeout)["why"])
            row["why"] = row["why"] or problem
        row["passed"] = not row["why"]
    row["process_seconds"] = round(time.monotonic() - started, 1)
    return row


def _in_process(work: Callable[[str, Path], dict[str, Any]], name: str, folder: Path, timeout: float) -> dict[str, Any]:
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)

    def target() -> None:
        answer.write_text(json.dumps(work(name, folder)), encoding="utf-8")

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        return {"why": f"not done within {timeout:.0f} s"}
    if not answer.exists():
        return {"why": f"the process ended with exit code {process.exitcode}"}
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def write(path: Path, rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".part")
    staged.write_text(json.dumps({"benchmark": "zoo", "rows": rows}, indent=1) + "\n", encoding="utf-8")
    os.replace(staged, path)


def line(name: str, row: dict[str, Any]) -> str:
    if "groups" not in row:
        return f"{name:46s} {'no':4s} {row['why'][:200]}"
    removed, total = len(row["blocks_removed"]), row["blocks"]
    checks = " ".join(f"{key}:{'yes' if row.get(key) else 'NO'}" for key in ("equal", "backward", "reload", "onnx"))
    text = f"{name:46s} {'yes' if row['passed'] else 'no':4s} groups {row['groups']:3d} blocks {removed}/{row['removable']}/{total:2d} "
    return f"{text}prunable {row['prunable']:4.0%} madds {row['macs']:4.0%} {checks} {row['why'][:200]}"


def summary(rows: dict[str, Any]) -> None:
    families: dict[str, list[bool]] = {}
    for name, row in rows.items():
        families.setdefault(name.partition(":")[0], []).append(bool(row["passed"]))
    for family, found in families.items():
        print(f"{family:14s} {sum(found)} of {len(found)} passed ({sum(found) / len(found):.0%})")


def row_of(name: str, folder: Path, *, skip_onnx: bool = False) -> dict[str, Any]:
    """Everything about one network; the first thing that fails is named in ``why``."""
    row: dict[str, Any] = {"why": ""}
    try:
        _examine(name, row, folder, skip_onnx)
    except Exception as error:  # a row says what went wrong instead of ending the benchmark
        row["why"] = f"{row['step']}: {_told(error)}"[:600]
    row.pop("step", None)
    return row


def _examine(name: str, row: dict[str, Any], folder: Path, skip_onnx: bool) -> None:
    import numpy as np
    import torch

    import zoo_models
    from latprune.graph import Selection, trace
    from latprune.program import capture
    from latprune.surgery import check_equal, masked, prune, replay
    from support.equivalence import randomise

    torch.set_num_threads(1)
    row["step"] = "build"
    model, inputs = zoo_models.create(name)
    as_built = copy.deepcopy(model)
    randomise(model)
    inputs = _in_a_type_that_runs(model, inputs)
    _carry_signal(model, inputs)
    row["parameters"] = sum(p.numel() for p in model.parameters())

    row["step"] = "capture"
    started = time.process_time()
    of_class = model
    if name.startswith("program:"):
        model = capture(model, inputs)
        row["batch"] = model.program.batch_reason or "any"
    graph = trace(model, inputs)
    row["trace_seconds"] = round(time.process_time() - started, 3)
    dense = graph.dense_widths()
    generator = np.random.default_rng(0)
    widths = {n: min(g.columns, max(g.min_width, g.columns // 2)) for n, g in graph.groups.items()}
    kept = {n: _units(g, widths[n], generator) for n, g in graph.groups.items()}
    removable = [n for n, block in graph.blocks.items() if block.removable]
    removed = [removable[i] for i in generator.permutation(len(removable))[:2]]
    narrowest = {n: g.min_width for n, g in graph.groups.items()}
    row |= {
        "groups": len(graph.groups),
        "blocks": len(graph.blocks),
        "removable": len(removable),
        "blocks_removed": removed,
        "prunable": 1.0 - graph.parameters(narrowest, removable) / row["parameters"],
        "macs": graph.macs(widths, removed) / max(graph.macs(dense), 1.0),
        "kept_whole": [
            {"what": k.what, "share": round(k.parameters / row["parameters"], 3), "reason": k.reason}
            for k in graph.kept_whole
            if k.parameters >= LARGE_SHARE * row["parameters"]
        ],
        "blocks_kept": {n: block.reason for n, block in graph.blocks.items() if not block.removable},
    }

    row["step"] = "prune"
    selection = Selection(kept=kept, removed_blocks=frozenset(removed))
    pruned = copy.deepcopy(model)
    edits = prune(pruned, graph, selection)
    row["step"] = "equality"
    report = check_equal(pruned, masked(model, graph, selection), inputs, tolerance=None)
    row |= {"equal": True, "max_abs": report.max_abs, "max_rel": report.max_rel, "dtype": report.dtype}
    assert sum(p.numel() for p in pruned.parameters()) == graph.parameters(widths, removed), (
        "the counted parameters are not those that are left"
    )
    row["step"] = "backward"
    _backward(pruned, inputs)
    row["backward"] = True
    row["step"] = "save"
    _save(pruned, edits, inputs, folder)
    row["step"] = "onnx"
    if skip_onnx:
        row |= {"onnx": False, "onnx_reason": "left out of this run"}
    else:
        try:
            noise = 0.0 if name.startswith("program:") else _single_precision_error(pruned, inputs)
            if noise > ONNX_TOLERANCE:
                # No single-precision runtime could agree with another one; the same structure with the weights that it was built with can.
                row["onnx_weights"] = f"as built, because single precision is off by {noise:.0e} with the random ones"
                replay(as_built.to(next(model.parameters()).dtype).eval(), edits)
                row |= {"onnx_exporter": _export(as_built, inputs), "onnx": True}
            else:
                row |= {"onnx_exporter": _export(pruned, inputs), "onnx": True}
        except Exception as error:
            row |= {"onnx": False, "onnx_reason": _told(error)[:300]}
            try:
                _export(of_class, inputs)
            except Exception as dense_error:
                # Nothing that pruning could lose: the reason is named, the row may pass.
                reason = f"the dense network cannot be exported either ({_told(dense_error)})"[:300]
                row |= {"onnx_dense": False, "onnx_reason": reason}
    row["why"] = _verdict(row)


def _told(error: BaseException) -> str:
    """An error in a row: files by their names alone, for folders are one machine's."""
    return re.sub(r"(?:/[\w.+-]+)+/(?=[\w.+-]+\.py\b)", "", f"{type(error).__name__}: {error}")


def _in_a_type_that_runs(model: Any, inputs: Any) -> Any:
    """The inputs in float64; where the dense network does not run there (kernels for narrower types alone), it goes back to float32."""
    import torch

    from latprune.surgery.verify import in_double

    wide = in_double(inputs)
    try:
        with torch.no_grad():
            _call(model, copy.deepcopy(wide))
    except RuntimeError:
        model.float()
        return inputs
    return wide


def _carry_signal(model: Any, inputs: Any) -> None:
    """Batch norms get the statistics of what they read, up to a random shift and scale, layer after layer.

    With statistics from nowhere the signal dies out in a deep network: its outputs hardly depend on the inputs, hide mistakes, and a
    detector sorts boxes of equal scores by rounding errors.
    """
    import torch

    generator = torch.Generator().manual_seed(0)

    def adjust(module: Any, arguments: Any) -> None:
        x = arguments[0]
        dims = [d for d in range(x.dim()) if d != 1]
        count = x.numel() // x.shape[1]
        if module.running_mean is None or count < 2:
            return
        scale = (x.var(dims, correction=0) + 1e-12).sqrt()
        shift, spread = (torch.rand(x.shape[1], generator=generator, dtype=x.dtype) for _ in range(2))
        module.running_mean.copy_(x.mean(dims) + (shift - 0.5) * scale)
        module.running_var.copy_((scale * (0.75 + 0.5 * spread)) ** 2)

    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    hooks = [m.register_forward_pre_hook(adjust) for m in norms]
    with torch.no_grad():
        if hooks:
            _call(model, copy.deepcopy(inputs))
    for hook in hooks:
        hook.remove()


def _units(group: Any, width: int, generator: Any) -> Any:
    import numpy as np

    rows = [row * group.columns + generator.permutation(group.columns)[:width] for row in range(group.rows)]
    return np.sort(np.concatenate(rows)).astype(np.int64)


def _verdict(row: dict[str, Any]) -> str:
    limit = 0.65 if row["kept_whole"] or row["blocks_kept"] else 0.5
    if row["macs"] > limit:
        return f"multiply-adds at {row['macs']:.0%} of dense, more than {limit:.0%}"
    if row["blocks"] >= 4 and len(row["blocks_removed"]) < 2:
        return f"{len(row['blocks_removed'])} blocks removed of {row['blocks']}: {next(iter(row['blocks_kept'].values()), 'none may go')}"
    unexplained = [k["what"] for k in row["kept_whole"] if not k["reason"]]
    if unexplained:
        return f"kept whole without a reason: {unexplained[0]}"
    return "" if row["onnx"] or row.get("onnx_dense") is False else f"ONNX: {row['onnx_reason']}"


def _call(model: Any, inputs: Any) -> Any:
    from latprune.graph import call_with

    return call_with(model, inputs)


def _backward(model: Any, inputs: Any) -> None:
    import torch

    from latprune.surgery.masked_follower import tensors_in

    network = copy.deepcopy(model).eval()
    outputs = [t for t in tensors_in(_call(network, inputs)) if t.is_floating_point() and t.requires_grad]
    assert outputs, "no output has a gradient"
    sum(t.square().sum() for t in outputs).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients, "no parameter got a gradient"
    assert all(bool(torch.isfinite(g).all()) for g in gradients), "a gradient is not finite"


def _save(pruned: Any, edits: Any, inputs: Any, folder: Path) -> None:
    """Edits, weights and outputs, for the process that reloads them."""
    import torch
    from safetensors.torch import save_file

    from latprune.program import ProgramModule, save_program
    from latprune.surgery.masked_follower import tensors_in

    if isinstance(pruned, ProgramModule):
        save_program(pruned, folder / "program.safetensors")
    (folder / "edits.json").write_text(json.dumps(edits.to_dict()), encoding="utf-8")
    save_file({n: t.detach().clone().contiguous() for n, t in pruned.state_dict().items()}, folder / "weights.safetensors")
    with torch.no_grad():
        outputs = tensors_in(_call(pruned, inputs))
    save_file({str(index): tensor.contiguous().clone() for index, tensor in enumerate(outputs)}, folder / "outputs.safetensors")


def reload_of(name: str, folder: Path) -> dict[str, Any]:
    """In a new process: the dense network from its constructor, the edits, the weights; the same outputs must come back."""
    import torch
    from safetensors.torch import load_file

    import zoo_models
    from latprune.program import load_program
    from latprune.surgery import ArchitectureEdits, replay
    from latprune.surgery.verify import in_double

    torch.set_num_threads(1)
    try:
        model, inputs = zoo_models.create(name)
        if name.startswith("program:"):
            # The file alone: nothing is built but the inputs.
            return _same_outputs(load_program(folder / "program.safetensors"), in_double(inputs), folder)
        state = OrderedDict(load_file(folder / "weights.safetensors"))
        wide = all(t.dtype == torch.float64 for t in state.values() if t.is_floating_point())
        model.to(torch.float64 if wide else torch.float32).eval()
        replay(model, ArchitectureEdits.from_dict(json.loads((folder / "edits.json").read_text(encoding="utf-8"))))
        state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
        model.load_state_dict(state, strict=True)
        return _same_outputs(model, in_double(inputs) if wide else inputs, folder)
    except Exception as error:
        return {"why": f"reload: {_told(error)}"[:600]}


def _same_outputs(model: Any, inputs: Any, folder: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    from latprune.surgery.masked_follower import tensors_in

    with torch.no_grad():
        outputs = tensors_in(_call(model, inputs))
    expected = load_file(folder / "outputs.safetensors")
    assert len(outputs) == len(expected), "other outputs after the reload"
    for index, tensor in enumerate(outputs):
        rtol, atol = (1e-9, 1e-12) if tensor.dtype == torch.float64 else (1e-5, 1e-6)
        assert torch.allclose(tensor, expected[str(index)], rtol=rtol, atol=atol), f"output {index} differs after the reload"
    return {"why": ""}


def _single_precision_error(network: Any, inputs: Any) -> float:
    """How far PyTorch's own outputs are off in single precision, relative to the largest."""
    import torch

    from latprune.surgery.masked_follower import tensors_in

    with torch.no_grad():
        exact = tensors_in(_call(network, inputs))
        single = tensors_in(_call(copy.deepcopy(network).float(), _in_single(inputs)))
    return max(
        (float((a - b.double()).abs().max() / a.abs().max().clamp(min=1.0)) for a, b in zip(exact, single, strict=True) if a.numel()),
        default=0.0,
    )


def _in_single(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _in_single(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_in_single(item) for item in value)
    return value


def _export(pruned: Any, inputs: Any) -> str:
    """Exporter that wrote a file which gives the network's outputs."""
    from latprune.export import export_onnx

    network = copy.deepcopy(pruned).float().eval()
    network.zero_grad(set_to_none=True)
    with tempfile.TemporaryDirectory() as folder:
        return export_onnx(network, _in_single(inputs), Path(folder) / "network.onnx", tolerance=ONNX_TOLERANCE).exporter


if __name__ == "__main__":
    main()
