"""``prune()``: the whole way from a dense model to a pruned, recovered, fine-tuned, measured and checked one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from latprune.errors import InvalidArgumentError
from latprune.importance import LossFunction, cross_entropy_loss, keeping_values
from latprune.progress import listener_of, listening, speaker
from latprune.pruning.fitting import Evaluate, Fit, FitContext, evaluation_of
from latprune.pruning.lock import locked
from latprune.pruning.model_origin import check_origin
from latprune.pruning.options import TEMPORARY, Options, PruningOptions, with_options
from latprune.pruning.preflight import check_counts, check_run
from latprune.pruning.pruner import Pruner
from latprune.pruning.result import Result
from latprune.pruning.staged_run import StagedRun
from latprune.pruning.through_norms import brought_back, through_norms
from latprune.pruning.unfinished import told_as_unfinished
from latprune.train.contracts import rereadable

if TYPE_CHECKING:
    from torch import nn

    from latprune.recovery.contract import Recovery
    from latprune.train import Recipe

__all__ = ["Evaluate", "Fit", "FitContext", "prune"]


@with_options(PruningOptions)
def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    data: Iterable[Any] | None = None,
    loss: LossFunction = cross_entropy_loss,
    recovery_images: int = 2048,
    fit: Fit | Recipe | None = None,
    evaluate: Evaluate | Iterable[Any] | None = None,
    candidates: int = 1,
    units: Literal["score", "reconstruction"] = "score",
    importance_batches: int | None = 16,
    narrow: bool = False,
    folder: str | Path | None = None,
    name: str | None = None,
    constructor: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    **options: Unpack[PruningOptions],
) -> Result:
    """Prune ``model`` in place to a budget and prove it.

    First a preflight of seconds tells what can be known before anything is measured. Then, per stage of the method's schedule: score,
    solve, cut a copy, measure it, correct and solve again until it is under the budget, compare it with the masked network, cut ``model``
    (or mask it), and ``fit`` it. At the end dense and pruned network are measured afresh, in turns.

    Args:
        model: A PyTorch module; it keeps its class and gets smaller layers.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword inputs.
        data: Training batches: for scores that need gradients (``mdp``'s do), for recovery, and for training where ``fit`` is a recipe.
            Each is handed to ``loss``; recovery looks at the inputs alone.
        loss: Scalar loss of ``(model, batch)``.
        recovery_images: Inputs of ``data`` to recover with, at most.
        fit: Fine-tunes the model after each stage: a :class:`~latprune.train.Recipe` to train on ``data`` by, or a function (see
            :class:`FitContext`); None leaves it untrained.
        evaluate: Accuracy of a model: a function, or test batches.
        candidates: Of so many near-optimal answers of the solver the most accurate one is taken, norms measured again (EagleEye); needs
            ``data`` and ``evaluate``, on data that is not the test set.
        units: Which channels of a group stay once its width is known: the best by the method's ``score``, or those from which what reads
            them is ``reconstruction``-ed best (:func:`latprune.recovery.reconstruction_ranking`; needs ``data``, and one stage).
        importance_batches: Batches of ``data`` to score with; None takes all.
        narrow: Where the final measurement lies over the budget, narrow the network once more, without training, and measure again.
        folder: Keeps the run's progress; the same call with the same folder goes on where an interrupted one stopped.
        name: Name of the model for people; its class by default.
        constructor: ``package.module:callable`` that builds the dense model, recorded so that ``latprune verify`` can rebuild it.
        arguments: Keyword arguments of the constructor, recorded too: JSON values.
        **options: What is pruned to what: :class:`~latprune.pruning.options.Options`, such as ``budget``, ``target``, ``method``, ``keep``.

    Returns:
        The pruned model with all that is known about it. Where the final measurement lies over the budget, ``result.verdict`` says so, and
        so do its notes: nothing that was trained is lost.

    Raises:
        InvalidArgumentError: An argument breaks its rule; nothing was changed.
        UnfinishedRunError: What was handed over (``fit``, ``evaluate``, a later batch) failed after the first cut, so that the model is
            pruned by now; says how to go on.
        BudgetInfeasibleError: The budget cannot be met; carries the lowest latency, measured.
        CheckpointError: ``folder`` holds the progress of another run, or is in use by one.
    """
    check_origin(name=name, constructor=constructor, arguments=arguments)
    check_counts(recovery_images=recovery_images, importance_batches=importance_batches, candidates=candidates)
    options["progress"] = listener = listener_of(options.get("progress"))
    through = through_norms(model, options)
    if through:
        options["fold"] = TEMPORARY
    say = speaker(listener)
    home = Path(folder) if folder is not None else None
    with locked(home) if home is not None else nullcontext(), listening(listener), keeping_values(home):
        pruner = Pruner(model, example_inputs, **options)
        batches = rereadable(data, importance_batches) if data is not None else None
        # Read by the recipe after each epoch and by the run between them.
        judge = evaluate if callable(evaluate) or evaluate is None else rereadable(evaluate)
        run = StagedRun(
            pruner=pruner,
            folder=home,
            data=batches,
            loss=loss,
            importance_batches=importance_batches,
            fit=_fit_of(fit, data, judge, loss),
            evaluate=evaluation_of(judge),
            strategy=_strategy_of(pruner.options, batches),
            recovery_images=recovery_images,
            candidates=candidates,
            units=units,
            say=say,
        )
        try:
            with told_as_unfinished(run, model):
                run.resume()
                if not pruner.done:
                    check_run(run)
                run.run()
                if narrow:
                    run.narrow()
                result = pruner.result(
                    measured=run.measured(),
                    accuracies=run.state.accuracies,
                    training=run.state.training,
                    name=name or type(model).__name__,
                    constructor=constructor,
                    arguments=arguments,
                )
        finally:
            pruner.close()
        if through:
            result = brought_back(model, result)
        if result.verdict == "over":
            missed = [text for text, found in result.record.verdicts.items() if found == "over"]
            say(f"measured over the budget {' and '.join(missed)}; see the notes of the result")
        if run.folder is not None:
            result.save(run.folder / "result")
    return result


def _fit_of(
    fit: Fit | Recipe | None, data: Iterable[Any] | None, evaluate: Evaluate | Iterable[Any] | None, loss: LossFunction
) -> Fit | None:
    if fit is None or callable(fit):
        return fit
    from latprune.pruning.finetuning import fit_with
    from latprune.train import Recipe

    if not isinstance(fit, Recipe):
        raise InvalidArgumentError(f"fit (={fit!r}) must be a latprune.Recipe or a function fit(model, context)")
    # The recipe's own loss (label smoothing, distillation) stands where the caller has none of their own.
    return fit_with(data, fit, evaluate=evaluate, loss=None if loss is cross_entropy_loss else loss)  # type: ignore[arg-type]


def _strategy_of(options: Options, data: Iterable[Any] | None) -> Recovery | None:
    """The strategy of recovery; None for none. One asked for by name needs its data; the default goes without."""
    found = options.strategy
    if found is None or (options.recover is True and data is None):
        return None
    if found.needs_data and data is None:
        raise InvalidArgumentError(
            f"recover (={found.name!r}) needs batches of inputs, without labels: give data= (--data, or --images for a folder of images)"
        )
    return found
