"""What may be said of a pruning: the options that ``prune``, ``Pruner`` and ``explore`` share, checked once."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

from latprune.argument_rules import check_flag, check_instance, check_number, check_one_of, check_whole, check_wholes
from latprune.errors import InvalidArgumentError
from latprune.graph.trace import FORMS
from latprune.progress import listener_of
from latprune.pruning.budget import Budget

if TYPE_CHECKING:
    from latprune.latency import KernelPredictor, LatencyTables, Store, Target
    from latprune.methods import Method, Schedule
    from latprune.methods.width_rules import WidthRules
    from latprune.progress import Progress
    from latprune.pruning.picked import PickedNetwork
    from latprune.pruning.placing import Placed
    from latprune.recovery.contract import Recovery
    from latprune.solve import Solver

__all__ = ["TEMPORARY", "Options", "PruningOptions", "SharedOptions", "check_together", "with_options"]

TEMPORARY = "temporary"
"""Value of ``fold`` with which weight norms come back at the end."""

F = TypeVar("F", bound=Callable[..., Any])


class SharedOptions(TypedDict, total=False):
    """Keyword arguments of :func:`latprune.prune`, :class:`latprune.Pruner` and :func:`latprune.explore`; see :class:`Options`."""

    target: Target | str | None
    method: str | Method
    schedule: str | Schedule | None
    keep: Iterable[str]
    blocks_keep: Iterable[str]
    min_widths: Mapping[str, int] | None
    widths: WidthRules | None
    within: str | None
    tables: LatencyTables | None
    predictor: KernelPredictor | None
    store: Store | None
    solver: str | Solver | None
    recover: bool | str | Recovery
    seed: int
    measure_latency: bool
    progress: Progress | None
    form: str
    fold: bool | str


class PruningOptions(SharedOptions, total=False):
    """Keyword arguments of :func:`latprune.prune` and :class:`latprune.Pruner`; see :class:`Options`."""

    budget: str | float | Budget | Sequence[str | Budget] | None
    pick: PickedNetwork | None
    time_limit: float | None
    slack: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Options:
    """The options with their defaults; they are given as keyword arguments.

    Attributes:
        budget: ``"50%"`` of the dense latency (or ``0.5``), ``"8.5ms"``, ``"2000/s"``, ``"flops=45%"``, ``"params=1.2M"``; or a list of
            several, all of which are met. Multiply-adds are those of one inference of the example inputs, all examples of their batch
            together, whatever the target's batch is. One on latency may name its engine (``"60%@onnxruntime"``). With ``pick``, what the
            network that was picked is judged by; that which it was picked by, by default.
        pick: A network of an exploration (:meth:`latprune.Exploration.pick`), cut with the widths and blocks that were shown; nothing is
            searched. Its method must go to its budget in one pass.
        target: Engine, device, threads, batch size and precision, or an engine's name; by default those of ``tables`` or
            ``predictor``, else one CPU thread of the engine that a budget names, where none is on the target's own latency, else of
            OpenVINO.
        method: A registered method's name, or a method object with its options.
        schedule: A schedule in place of the method's own, by name or as an object (``latprune.Stages(stages=5)``).
        keep: Modules or globs to leave whole; a block in which one of them runs stays.
        blocks_keep: Blocks (module names or globs) that must stay.
        min_widths: Group name or glob -> smallest width; a group has the largest of those that match it, whatever their order.
        widths: Further rules for the widths on offer (multiples, largest widths, shares).
        within: Path of a sub-module: only what lies inside it is pruned.
        tables: Latency tables of this model on ``target``, measured earlier; None builds them.
        predictor: A kernel predictor of ``target`` in the place of ``tables``; the end is measured all the same.
        store: Where measurements are kept between runs; None uses the default store.
        solver: A solver's name, or a solver with its options (``latprune.solve.GroupKnapsack(units=20_000)``); None leaves it to the
            method.
        time_limit: Seconds that one solve may take; None sets no limit.
        recover: How accuracy is brought back after each cut without training and without labels, where there is data: True for the default
            strategy, a strategy's name or object (:mod:`latprune.recovery`), or False. ``prune`` does it, :meth:`latprune.Pruner.recover`
            takes it unless told otherwise, and where a method compares whole networks, they are compared as they are after it.
        seed: Seed of everything random.
        slack: The delivered network is accepted within ``[1 - slack, 1]`` of the budget.
        measure_latency: False measures nothing. A budget on multiply-adds or parameters is counted all the same; one on latency goes by
            the predictions of ``tables``, for a device that is not at hand, and leaves room for their error.
        progress: Called with one line of text as the work goes on, or a listener (:mod:`latprune.progress`).
        form: ``"class"``: the pruned model is the user's own class. ``"program"``: it is a captured program, in which sizes that the
            class's code holds can shrink too and which reloads without the class; the model itself stays as it is.
        fold: Weights that are computed of others (weight norm, spectral norm, masks of ``torch.nn.utils.prune``) are made plain ones, which
            changes no output, in a copy that is pruned; the model itself stays as it is. With ``"temporary"`` the result has weight norms
            where the model had them: they compute the weights that were cut, trained and measured as plain ones.
    """

    budget: str | float | Budget | Sequence[str | Budget] | None = None
    pick: PickedNetwork | None = None
    target: Target | str | None = None
    method: str | Method = "mdp"
    schedule: str | Schedule | None = None
    keep: Iterable[str] = ()
    blocks_keep: Iterable[str] = ()
    min_widths: Mapping[str, int] | None = None
    widths: WidthRules | None = None
    within: str | None = None
    tables: LatencyTables | None = None
    predictor: KernelPredictor | None = None
    store: Store | None = None
    solver: str | Solver | None = None
    time_limit: float | None = 60.0
    recover: bool | str | Recovery = True
    seed: int = 0
    slack: float = 0.03
    measure_latency: bool = True
    progress: Progress | None = None
    form: str = "class"
    fold: bool | str = False

    def __post_init__(self) -> None:
        for name in ("keep", "blocks_keep"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise InvalidArgumentError(f"{name} (={given!r}) must be a list of names or globs, for instance [{given!r}]")
            check_instance(name, given, Iterable, "a list of names or globs")
            object.__setattr__(self, name, tuple(given))
            for entry in getattr(self, name):
                check_instance(f"an entry of {name}", entry, str, "a name or glob")
        if "" in self.keep:  # the name of the whole model, which as a glob would keep none of its layers
            raise InvalidArgumentError(
                f"keep (={list(self.keep)!r}) has an empty name, which would keep nothing; give a module's path or a glob, such as 'head' "
                "or 'layer4.*', or leave it out (on the command line: is a variable of the shell unset?)"
            )
        check_one_of("form", self.form, FORMS)
        if not isinstance(self.fold, bool) and self.fold != TEMPORARY:
            raise InvalidArgumentError(f"fold (={self.fold!r}) must be True, False or {TEMPORARY!r}")
        if self.fold == TEMPORARY and self.form == "program":
            raise InvalidArgumentError(f"fold (={self.fold!r}) needs form='class': a program holds plain weights; set fold=True")
        if self.time_limit is not None:
            check_number("time_limit", self.time_limit, "be a positive number of seconds, or None", 0.0, above=True)
        check_number("slack", self.slack, "be a share of the budget: above 0 and below 1", 0.0, 1.0, above=True)
        check_whole("seed", self.seed, least=0)
        object.__setattr__(self, "seed", int(self.seed))  # NumPy's whole numbers too
        check_flag("measure_latency", self.measure_latency)
        if self.min_widths is not None:
            check_wholes("min_widths", self.min_widths, least=1)
        if self.within is not None:
            check_instance("within", self.within, str, "the path of a sub-module, such as 'backbone', or None")
        self._check_objects()
        if self.solver is not None:
            self._check_solver()
        _ = self.strategy  # checks its name

    def __repr__(self) -> str:
        """Those that differ from the defaults."""
        given = [entry for entry in fields(self) if getattr(self, entry.name) != entry.default]
        return f"Options({', '.join(f'{entry.name}={getattr(self, entry.name)!r}' for entry in given)})"

    def _check_objects(self) -> None:
        """Refuse objects of another kind than the options take."""
        from latprune.latency import KernelPredictor, LatencyTables, Store
        from latprune.methods.width_rules import WidthRules
        from latprune.pruning.picked import PickedNetwork

        kinds: dict[str, tuple[type, str]] = {
            "pick": (PickedNetwork, "a network of an exploration, as Exploration.pick() gives it, or None"),
            "widths": (WidthRules, "rules for widths, such as latprune.WidthRules(multiple_of=8), or None"),
            "tables": (LatencyTables, "latency tables, as latprune.build_tables() makes them, or None"),
            "predictor": (KernelPredictor, "a predictor, as latprune.KernelPredictor.load() reads it, or None"),
            "store": (Store, "a store, such as latprune.Store('latency.sqlite'), or None"),
        }
        for name, (kind, rule) in kinds.items():
            if getattr(self, name) is not None:
                check_instance(name, getattr(self, name), kind, rule)
        listener_of(self.progress)

    def _check_solver(self) -> None:
        from latprune.solve import Solver, solver_named

        if isinstance(self.solver, str):
            solver_named(self.solver)
        elif not isinstance(self.solver, Solver):
            raise InvalidArgumentError(f"solver (={self.solver!r}) must be a solver's name, or a latprune.solve.Solver")

    @property
    def strategy(self) -> Recovery | None:
        """The strategy of recovery; None where it is not wanted.

        Raises:
            InvalidArgumentError: No strategy has the name.
        """
        from latprune.recovery import get_strategy

        return None if self.recover is False else get_strategy("refit" if self.recover is True else self.recover)

    def placed(self) -> Placed:
        """The target, and the budgets as they stand to it: the one that candidates are searched for first.

        Raises:
            InvalidArgumentError: There is no budget, a text is none, or they and the target contradict each other.
        """
        from latprune.latency import Target
        from latprune.pruning.placing import placed

        asked = self.budget if self.budget is not None else self.pick.budget if self.pick is not None else None
        if asked is None:
            raise InvalidArgumentError("budget (=None) must be given, for instance '50%', or a network to take as pick=")
        if self.target is not None:
            given: Target | None = Target.of(self.target)
        elif self.tables is not None:
            given = self.tables.target
        else:
            given = self.predictor.context.target if self.predictor is not None else None
        return placed(Budget.parse_all(asked), target=given)

    def settings(self, *, method: Method, placed: Placed, folded: bool) -> dict[str, Any]:
        """All that decides which network comes out, as a JSON object; a saved state is resumed only under the same.

        The dense network itself is compared apart. ``time_limit`` is left out: what a solve comes to within it depends on the machine's
        speed of the moment, so the same limit promises no same network, and a run that stopped at it is told to go on with a higher one.

        Args:
            method: The method.
            placed: The target and the budgets.
            folded: Whether weights were folded.
        """
        from latprune.methods import get_schedule
        from latprune.solve import solver_options

        strategy = self.strategy
        found = {
            "method": method.name,
            "options": method.options(),
            "budget": [entry.to_dict() for entry in placed.budgets],
            "target": placed.target.to_dict(),
            "keep": sorted(self.keep),
            "blocks_keep": sorted(self.blocks_keep),
            "min_widths": dict(sorted((self.min_widths or {}).items())),
            "widths": self.widths.to_dict() if self.widths is not None else None,
            "within": self.within,
            "predictor": self.predictor is not None,
            "predictor_digest": self.predictor.digest if self.predictor is not None else None,
            "tables": self.tables.digest if self.tables is not None else None,
            "solver": self.solver if self.solver is None or isinstance(self.solver, str) else solver_options(self.solver),
            "recover": {"strategy": strategy.name, **strategy.settings()} if strategy is not None else None,
            "seed": self.seed,
            "slack": self.slack,
            "measure_latency": self.measure_latency,
            "form": self.form,
        }
        if folded:
            found["fold"] = self.fold
        if self.pick is not None:
            found["pick"] = self.pick.to_dict()
        if self.schedule is not None:
            found["schedule"] = get_schedule(self.schedule).options()
        return found


def check_together(given: Options, *, method: Method, schedule: Schedule, placed: Placed) -> None:
    """What the options say together with what they name, before anything is computed.

    Raises:
        InvalidArgumentError: They contradict each other.
        EngineError: An engine that a budget is on does not have the target's device here, or does not compute in its precision.
        MissingExtraError: Such an engine is not installed.
    """
    from latprune.importance import needs_data, needs_gradients
    from latprune.latency import get_engine
    from latprune.methods import SoftMasks

    budgets, target, criterion = placed.budgets, placed.target, method.importance
    if given.tables is not None and given.predictor is not None:
        raise InvalidArgumentError(
            "tables and predictor both say what kernels cost, and one of them would do nothing: leave one out (--tables, --predictor)"
        )
    if given.pick is not None and (schedule.count != 1 or isinstance(schedule, SoftMasks)):
        raise InvalidArgumentError(
            f"pick is cut in one pass, and method {method.name!r} has {schedule.count} stages or masks; use stages=1, or mdp"
        )
    if isinstance(schedule, SoftMasks) and criterion is not None and needs_data(criterion) and not needs_gradients(criterion):
        raise InvalidArgumentError(
            f"schedule {schedule.name!r} solves for masks with scores of the training's own gradients or of the weights, and the criterion "
            f"of method {method.name!r} ({type(criterion).__name__}) measures on data of its own; take another one, such as TaylorConfig() "
            "(--criterion taylor)"
        )
    if isinstance(schedule, SoftMasks) and not method.keeps_weights:
        raise InvalidArgumentError(
            f"schedule {schedule.name!r} trains before it cuts, and method {method.name!r} draws the weights anew after the cut, which "
            "would then never train; take a schedule that cuts first, such as single_pass"
        )
    by_latency = budgets[0].on_latency
    if given.tables is None and not given.measure_latency and by_latency:
        raise InvalidArgumentError(
            f"budget (={budgets[0].text!r}) is on latency, and measure_latency=False measures nothing: give the tables of the device"
        )
    method.check_budget(on_latency=by_latency, measures=given.measure_latency)
    for entry in budgets[1:]:
        if entry.engine is not None:
            if not given.measure_latency:
                raise InvalidArgumentError(
                    f"budget (={entry.text!r}) is on another engine than the target's, whose tables are measured here, and "
                    "measure_latency=False measures nothing: leave one of them out"
                )
            get_engine(entry.engine).check(replace(target, engine=entry.engine))
    if by_latency and given.measure_latency and given.tables is None and given.predictor is None:
        get_engine(target.engine).check(target)
    elif given.measure_latency or not by_latency:  # networks may be measured at the end, or never
        get_engine(target.engine)


def with_options(given: type[SharedOptions]) -> Callable[[F], F]:
    """Decorator: the signature of a function that takes ``**options`` shows them one by one, for ``help`` and in notebooks.

    A name that is no option is refused with the one that it may have been meant for (TypeError).

    Args:
        given: The options that it takes.
    """
    names = {name for base in (SharedOptions, given) for name in base.__annotations__}

    def decorated(function: F) -> F:
        own = inspect.signature(function)
        kept = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        shown = [
            inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=entry.default, annotation=entry.type)
            for entry in fields(Options)
            if entry.name in names and entry.name not in own.parameters
        ]
        known = {*(p.name for p in kept), *(entry.name for entry in fields(Options))}

        @functools.wraps(function)
        def checked(*args: Any, **options: Any) -> Any:
            for name in options:
                if name not in known:
                    raise TypeError(f"{function.__qualname__.removesuffix('.__init__')} has no option {name!r}{_meant(name, known)}")
            return function(*args, **options)

        checked.__signature__ = own.replace(parameters=[*kept, *shown])  # type: ignore[attr-defined]
        return cast(F, checked)

    return decorated


def _meant(name: str, known: Collection[str]) -> str:
    """What an unknown option may have been meant for, to be put behind its name."""
    if name == "criterion":
        return "; a method has its own, for instance method=latprune.methods.MDP(score=...)"
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
