"""The scores of a traced model, and the registry that leads from a configuration's type to the criterion that computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph.conditions import preserved_buffers, preserved_state
from latprune.graph.types import ChannelGroup, Kernel, Selection
from latprune.registry import Registry, configured

if TYPE_CHECKING:
    from latprune.importance.gradients import GradientAccumulator

__all__ = [
    "Blocks",
    "GroupedModel",
    "Importance",
    "LossFunction",
    "Readings",
    "Scores",
    "accumulator_for",
    "check_criterion",
    "check_scorable",
    "criterion_type",
    "cross_entropy_loss",
    "follows_dense",
    "get_criterion",
    "needs_data",
    "needs_gradients",
    "read",
    "reads_inputs",
    "register",
    "registered",
    "registered_criteria",
    "score",
]

Scores = npt.NDArray[np.float64]
"""``(units,)``: one number for each unit of a group, larger is more important."""
Blocks = tuple[str, ...]
"""Removable blocks, outermost first: what hangs on them counts only while all are present."""
LossFunction = Callable[[nn.Module, Any], Tensor]
"""Takes the model and one batch, returns the scalar loss."""


class GroupedModel(Protocol):
    """What a criterion reads of a traced model; :class:`latprune.graph.ModelGraph` has it."""

    @property
    def groups(self) -> Mapping[str, ChannelGroup]:
        """Channel groups by name."""

    @property
    def kernels(self) -> Mapping[str, Kernel]:
        """Kernels by name, in the order in which they run."""

    @property
    def carried(self) -> Mapping[str, frozenset[str]] | None:
        """Depthwise kernel -> contractions that its channels reach; None where the graph does not know the flow of data."""

    @property
    def norms(self) -> Mapping[str, str] | None:
        """Kernel -> the norm that alone reads what it makes; None, or absent, where the graph does not know the flow of data."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Importance:
    """Scores of all units of all groups.

    Attributes:
        units: Group -> ``(units,)`` float64, at least 0: ranks the units of the group and is comparable between groups.
        shares: ``(group, blocks)`` -> ``(units,)``: the part of the group's score that is lost once one of ``blocks`` is removed
            (``()`` for the part that hangs on no block). The shares of a group add up to its ``units``.
        curves: ``(group, blocks)`` -> ``(columns + 1,)``, for criteria that value widths and not single units (a measured one): the gain of
            keeping the best ``w`` units of each row, in place of the sum of their shares; finite, and it may be negative. A group with a
            curve has all its value in curves. Empty for criteria that score units alone.
    """

    units: Mapping[str, Scores]
    shares: Mapping[tuple[str, Blocks], Scores]
    curves: Mapping[tuple[str, Blocks], Scores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.units.items():
            bad = int(np.count_nonzero(~np.isfinite(values)))
            if bad:
                raise InvalidArgumentError(
                    f"the importance of group '{name}' is NaN or infinite at {bad} of {values.size} units (from unit "
                    f"{int(np.flatnonzero(~np.isfinite(values))[0])} on); check the weights, the gradients and the loss"
                )
            if values.size and float(values.min()) < 0.0:
                raise InvalidArgumentError(f"the importance of group '{name}' (minimum {float(values.min())}) must not be negative")
        for (name, _), values in self.shares.items():
            if name not in self.units or self.units[name].shape != values.shape:
                raise InvalidArgumentError(f"the share of group '{name}' (shape {values.shape}) must have the shape of the group's scores")
        for (name, _), values in self.curves.items():
            if name not in self.units or values.ndim != 1 or not np.isfinite(values).all():
                raise InvalidArgumentError(f"the curve of group '{name}' must be one row of finite values, one per width of a scored group")

    def __repr__(self) -> str:
        """One line; scores are not shown."""
        units = sum(values.size for values in self.units.values())
        return f"Importance({units} units in {len(self.units)} groups{', by curves' if self.curves else ''})"

    def shares_of(self, group: str) -> dict[Blocks, Scores]:
        """The shares of one group by the blocks that they hang on."""
        return {blocks: values for (name, blocks), values in self.shares.items() if name == group}

    def over(self, alive: Mapping[str, npt.NDArray[np.bool_]]) -> Importance:
        """Scores of a cut model (:func:`latprune.surgery.present`) as those of all groups of the dense one, 0 for every unit that is gone.

        Args:
            alive: Group -> ``(units,)`` True for the units that are left, for every group of the dense model. Curves are passed on.
        """
        gone = {name: np.zeros(left.size) for name, left in alive.items() if name not in self.units}
        units = {name: np.where(alive[name], values, 0.0) for name, values in self.units.items()}
        shares = {(name, blocks): np.where(alive[name], values, 0.0) for (name, blocks), values in self.shares.items()}
        return Importance(
            units={name: units[name] if name in units else gone[name] for name in alive},
            shares=shares | {(name, ()): values for name, values in gone.items()},
            curves=self.curves,
        )

    def without(self, removed_blocks: Iterable[str]) -> Importance:
        """The scores of the network without these blocks: what hangs on one of them is gone from units, shares and curves.

        Rank with these once blocks are removed: a stream channel that only a removed block needed is not worth its place. A group that
        lies in removed blocks with all its layers scores 0 throughout.

        Args:
            removed_blocks: Names of the blocks that go.

        Example:
            >>> units, inside = np.array([3.0, 4.0]), np.array([3.0, 1.0])
            >>> found = Importance(units={"stem": units}, shares={("stem", ("block",)): inside, ("stem", ()): units - inside})
            >>> found.without(["block"]).units["stem"].tolist()
            [0.0, 3.0]
        """
        removed = frozenset(removed_blocks)
        if not removed:
            return self
        shares = {key: values for key, values in self.shares.items() if removed.isdisjoint(key[1])}
        units = {name: np.zeros_like(values) for name, values in self.units.items()}
        for (name, _), values in shares.items():
            units[name] = units[name] + values
        return Importance(units=units, shares=shares, curves={key: v for key, v in self.curves.items() if removed.isdisjoint(key[1])})


class Readings(Protocol):
    """Several scores from one measurement, and a judge of the whole networks that they lead to."""

    @property
    def importances(self) -> Mapping[str, Importance]:
        """What each reading is called -> its scores."""

    @property
    def left_out(self) -> Mapping[str, str]:
        """What could not be read -> the reason."""

    @property
    def caution(self) -> Mapping[str, float]:
        """What a reading is called -> how little it goes by what was measured of groups alone; of equal networks the highest is taken."""

    @property
    def batches(self) -> Iterable[Any]:
        """The batches that were measured on; they can be read again."""

    @property
    def examples(self) -> int:
        """Examples that a whole network is judged on."""

    def divergences(self, selection: Selection, network: nn.Module | None = None) -> Scores:
        """``(parts,)`` how far the outputs of the network that ``selection`` leaves are from the model's own, by part of the data.

        The parts are the same, and of about the same size, for every selection; smaller is better.

        Args:
            selection: What is left.
            network: The network that was cut to it, and recovered; None: the model itself with the rest silenced.
        """


ConfigT = TypeVar("ConfigT")
Reader = Callable[[nn.Module, GroupedModel, ConfigT, Iterable[Any] | None, LossFunction], Readings]
Criterion = Callable[[nn.Module, GroupedModel, ConfigT, Iterable[Any] | None, LossFunction], Importance]
Check = Callable[[nn.Module, GroupedModel, ConfigT, Any], None]
AccumulatorFactory = Callable[[nn.Module, GroupedModel, ConfigT], "GradientAccumulator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    criterion: Criterion[Any]
    accumulator: AccumulatorFactory[Any] | None
    needs_data: bool
    reader: Reader[Any] | None
    check: Check[Any] | None
    reads_inputs: bool
    follows_dense: bool


_CRITERIA: Registry[_Entry] = Registry("criterion", group="latprune.criteria", hint="register one with latprune.importance.register")


def register(
    config_type: type[ConfigT],
    *,
    name: str,
    accumulator: AccumulatorFactory[ConfigT] | None = None,
    needs_data: bool | None = None,
    reader: Reader[ConfigT] | None = None,
    check: Check[ConfigT] | None = None,
    reads_inputs: bool = False,
    follows_dense: bool = False,
) -> Callable[[Criterion[ConfigT]], Criterion[ConfigT]]:
    """Make a function the criterion of a configuration type.

    The function takes ``(model, graph, config, data, loss)`` and returns an :class:`Importance`; it leaves the model as it found it and
    gives the same scores for the same input. Another package's criterion is found by its name where the package has an entry point of that
    name in the group ``latprune.criteria`` that imports the module which registers it.

    Args:
        config_type: Type of the configurations, a dataclass, so that a run's folder can hold its fields; a subclass's configuration is
            taken too.
        name: Name of the criterion, for :func:`get_criterion` and the command line.
        accumulator: Builds ``(model, graph, config) -> GradientAccumulator`` where the criterion can be fed by a caller's backward passes.
        needs_data: Whether the criterion needs batches; None: when it has an accumulator.
        reader: Gives several scores instead of one, among which the networks that they lead to are compared (:class:`Readings`).
        check: Takes ``(model, graph, config, batch)`` and raises InvalidArgumentError for a model that cannot be scored, as far as that is
            seen at once; ``batch`` is the first one, None for a criterion that needs none.
        reads_inputs: Whether the criterion runs the model on the inputs of batches alone; then one batch's are tried before anything else.
        follows_dense: Whether the criterion follows the run of the network as it was traced, so that it cannot score one that was cut.

    Raises:
        InvalidArgumentError: The name or the type is taken.

    Example:
        >>> @dataclass(frozen=True)
        ... class OnesConfig:
        ...     value: float = 1.0
        >>> @register(OnesConfig, name="ones")
        ... def score_ones(model, graph, config, data, loss):
        ...     units = {name: np.full(group.units, config.value) for name, group in graph.groups.items()}
        ...     return Importance(units=units, shares={(name, ()): values for name, values in units.items()})
    """

    def decorate(criterion: Criterion[ConfigT]) -> Criterion[ConfigT]:
        needed = accumulator is not None if needs_data is None else needs_data
        entry = _Entry(
            criterion=criterion,
            accumulator=accumulator,
            needs_data=needed,
            reader=reader,
            check=check,
            reads_inputs=reads_inputs,
            follows_dense=follows_dense,
        )
        _CRITERIA.register(name, entry, config_type=config_type, definition=criterion)
        return criterion

    return decorate


def registered_criteria() -> tuple[str, ...]:
    """Names of all criteria: those of this package and those that other packages offer as entry points."""
    return _CRITERIA.names()


def criterion_type(name: str) -> type:
    """Configuration type of the criterion called ``name``.

    Raises:
        InvalidArgumentError: There is no such criterion.
    """
    found = _CRITERIA.config_type(name)
    if found is None:
        raise InvalidArgumentError(f"criterion (={name!r}) has no configuration type: its package must register it with one")
    return found


def get_criterion(name: str, **options: Any) -> Any:
    """The configuration of the criterion called ``name`` with ``options``.

    Raises:
        InvalidArgumentError: No such criterion, an option that it does not have, or a value that it refuses.

    Example:
        >>> get_criterion("taylor", reduction="per_group").reduction
        'per_group'
    """
    return configured("criterion", name, criterion_type(name), options)


def _entry(config: object) -> _Entry:
    return _CRITERIA.of(config)


def check_criterion(argument: str, config: object) -> None:
    """Refuse what is no criterion's configuration, by the name of the ``argument`` that takes one.

    Raises:
        InvalidArgumentError: It is none, or no criterion is registered for its type.
    """
    try:
        _entry(config)
    except InvalidArgumentError as error:
        named = f"; get_criterion({config!r}) makes one by its name" if isinstance(config, str) and config in _CRITERIA else ""
        raise InvalidArgumentError(
            f"{argument} (={config!r}) must be the configuration of a registered criterion, such as MagnitudeConfig(){named}"
        ) from error


def needs_data(config: object) -> bool:
    """Whether the criterion of ``config`` needs batches (gradients of the loss)."""
    return _entry(config).needs_data


def needs_gradients(config: object) -> bool:
    """Whether the criterion of ``config`` is made of gradients of the loss, its own or those of a caller's backward passes."""
    return _entry(config).accumulator is not None


def check_scorable(model: nn.Module, graph: GroupedModel, config: object, batch: Any = None) -> None:
    """Refuse a model that the criterion of ``config`` cannot score, as far as that is known before all data is looked at.

    Args:
        model: The traced model; left as it was found.
        graph: Its graph.
        config: Configuration of a registered criterion.
        batch: The first batch, for a criterion that needs data.

    Raises:
        InvalidArgumentError: It cannot; the criterion says why.
    """
    check = _entry(config).check
    if check is not None:
        with preserved_state(model), preserved_buffers(model):
            check(model, graph, config, batch)


def reads_inputs(config: object) -> bool:
    """Whether the criterion of ``config`` runs the model on the inputs of batches, whatever their labels are."""
    return _entry(config).reads_inputs


def follows_dense(config: object) -> bool:
    """Whether the criterion of ``config`` scores only the network as it was traced, not one that was cut since."""
    return _entry(config).follows_dense


def accumulator_for(model: nn.Module, graph: GroupedModel, config: object) -> GradientAccumulator:
    """An accumulator of the criterion of ``config``, to be fed by the caller's own backward passes.

    Raises:
        InvalidArgumentError: The criterion takes no gradients.
    """
    entry = _entry(config)
    if entry.accumulator is None:
        raise InvalidArgumentError(f"config (={config!r}) scores without gradients: there is nothing to accumulate, call score()")
    return entry.accumulator(model, graph, config)


def registered() -> tuple[type, ...]:
    """Configuration types that have a criterion."""
    return _CRITERIA.config_types()


def cross_entropy_loss(model: nn.Module, batch: Any) -> Tensor:
    """The default loss: mean cross-entropy of a batch ``(inputs, labels)``, or the model's own loss for a mapping with ``labels``.

    See :func:`latprune.train.contracts.plain_loss`, which says what batches and labels it takes.
    """
    from latprune.train.contracts import plain_loss

    return plain_loss(model, batch)


def score(
    model: nn.Module,
    graph: GroupedModel,
    config: object,
    data: Iterable[Any] | None = None,
    *,
    loss: LossFunction = cross_entropy_loss,
) -> Importance:
    """Score every unit of every channel group by the criterion that belongs to ``type(config)``.

    Args:
        model: The model that was traced; left as it was found (weights, gradients, buffers, training mode).
        graph: Its traced graph.
        config: Configuration of a registered criterion, such as ``SpLampConfig()`` or ``TaylorConfig()``.
        data: Batches for the criteria that need gradients; each is handed to ``loss``.
        loss: Scalar loss of the model on one batch.

    Raises:
        InvalidArgumentError: No criterion for this type; the criterion needs data and none is given; a weight, a gradient or a score is
            NaN or infinite (the message names the tensor).

    Example:
        >>> from latprune.importance import MagnitudeConfig, score
        >>> importance = score(model, graph, MagnitudeConfig())
        >>> importance.units["layer1.0.conv1"].shape
        (16,)
    """
    with preserved_state(model), preserved_buffers(model):
        return _entry(config).criterion(model, graph, config, data, loss)


def read(
    model: nn.Module,
    graph: GroupedModel,
    config: object,
    data: Iterable[Any] | None = None,
    *,
    loss: LossFunction = cross_entropy_loss,
) -> Readings | None:
    """Several scores of every unit, for a criterion that has a judge of the networks that they lead to; None for any other.

    Arguments and errors are those of :func:`score`.
    """
    reader = _entry(config).reader
    if reader is None:
        return None
    with preserved_state(model), preserved_buffers(model):
        return reader(model, graph, config, data, loss)
