"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["change", "count", "interval", "milliseconds", "option", "percent", "points", "seconds", "shape"]


def count(value: float) -> str:
    """``853018`` as ``853.0K``, ``4.1e9`` as ``4.10G``; below a thousand as it is."""
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        # The unit changes where rounding would print 1000 of the smaller one.
        if abs(value) >= scale * 0.9995:
            scaled = value / scale
            return f"{scaled:.2f}{unit}" if abs(scaled) < 10 else f"{scaled:.1f}{unit}"
    return f"{value:.0f}"


def milliseconds(value: float) -> str:
    """Three to four digits: ``0.412 ms``, ``7.94 ms``, ``131 ms``."""
    if value >= 100:
        return f"{value:.0f} ms"
    if value >= 10:
        return f"{value:.1f} ms"
    return f"{value:.2f} ms" if value >= 1 else f"{value:.3f} ms"


def interval(low: float, high: float) -> str:
    """The two ends of an interval in milliseconds, with the digits of the larger."""
    digits = 0 if high >= 100 else 1 if high >= 10 else 2 if high >= 1 else 3
    digits += 1
    return f"{low:.{digits}f} – {high:.{digits}f}"


def percent(value: float, digits: int = 1) -> str:
    """``0.4987`` as ``49.9 %``."""
    return f"{value * 100:.{digits}f} %"


def points(value: float) -> str:
    """A difference of two accuracies: ``-0.0123`` as ``−1.23 points``."""
    return f"{_signed(value * 100, 2)} points"


def change(before: float, after: float) -> str:
    """Relative change: ``(8, 4)`` as ``−50.0 %``; empty where there is nothing to compare with."""
    return f"{_signed((after / before - 1.0) * 100, 1)} %" if before else ""


def shape(sizes: Sequence[int]) -> str:
    """``(1, 3, 32, 32)`` as ``1×3×32×32``."""
    return "×".join(str(size) for size in sizes)


def seconds(value: float) -> str:
    """``0.31 s``, ``12.4 s``, ``3 min 05 s``."""
    if value < 1:
        return f"{value:.2f} s"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def _signed(value: float, digits: int) -> str:
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0.0:
        return f"±{text}"
    return f"{'−' if value < 0 else '+'}{text}"


def option(value: object, *, inside: bool = False) -> str:
    """A method's option as people write it: a criterion by its name, with its options; what lies inside of those by name alone.

    Example:
        >>> option({"type": "DivergenceConfig", "examples": 64, "rank": {"type": "TaylorConfig", "side": "makers"}})
        'Divergence(examples=64, rank=Taylor)'
    """
    if isinstance(value, dict) and "type" in value:
        name = str(value["type"]).removesuffix("Config")
        if inside:
            return name
        return f"{name}({', '.join(f'{key}={option(entry, inside=True)}' for key, entry in value.items() if key != 'type')})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(option(entry, inside=inside) for entry in value)}]"
    return str(value)
