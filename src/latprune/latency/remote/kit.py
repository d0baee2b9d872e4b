"""Measuring on a device that runs neither PyTorch nor latprune: a zip with models and a one-file runner; its answer becomes a table.

The kit holds ONNX models (the dense network and width-varied copies), a plan, and ``run.py``, which needs Python, numpy and ONNX Runtime.
On the device: ``python run.py kit.zip results.json``. The runner writes its answer after every network and goes on where it stopped.

The runner measures a network again where its own times disagree. What only the other networks show to be far off comes to light where the
results are imported: ``write_kit_again`` makes a small kit of these, whose results join the first ones as repetitions.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError
from torch import nn

from latprune.copying import copied
from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.file_model import FileModel
from latprune.latency.engines import KernelTime
from latprune.latency.engines.inputs import prepare
from latprune.latency.engines.onnx_graph import OnnxNetwork, export_onnx
from latprune.latency.engines.onnxruntime import check_target, step_path
from latprune.latency.measuring.design import DesignPoint, design_points
from latprune.latency.measuring.matching import MatchedProfile, match_profile
from latprune.latency.measuring.sampling import selection_for
from latprune.latency.measuring.signature import kernel_signature, network_fingerprint
from latprune.latency.measuring.unseen import price_unseen, unseen_layers
from latprune.latency.samples import ContextInfo, KernelSample, NetworkSample
from latprune.latency.storing.store import Store
from latprune.latency.tabulating.repeats import REPEAT, due_again
from latprune.latency.target import Target
from latprune.storage import replacing

if TYPE_CHECKING:
    from latprune.graph import ModelGraph

__all__ = ["import_kit_results", "write_kit", "write_kit_again"]

_FORMAT = "latprune/latency-kit"
_RESULTS = "latprune/latency-kit-results"
_VERSION = 2
_VERSIONS = (1, 2)
"""Versions that are read: the first knew neither repetitions nor how steady the runner found a network."""


class _Step(FileModel):
    name: str
    op: str
    ms: float = Field(ge=0, lt=1e9, allow_inf_nan=False)


class _Network(FileModel):
    index: int = Field(ge=0)
    ms: float = Field(gt=0, lt=1e9, allow_inf_nan=False)
    reference_ms: float = Field(gt=0, lt=1e9, allow_inf_nan=False)
    spread: float = Field(ge=0, allow_inf_nan=False)
    runs: int = Field(ge=1, lt=2**63)  # as the store keeps them
    created: float = Field(ge=0, allow_inf_nan=False)
    steps: tuple[_Step, ...]
    looks: int = Field(default=1, ge=1)
    clock: dict[str, int | str] = Field(default_factory=dict)
    steady: bool = True


class _Results(FileModel):
    format: str
    version: int
    kit: str
    engine_version: str = Field(min_length=1)
    machine: str = Field(min_length=1)
    provider: str
    networks: tuple[_Network, ...]


def write_kit(
    path: str | Path,
    model: nn.Module,
    graph: ModelGraph,
    example_inputs: Any,
    target: Target,
    *,
    networks: int = 48,
    seed: int = 0,
) -> str:
    """Write a kit of ``networks`` width-varied networks; returns its identity, which results must carry.

    Args:
        path: Zip file to write.
        model: The dense model; it is left as it is.
        graph: Its trace.
        example_inputs: What it runs on.
        target: Conditions to measure under. ``engine`` must be ``onnxruntime``; ``device`` is ``cpu`` or the name of an execution provider.
        networks: Width-varied networks.
        seed: Seed of the design: the same as ``build_tables`` would measure.

    Raises:
        EngineError: ONNX Runtime cannot meet the target on any device.
    """
    if target.engine != "onnxruntime":
        raise InvalidArgumentError(f"target.engine (={target.engine!r}) must be 'onnxruntime': the runner needs nothing else on the device")
    check_target(target)
    if networks < 2:
        raise InvalidArgumentError(f"networks (={networks}) must be at least 2")
    points = list(islice(design_points(list(graph.groups.values()), list(graph.blocks.values()), seed=seed), networks))
    return _write(path, model, graph, example_inputs, target, points, {"seed": seed})


def write_kit_again(
    path: str | Path,
    store: Store,
    kit: str | Path,
    results: str | Path,
    model: nn.Module,
    graph: ModelGraph,
    example_inputs: Any,
) -> int:
    """Write a kit of the networks that should be measured again on a device whose results were imported; returns how many there are.

    Those are networks that are far off what the others of the device say, and repetitions that did not agree (``repeats.due_again``). The
    second kit's results are imported as any other's and count as repetitions. Nothing is written where no network is due.

    Args:
        path: Zip file to write.
        store: Store that the results were imported to.
        kit: The kit that was run last.
        results: What its runner wrote.
        model: The dense model; it is left as it is.
        graph: Its trace.
        example_inputs: What it runs on.

    Example:
        >>> import_kit_results(store, "kit.zip", "results.json", graph)  # doctest: +SKIP
        >>> write_kit_again("kit2.zip", store, "kit.zip", "results.json", model, graph, x)  # doctest: +SKIP
    """
    plan = _plan(kit)
    found = _read_results(results, kit, plan)
    context = ContextInfo(target=Target(**plan["target"]), version=found.engine_version, machine=found.machine)
    first = due_again(graph, context, store.networks(context, plan["fingerprint"]))
    if first:
        points = [DesignPoint(widths=sample.widths, removed=sample.removed) for sample in first]
        again = [sample.created for sample in first]
        # The same network may be due twice; what was known before tells its two kits apart.
        after = store.digest(context, plan["fingerprint"]).text
        _write(path, model, graph, example_inputs, context.target, points, {"seed": plan["seed"], "again": again, "after": after})
    return len(first)


def _write(
    path: str | Path,
    model: nn.Module,
    graph: ModelGraph,
    example_inputs: Any,
    target: Target,
    points: Sequence[DesignPoint],
    origin: Mapping[str, Any],
) -> str:
    from latprune.surgery import prune

    _, inputs = prepare(model, example_inputs, target, cast=True)
    entries = []
    # Each network goes to the disk as it is made: all of them together can be many gigabytes.
    with replacing(path) as staged, zipfile.ZipFile(staged, "w", zipfile.ZIP_DEFLATED) as kit:
        for index, point in enumerate([DesignPoint(widths={}), *points]):
            changed = copied(model)
            if index:
                prune(changed, graph, selection_for(graph, point))
            exported = export_onnx(prepare(changed, example_inputs, target, cast=True)[0], inputs)
            # Weights hardly compress, and trying takes longer than all else here.
            kit.writestr(f"models/{index}.onnx", exported.data, zipfile.ZIP_STORED)
            entries.append({"widths": dict(point.widths), "removed": list(point.removed), "names": _names(exported)})
        plan = {
            "format": _FORMAT,
            "version": _VERSION,
            "target": target.to_dict(),
            "fingerprint": network_fingerprint(list(graph.kernels.values()), example_inputs, target),
            "structure": _structure(graph, target),
            **origin,
            "inputs": [{"shape": list(tensor.shape), "dtype": str(tensor.numpy().dtype)} for tensor in inputs.tensors],
            "networks": entries,
        }
        identity = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:32]
        kit.writestr("plan.json", json.dumps({**plan, "kit": identity}, sort_keys=True))
        kit.writestr("run.py", importlib.resources.files("latprune.latency").joinpath("kit_runner.py").read_text())
    return identity


def _structure(graph: ModelGraph, target: Target) -> str:
    """The fingerprint without the example inputs, which are not at hand where results are imported; kernels know their shapes."""
    return network_fingerprint(list(graph.kernels.values()), (), target)


def _names(exported: OnnxNetwork) -> dict[str, Any]:
    """What the importer needs to find a step's module, as JSON."""
    return {
        "paths": dict(exported.paths),
        "ops": dict(exported.ops),
        "producers": dict(exported.producers),
        "inputs_of": {name: list(inputs) for name, inputs in exported.inputs_of.items()},
    }


def _plan(kit: str | Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(kit) as file:
            plan: dict[str, Any] = json.loads(io.TextIOWrapper(file.open("plan.json"), encoding="utf-8").read())
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{kit} is no measuring kit: {error}") from error
    if plan.get("format") != _FORMAT or plan.get("version") not in _VERSIONS:
        raise FileFormatError(f"{kit} has format {plan.get('format')!r}, version {plan.get('version')!r}", path="format")
    return plan


def _read_results(results: str | Path, kit: str | Path, plan: Mapping[str, Any]) -> _Results:
    try:
        found = _Results.model_validate_json(Path(results).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{results} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise FileFormatError(f"{first['msg']} (in {results})", path=".".join(map(str, first["loc"]))) from error
    if found.format != _RESULTS or found.version not in _VERSIONS:
        raise FileFormatError(f"{results} has format {found.format!r}, version {found.version}", path="format")
    if found.kit != plan["kit"]:
        raise FileFormatError(f"{results} was measured with another kit ({found.kit}); this one is {plan['kit']}", path="kit")
    return found


def import_kit_results(store: Store, kit: str | Path, results: str | Path, graph: ModelGraph) -> int:
    """Add what a device measured to a store, under the device's own conditions; returns the number of networks added.

    Results of a kit that ``write_kit_again`` made count as repetitions of the networks that are there.

    Args:
        store: Store to add to.
        kit: The kit that was run.
        results: The file that its runner wrote, complete or not.
        graph: Trace of the model that the kit was made from.

    Raises:
        FileFormatError: A file is malformed, or the results are not this kit's.
        InvalidArgumentError: The graph is another model's.
    """
    plan = _plan(kit)
    found = _read_results(results, kit, plan)
    kernels = list(graph.kernels.values())
    dense = graph.dense_widths()
    for number, entry in enumerate(plan["networks"]):
        if set(entry["widths"]) - set(dense) or set(entry["removed"]) - set(graph.blocks):
            raise InvalidArgumentError(f"graph is not that of the kit's model: network {number} names groups or blocks that it lacks")
    target = Target(**plan["target"])
    # Kits from before the structure was in the plan have none.
    if "structure" in plan and plan["structure"] != _structure(graph, target):
        raise InvalidArgumentError(
            f"graph is not that of the kit's model: widths or input sizes differ, or {kit} was written by a latprune that timed networks "
            "in another way; give the model, its arguments and the input that the kit was written with"
        )
    context = ContextInfo(target=target, version=found.engine_version, machine=found.machine)
    profiles: dict[int, MatchedProfile] = {}
    for place, network in enumerate(found.networks):
        if network.index >= len(plan["networks"]):
            raise FileFormatError(f"{results} names a network that the kit does not have", path=f"networks.{place}.index")
        if network.index in profiles:
            raise FileFormatError(f"network {network.index} is there twice", path=f"networks.{place}.index")
        entry = plan["networks"][network.index]
        profiles[network.index] = match_profile(_entries(network, entry["names"]), kernels, entry["removed"], _widths(dense, entry))
        if not profiles[network.index].shares:
            raise FileFormatError("no step could be matched to a kernel of the model", path=f"networks.{place}.steps")
    if 0 not in profiles:
        raise FileFormatError(f"{results} lacks the dense network; run the kit again", path="networks")
    priced = unseen_layers(kernels, profiles[0], dense, "onnxruntime")
    for index, profile in profiles.items():
        entry = plan["networks"][index]
        profiles[index] = price_unseen(profile, kernels, priced, _widths(dense, entry), entry["removed"])
    signatures = {
        kernel.name: kernel_signature(kernel, profiles[0].shares[kernel.name].attached)
        for kernel in kernels
        if kernel.name in profiles[0].shares
    }
    again = plan.get("again")
    known = {network.created for network in store.networks(context, plan["fingerprint"])}
    samples = []
    for network in found.networks:
        entry = plan["networks"][network.index]
        if network.index == 0 or network.created in known:
            continue
        widths = _widths(dense, entry)
        samples.append(
            NetworkSample(
                fingerprint=plan["fingerprint"],
                widths=widths,
                removed=tuple(sorted(entry["removed"])),
                ms=network.ms,
                reference_ms=network.reference_ms,
                kernels=tuple(
                    KernelSample(
                        kernel=kernel.name,
                        signature=signatures[kernel.name],
                        sizes=tuple(axis.size(widths, entry["removed"]) for axis in kernel.axes),
                        ms=profiles[network.index].shares[kernel.name].ms,
                        steps=profiles[network.index].shares[kernel.name].steps,
                    )
                    for kernel in kernels
                    if kernel.name in signatures and kernel.name in profiles[network.index].shares
                ),
                runs=network.runs,
                spread=network.spread,
                created=network.created,
                extra=network.clock
                | {"kit": found.kit, "provider": found.provider, "steady": network.steady}
                | ({REPEAT: again[network.index - 1]} if again is not None else {}),
            )
        )
    return store.add(context, samples)


def _widths(dense: Mapping[str, int], entry: Mapping[str, Any]) -> dict[str, int]:
    """Widths of a network of a plan."""
    return {**dense, **{name: int(width) for name, width in entry["widths"].items()}}


def _entries(network: _Network, names: Mapping[str, Any]) -> list[KernelTime]:
    exported = OnnxNetwork(
        data=b"",
        conversion="kit",
        paths=names["paths"],
        ops=names["ops"],
        producers=names["producers"],
        inputs_of={name: tuple(inputs) for name, inputs in names["inputs_of"].items()},
        input_names=(),
    )
    return [
        KernelTime(name=step.name, op=step.op, path=step_path(exported, step.name, step.op), order=order, ms=step.ms, runs=network.runs)
        for order, step in enumerate(network.steps)
        if math.isfinite(step.ms)
    ]
