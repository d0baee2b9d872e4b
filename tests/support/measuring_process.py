"""A process that builds tables on the made-up machine: to be killed, to share its store with another, to run out of disk.

python measuring_process.py STORE NETWORKS [LARGEST FILE IN BYTES]
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latprune.errors import LatpruneError
from latprune.latency import DesignPoint, LatencyTables, NetworkSample, Store, Target, network_fingerprint
from latprune.latency.tabulating import build
from support.made_up_machine import BLOCKS, GROUPS, KERNELS, WIDTHS, MadeUpMachine

GRAPH: Any = SimpleNamespace(kernels=KERNELS, groups=GROUPS, blocks=BLOCKS)
TARGET = Target(engine="torch")
X = np.zeros(1)
FINGERPRINT = network_fingerprint(list(KERNELS.values()), X, TARGET)


class MadeUpSampler:
    """Takes the sampler's place: what a network takes depends on the network alone, not on the order."""

    def __init__(self, *args: Any) -> None:
        self.runs = 0

    def sample(self, point: DesignPoint) -> NetworkSample:
        time.sleep(0.005)
        machine = MadeUpMachine(zlib.crc32(repr((sorted({**WIDTHS, **point.widths}.items()), point.removed)).encode()), interrupted=0.0)
        return dataclasses.replace(machine.sample(point), fingerprint=FINGERPRINT, created=time.time())

    def close(self) -> None:
        pass


def tables(path: str | Path, networks: int) -> LatencyTables:
    """Build, and say each network as it is stored."""
    build.NetworkSampler = MadeUpSampler  # type: ignore[assignment, misc]
    with Store(path) as store:
        return build.build_tables(
            nn.Identity(),
            GRAPH,
            X,
            TARGET,
            store=store,
            max_networks=networks,
            extend=True,
            progress=lambda state: print(state.networks, flush=True),
        )


def main() -> int:
    if len(sys.argv) > 3:
        limit = int(sys.argv[3])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        found = tables(sys.argv[1], int(sys.argv[2]))
    except LatpruneError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"predicts {found.predict({'a': 48}, ['b'])!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
