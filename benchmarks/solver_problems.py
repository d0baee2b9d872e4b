"""Pruning problems shaped like known networks, with seeded staircase latency tables: what the solver benchmark feeds on.

A table is ``overhead + rate * work(ceil(in / lanes) * lanes, ceil(out / lanes) * lanes) * (1 + noise)``: an engine's vector width makes the stairs,
the noise makes it neither monotone nor smooth, as measured tables are. Importance is a heavy-tailed score per channel, sorted, cumulated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from latprune.problem import Axis, Problem, Resource, Sum, SumMember, Term, Variable

LANES_IN, LANES_OUT = 8, 16
OVERHEAD_MS, MS_PER_MAC, NOISE = 0.004, 2.5e-8, 0.03

NETWORKS = ("resnet50", "resnet101", "resnet152", "mobilenet_v2", "vit_b", "densenet121")


def choices(width: int, step: int) -> tuple[int, ...]:
    """Multiples of ``step`` up to ``width``, which is always one of them."""
    return tuple(sorted({*range(step, width + 1, step), width}))


@dataclass
class Builder:
    step: int
    seed: int = 0
    variables: list[Variable] = field(default_factory=list)
    gains: list[Term] = field(default_factory=list)
    costs: list[Term] = field(default_factory=list)
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def width(self, name: str, width: int, step: int | None = None) -> str:
        values = choices(width, self.step if step is None else step)
        self.variables.append(Variable(name=name, choices=values))
        self.sizes[name] = values
        return name

    def block(self, name: str) -> str:
        self.variables.append(Variable(name=f"block:{name}", kind="block", choices=(0, 1)))
        return f"block:{name}"

    def gain(self, layer: str, variable: str, gate: str | None = None, weight: float = 1.0) -> None:
        """Importance of one layer's share of a channel group."""
        values = self.sizes[variable]
        scores = np.sort(self.rng.lognormal(0.0, 1.0, values[-1]))[::-1] * weight * self.rng.uniform(0.5, 2.0) / values[-1] ** 0.5
        self.gains.append(Term(name=layer, over=(variable,), gate=(gate,) if gate else (), table=np.cumsum(scores)[np.array(values) - 1]))

    def axis(self, read: str | list[str]) -> tuple[Axis, np.ndarray]:
        """A width, or the total of several (one table entry per multiple of the step)."""
        if isinstance(read, str):
            return read, np.array(self.sizes[read])
        if len(read) == 1:
            return self.axis(read[0])
        largest = sum(self.sizes[r][-1] for r in read)
        smallest = sum(self.sizes[r][0] for r in read)
        at = tuple(sorted({*range(smallest, largest + 1, self.step), largest}))
        return Sum(members=tuple(SumMember(name=r) for r in read), at=at), np.array(at)

    def stairs(self, macs: float, *widths: tuple[np.ndarray, int]) -> np.ndarray:
        """Milliseconds of a kernel of ``macs`` multiply-adds per product of its widths (each with its vector width)."""
        work: np.ndarray = np.array(macs * MS_PER_MAC)
        for d, (values, lanes) in enumerate(widths):
            stair = np.ceil(values / lanes) * lanes
            work = work * stair.reshape([-1 if i == d else 1 for i in range(len(widths))])
        return (OVERHEAD_MS + work) * (1 + NOISE * self.rng.standard_normal(work.shape))

    def conv(self, name: str, read: str | list[str] | int, write: str | int, pixels: int, kernel: int, gate: str | None = None) -> None:
        """A convolution's latency over its input and output widths (a number is a width that stays)."""
        macs = float(pixels * kernel * kernel)
        axes: list[Axis] = []
        widths: list[tuple[np.ndarray, int]] = []
        for end, lanes in ((read, LANES_IN), (write, LANES_OUT)):
            if isinstance(end, int):
                macs *= end
                continue
            axis, values = self.axis(end)
            axes.append(axis)
            widths.append((values, lanes))
        self.costs.append(Term(name=name, over=tuple(axes), gate=(gate,) if gate else (), table=self.stairs(macs, *widths)))

    def problem(self, fraction: float) -> Problem:
        """With a limit of ``fraction`` of the dense latency."""
        problem = Problem(
            variables=tuple(self.variables),
            gains=tuple(self.gains),
            costs=(Resource(name="latency", unit="ms", limit=None, constant=0.05, terms=tuple(self.costs)),),
        )
        dense = problem.evaluate({v.name: v.choices[-1] for v in problem.variables}).costs["latency"]
        return problem.replace_limits({"latency": fraction * dense})


def resnet(depths: tuple[int, int, int, int], step: int, seed: int) -> Builder:
    b = Builder(step=step, seed=seed)
    stem = b.width("conv1", 64)
    b.gain("conv1", stem)
    b.conv("conv1", 3, stem, 112 * 112, 7)
    previous = stem
    for stage, depth in enumerate(depths):
        planes, side = 64 * 2**stage, 56 // 2**stage
        hub = b.width(f"layer{stage + 1}.0.downsample", 4 * planes)
        b.gain(hub, hub)
        b.conv(hub, previous, hub, side * side, 1)
        for i in range(depth):
            name = f"layer{stage + 1}.{i}"
            gate = b.block(name)
            c1, c2 = b.width(f"{name}.conv1", planes), b.width(f"{name}.conv2", planes)
            b.gain(c1, c1, gate)
            b.gain(c2, c2, gate)
            b.gain(f"{name}.conv3", hub, gate)
            inner_side = side * (2 if i == 0 and stage else 1)
            b.conv(c1, previous if i == 0 else hub, c1, inner_side * inner_side, 1, gate)
            b.conv(c2, c1, c2, side * side, 3, gate)
            b.conv(f"{name}.conv3", c2, hub, side * side, 1, gate)
        previous = hub
    b.conv("fc", previous, 1000, 1, 1)
    return b


def mobilenet_v2(step: int, seed: int) -> Builder:
    b = Builder(step=step, seed=seed)
    settings = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    hub = b.width("features.0", 32)
    b.gain(hub, hub)
    side = 112
    b.conv("features.0", 3, hub, side * side, 3)
    index = 1
    hub_width = 32
    for expand, width, repeats, stride in settings:
        for i in range(repeats):
            name = f"features.{index}"
            index += 1
            residual = i > 0
            gate = b.block(name) if residual else None
            inner = hub
            out_side = side // (stride if i == 0 else 1)
            if expand > 1:
                inner = b.width(f"{name}.expand", expand * hub_width)
                b.gain(inner, inner, gate)
                b.conv(inner, hub, inner, side * side, 1, gate)
            values = np.array(b.sizes[inner])
            b.costs.append(
                Term(
                    name=f"{name}.depthwise",
                    over=(inner,),
                    gate=(gate,) if gate else (),
                    table=b.stairs(9.0 * out_side**2 * 4, (values, LANES_OUT)),
                )
            )
            side = out_side
            out = hub if residual else b.width(f"{name}.project", width)
            b.gain(f"{name}.project", out, gate)
            b.conv(f"{name}.project", inner, out, side * side, 1, gate)
            hub, hub_width = out, width
    last = b.width("features.18", 1280)
    b.gain(last, last)
    b.conv(last, hub, last, side * side, 1)
    b.conv("classifier", last, 1000, 1, 1)
    return b


def vit_b(step: int, seed: int, depth: int = 12) -> Builder:
    b = Builder(step=step, seed=seed)
    tokens = 197
    embed = b.width("embed", 768)
    b.gain("patch_embed", embed)
    b.conv("patch_embed", 3, embed, 196, 16)
    for i in range(depth):
        name = f"blocks.{i}"
        attention, mlp = b.block(f"{name}.attn"), b.block(f"{name}.mlp")
        heads = b.width(f"{name}.attn.heads", 12, step=1)
        qk, v = b.width(f"{name}.attn.qk", 64), b.width(f"{name}.attn.v", 64)
        hidden = b.width(f"{name}.mlp.fc1", 3072)
        for variable, gate in ((heads, attention), (qk, attention), (v, attention), (hidden, mlp)):
            b.gain(variable, variable, gate)
        b.gain(f"{name}.attn.proj", embed, attention)
        b.gain(f"{name}.mlp.fc2", embed, mlp)
        e, h = np.array(b.sizes[embed]), np.array(b.sizes[heads])
        q, k, m = np.array(b.sizes[qk]), np.array(b.sizes[v]), np.array(b.sizes[hidden])
        tables = (
            ("qk", (embed, heads, qk), 2.0 * tokens, ((e, LANES_IN), (h, 1), (q, LANES_OUT)), attention),
            ("scores", (heads, qk), 1.0 * tokens * tokens, ((h, 1), (q, LANES_IN)), attention),
            ("v", (embed, heads, v), 2.0 * tokens, ((e, LANES_IN), (h, 1), (k, LANES_OUT)), attention),
            ("mix", (heads, v), 1.0 * tokens * tokens, ((h, 1), (k, LANES_IN)), attention),
            ("fc1", (embed, hidden), 1.0 * tokens, ((e, LANES_IN), (m, LANES_OUT)), mlp),
            ("fc2", (hidden, embed), 1.0 * tokens, ((m, LANES_IN), (e, LANES_OUT)), mlp),
        )
        for kernel, over, macs, widths, gate in tables:
            b.costs.append(Term(name=f"{name}.{kernel}", over=over, gate=(gate,), table=b.stairs(macs, *widths)))
    b.conv("head", embed, 1000, 1, 1)
    return b


def densenet121(step: int, seed: int) -> Builder:
    b = Builder(step=step, seed=seed)
    growth = 32
    stem = b.width("conv0", 64)
    b.gain(stem, stem)
    b.conv("conv0", 3, stem, 112 * 112, 7)
    parts, total, side = [stem], 64, 56
    for block, depth in enumerate((6, 12, 24, 16)):
        for i in range(depth):
            name = f"denseblock{block + 1}.denselayer{i + 1}"
            bottleneck, out = b.width(f"{name}.conv1", 4 * growth), b.width(f"{name}.conv2", growth)
            b.gain(bottleneck, bottleneck)
            b.gain(out, out)
            b.conv(bottleneck, list(parts), bottleneck, side * side, 1)
            b.conv(out, bottleneck, out, side * side, 3)
            parts.append(out)
            total += growth
        if block < 3:
            transition = b.width(f"transition{block + 1}", total // 2)
            b.gain(transition, transition)
            b.conv(transition, list(parts), transition, side * side, 1)
            parts, total, side = [transition], total // 2, side // 2
    axis, values = b.axis(list(parts))
    b.costs.append(Term(name="classifier", over=(axis,), table=b.stairs(1000.0, (values, LANES_IN))))
    return b


def build(network: str, step: int, fraction: float, seed: int = 0) -> Problem:
    """The problem of one network at one width step and one share of its dense latency."""
    if network.startswith("resnet"):
        depths = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}[network]
        return resnet(depths, step, seed).problem(fraction)
    maker = {"mobilenet_v2": mobilenet_v2, "vit_b": vit_b, "densenet121": densenet121}[network]
    return maker(step, seed).problem(fraction)
