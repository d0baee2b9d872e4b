"""``latprune --version``, and with ``--verbose`` all that a bug report needs."""

from __future__ import annotations

from latprune import __version__

__all__ = ["described"]


def described() -> str:
    """Versions, platform, processor, engines and places, a line each."""
    import os
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from latprune.export.provenance import current_provenance
    from latprune.latency import available_engines, engine_problems
    from latprune.latency.storing.store import default_store_path

    here = current_provenance()
    lines = [f"latprune {__version__}", f"platform   {here.platform}", f"processor  {here.processor}"]
    lines += [f"cuda       {torch.version.cuda or 'not built in'}{', a GPU is there' if torch.cuda.is_available() else ''}"]
    lines += [f"threads    {torch.get_num_threads()} in PyTorch, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}"]
    lines += [f"{name:<10} {number}" for name, number in here.versions.items() if name != "latprune"]
    for package in ("accelerate", "onnxscript", "pyomo", "ray", "pyarrow", "tensorboard", "torchvision", "timm", "transformers"):
        try:
            lines.append(f"{package:<10} {version(package)}")
        except PackageNotFoundError:
            continue
    problems = engine_problems()
    for name, number in available_engines().items():
        lines.append(f"engine     {name}: {number or problems.get(name, 'not installed')}")
    lines.append(f"store      {default_store_path()}")
    return "\n".join(lines)
