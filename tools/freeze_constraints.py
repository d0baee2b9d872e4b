"""Write the versions installed in this environment as a constraints file: ``python tools/freeze_constraints.py constraints.txt``.

Local version labels (``2.13.0+cpu``) are dropped, so that the file holds on a machine with another build of the same version; packages that
the environment has for its own sake (pip, setuptools, latprune itself) are left out. Versions of packages that are not installed here, such
as the documentation's, are kept from the old file.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path

HEADER = """\
# Exact versions that the tests and the demo run with. Used as `pip install -c constraints.txt`; it installs nothing by itself.
# Regenerate with `make constraints` in an environment whose tests pass.
"""
LEFT_OUT = {"latprune", "pip", "setuptools", "wheel"}


def read(path: Path) -> dict[str, str]:
    """Versions by normalised name from an existing constraints file, if there is one."""
    if not path.exists():
        return {}
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return dict(line.split("==", 1) for line in lines if line and not line.startswith("#"))


def installed() -> dict[str, str]:
    """Versions by normalised name of what is installed."""
    found = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if name not in LEFT_OUT:
            found[name] = distribution.version.split("+", 1)[0]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: the path of the file to write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=Path("constraints.txt"), help="file to write (default: %(default)s)")
    path: Path = parser.parse_args(argv).path
    versions = read(path) | installed()
    path.write_text(HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items())), encoding="utf-8")
    print(f"{path}: {len(versions)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
