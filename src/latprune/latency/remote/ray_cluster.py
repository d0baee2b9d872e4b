"""Joining a Ray cluster and waiting for its devices, with errors that say what is missing."""

from __future__ import annotations

import importlib.util
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from latprune.errors import EngineError, InvalidArgumentError, LatpruneError, MissingExtraError
from latprune.extras import importing

__all__ = ["Patience", "connect", "count_devices", "one_line", "ray_package"]

_ANSWERS_WITHIN = 10.0
"""Seconds that the cluster's head may take to answer."""
_SAID_AFTER = 5.0
"""Seconds of waiting for a device that go without a word."""


def ray_package() -> Any:
    """The package ``ray``; raises MissingExtraError."""
    with importing("ray", "ray"):
        import ray
    return ray


def connect(ray: Any, address: str | None) -> None:
    """Join the cluster. Ray asks for minutes where nobody answers, and then ends the process."""
    place = re.fullmatch(r"(ray://)?([^\s/]+):(\d{1,5})", address or "")
    if address not in (None, "auto") and (place is None or int(place[3]) > 65535):
        raise InvalidArgumentError(f"address (={address!r}) must be ray://HOST:PORT, HOST:PORT or 'auto'")
    if place is not None:
        # Ray's client is an extra of Ray's own.
        if place[1] and importlib.util.find_spec("grpc") is None:
            raise MissingExtraError("ray[client]", "ray")
        try:
            socket.create_connection((place[2], int(place[3])), timeout=_ANSWERS_WITHIN).close()
        except OSError as error:
            raise EngineError(f"address (={address!r}): no Ray cluster answers there ({error}); start one with ray start --head") from error
    if ray.is_initialized():
        return
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
    except (ConnectionError, RuntimeError) as error:
        raise EngineError(f"address (={address!r}): the Ray cluster cannot be joined: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An error of a device in one line; Ray's run over many."""
    text = " ".join(str(error).split())
    return text if isinstance(error, LatpruneError) else f"{type(error).__name__}: {text}"


def count_devices(ray: Any, label: str) -> int:
    """How many nodes offer the label."""
    hint = f"ray start --address=HEAD --resources='{{\"{label}\": 1}}'"
    offers = [(node["NodeManagerAddress"], node["Resources"].get(label, 0.0)) for node in ray.nodes() if node["Alive"]]
    for place, amount in offers:
        if amount not in (0.0, 1.0):
            raise EngineError(
                f"the node at {place} offers {amount:g} of the resource {label!r}, which must be 1: a node measures one network at a time; "
                f"start it with: {hint}"
            )
    count = [amount for _, amount in offers].count(1.0)
    if not count:
        raise EngineError(f"no node of the Ray cluster offers the resource {label!r}; start one with: {hint}")
    return count


@dataclass(slots=True, kw_only=True)
class Patience:
    """Waiting for a device, which is said once and has an end; Ray would wait for ever without a word."""

    label: str
    seconds: float
    report: Callable[[str], None] | None
    since: float = field(default_factory=time.monotonic)
    said: bool = False

    def spend(self, why: str) -> None:
        """Go on waiting for a device that is still ``why``, or raise EngineError."""
        waited = time.monotonic() - self.since
        if waited >= self.seconds:
            raise EngineError(
                f"waited {self.seconds:g} s (wait_seconds) for a device labelled {self.label!r}, still {why}; run this again once "
                "the other run has ended, or start another node"
            )
        if not self.said and waited >= _SAID_AFTER and self.report is not None:
            self.report(f"waiting for a device labelled {self.label!r}, {why}")
            self.said = True
