"""Masks that a network trains under: it runs as if channels and blocks were gone, and they can come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latprune.argument_rules import check_flag
from latprune.errors import CheckpointError, InvalidArgumentError, SurgeryError
from latprune.graph import ModelGraph, Selection
from latprune.graph.captured import CapturedNetwork
from latprune.surgery.mask_check import check_masked
from latprune.surgery.mask_decay import check_mask_decay
from latprune.surgery.mask_norms import CountedNorms
from latprune.surgery.mask_places import MaskPlaces
from latprune.surgery.mask_scaling import NormScaling
from latprune.surgery.mask_selection import Removed, check_dense
from latprune.surgery.mask_steps import MaskedSteps
from latprune.surgery.mask_values import HeldValues

__all__ = ["TrainingMask"]


class TrainingMask:
    """The network trains and runs as if what a selection leaves out were gone; nothing is cut.

    While a selection is set, the weights that read a removed channel are 0 (where an operation without weights reads it, the weights that
    make it), and so are the weights that end a removed block; layer, RMS and group norms count the kept coordinates only. The user's
    forward, loss and loop stay as they are: the masked values lie in the parameters themselves between the steps of the optimizer, so
    ``DistributedDataParallel``, ``torch.compile`` and autocast see an ordinary network. In evaluation mode it computes what
    :func:`latprune.surgery.masked` and, after :func:`latprune.surgery.prune`, the cut network compute.

    *Hard masks* (``straight_through=False``): masked values stay 0, and all other weights of removed channels and blocks stay as they were
    when they were masked, whatever weight decay and momentum there is; the optimizer's state of both (every tensor of the parameter's
    shape) is 0. What comes back has the weights that it had before. A gradient at those places counts in a clipping by norm that comes
    before the step.

    *Straight-through masks* (soft masks: SMCP, "Soft Masking for Cost-Constrained Channel Pruning", ECCV 2022; the MDP paper takes them up
    in appendix E): the loss is computed with masked values, its gradient goes to the hidden dense values, and those are what the optimizer
    updates. Right before ``optimizer.step()`` the dense values are put into the parameters, right after it they are hidden again. Only
    what reads a removed channel is masked, so the channel itself stays alive and the weights that read it get the gradient that they have
    at the value 0. ``weight_decay`` is a decay of the masked weights on top of the optimizer's own: ``w -= lr * weight_decay * w`` after
    each step, ``lr`` being that of the parameter's group. SMCP decays masked weights apart; that it is done after the step and outside of
    the momentum is this library's choice, as the formula of that paper is not at hand.

    A batch norm behind a layer whose inputs are masked divides by what spread is left, so that the gradients of all the layer's weights
    grow by the inverse. ``norm_scaling`` multiplies them by ``||W * m|| / ||W||`` per output channel, right before the step: what the
    network computes stays as it is, and so do the gradients that are scored and clipped before. SMCP scales batch norms by a formula that
    is not at hand; this is this library's own form (:class:`latprune.surgery.mask_scaling.NormScaling`).

    Call :meth:`set` between steps, not between a forward and its backward pass. A state dict of the model taken while a mask is set holds
    the masked values; take it under :meth:`dense_values`, or keep :meth:`state_dict` of the mask beside it.

    With several processes each has a mask of its own; the same selections on the same weights and gradients keep them the same. Not for
    parameters that are sharded over processes.

    Args:
        model: The model that ``graph`` was traced from.
        graph: Its traced graph.
        straight_through: Whether gradients reach the hidden dense values and train them.
        weight_decay: Decay of the masked weights, per unit of learning rate; only with ``straight_through``.
        norm_scaling: Whether gradients of layers in front of batch norms are scaled by what masks leave of their weights.
        example_inputs: Inputs as they were traced; with them each :meth:`set` checks that the masked network computes what the masked
            executor does (one forward pass each, in evaluation mode).

    Raises:
        InvalidArgumentError: Arguments do not go together.
        SurgeryError: The graph is that of a captured program and the model is not, or the model was cut since it was traced.

    Example:
        >>> mask = TrainingMask(model, graph, straight_through=True)
        >>> mask.attach(optimizer)
        >>> mask.set(selection)
        >>> for inputs, labels in batches:
        ...     optimizer.zero_grad()
        ...     torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        ...     optimizer.step()
        >>> mask.set(None)
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ModelGraph,
        *,
        straight_through: bool = False,
        weight_decay: float | None = None,
        norm_scaling: bool = False,
        example_inputs: Any = None,
    ) -> None:
        check_flag("straight_through", straight_through)
        check_mask_decay(weight_decay, straight_through=straight_through)
        check_flag("norm_scaling", norm_scaling)
        if graph.program is not None and not isinstance(model, CapturedNetwork):
            raise SurgeryError("the graph is that of a captured program: mask graph.program, not the model that it was captured from")
        check_dense(model, graph)
        self.model = model
        self.graph = graph
        self.straight_through = straight_through
        self.weight_decay = weight_decay
        self.norm_scaling = norm_scaling
        self.example_inputs = example_inputs
        self._places = MaskPlaces(model, graph)
        scaling = NormScaling(model, graph) if norm_scaling else None
        self._steps = MaskedSteps(straight_through=straight_through, weight_decay=weight_decay, scaling=scaling)
        self._norms = CountedNorms(model)
        self._selection: Selection | None = None
        self._held: dict[str, HeldValues] = {}
        self._kept: dict[str, Tensor] = {}
        self._shown = False

    # -- what is masked --------------------------------------------------------------------------------------------

    @property
    def selection(self) -> Selection | None:
        """What is kept at the moment; None while no mask is set."""
        return self._selection

    @property
    def unmaskable(self) -> Mapping[str, str]:
        """Groups and blocks that cannot be masked in training, with the reason; a schedule that masks keeps them whole."""
        return self._places.unmaskable

    @property
    def zeros(self) -> Mapping[str, frozenset[tuple[str, int]]]:
        """Group -> the ``(tensor, dimension)`` whose slices are 0 for its masked units: the only weights of theirs that have a gradient."""
        return self._places.zeros

    @torch.no_grad()
    def set(self, selection: Selection | None) -> None:
        """Mask what ``selection`` leaves out; None takes the mask off.

        What was masked before and is kept now comes back with its dense values: those from before the mask (hard), or as they were trained
        under it (straight-through).

        Args:
            selection: Units to keep and blocks to remove; a group that is not named stays whole.

        Raises:
            InvalidArgumentError: The selection does not fit the graph.
            SurgeryError: It removes units or blocks of what cannot be masked (:attr:`unmaskable`), or the masked network does not compute
                what the masked executor does; no mask is set then.
        """
        if self._shown:
            raise SurgeryError("set() within dense_values(): leave it first")
        removed = self._places.removed(selection) if selection is not None else {}
        self._take_off()
        if selection is None:
            return
        self._put_on(selection, removed)
        if self.example_inputs is None:
            return
        try:
            self._check(selection)
        except BaseException:
            self._take_off()
            raise

    def _put_on(self, selection: Selection, removed: Removed) -> None:
        held = self._places.held(removed, selection.removed_blocks, fixed=not self.straight_through)
        self._kept = self._places.counted(removed)
        self._held = held
        self._hide()
        self._selection = selection

    def _hide(self) -> None:
        """The masked values are in the parameters, the dense ones are held."""
        for held in self._held.values():
            held.hide()
        self._norms.put_on(self._kept)
        self._steps.held = {id(held.parameter): held for held in self._held.values()}

    def _show(self) -> None:
        """The dense values are in the parameters."""
        self._steps.held = {}
        self._norms.take_off()
        for held in self._held.values():
            held.show()

    def _take_off(self) -> None:
        """The dense values are back in the parameters, and nothing is held."""
        self._show()
        self._held, self._kept, self._selection = {}, {}, None

    def _forget(self) -> None:
        """The values that are in the parameters stay, and nothing is held."""
        self._held = {}
        self._take_off()

    def _check(self, selection: Selection) -> None:
        """Compare with the masked executor; where they differ find the group or block at fault.

        Raises:
            SurgeryError: They differ.
        """
        why = self._difference(selection)
        if not why:
            return
        parts = [Selection(kept={name: kept}) for name, kept in selection.kept.items() if name in self._places.removed(selection)]
        parts += [Selection(kept={}, removed_blocks=frozenset([name])) for name in sorted(selection.removed_blocks)]
        at_fault = "several of its parts together"
        for part in parts:
            self._take_off()
            self._put_on(part, self._places.removed(part))
            if self._difference(part):
                at_fault = next(iter(part.kept), "") or next(iter(part.removed_blocks))
                break
        raise SurgeryError(
            f"the network under the mask does not compute what the masked executor does, because of '{at_fault}' ({why}); keep it whole, "
            "or cut it"
        )

    def _difference(self, selection: Selection) -> str:
        return check_masked(self.model, self.dense_values, self.graph, selection, self.example_inputs)

    # -- training --------------------------------------------------------------------------------------------------

    def attach(self, *optimizers: Optimizer) -> None:
        """Work at each step of these optimizers: every one that updates parameters of the model. Those attached before stay.

        Their ``step`` must not be given a closure, which would run the network with dense values.
        """
        self._steps.attach(*optimizers)

    def detach(self, *optimizers: Optimizer) -> None:
        """Leave these optimizers alone from now on; without arguments all."""
        self._steps.detach(*optimizers)

    @contextmanager
    def dense_values(self) -> Iterator[None]:
        """The hidden dense values in the parameters for a while, for cutting, saving and scoring; norms count everything meanwhile.

        What is changed in the parameters meanwhile stays. Optimizer steps within are those of the dense network.
        """
        if self._shown or self._selection is None:
            yield
            return
        with torch.no_grad():
            self._show()
        self._shown = True
        try:
            yield
        finally:
            self._shown = False
            if self._selection is not None:
                with torch.no_grad():
                    self._hide()

    # -- saving ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """The selection and the hidden values, as tensors (for safetensors). Save it beside the model's state dict of the same moment."""
        state = {"straight_through": torch.tensor(self.straight_through)}
        if self._selection is None:
            return state
        state["selected"] = torch.tensor(True)
        for name, kept in self._selection.kept.items():
            state[f"kept.{name}"] = torch.from_numpy(np.array(kept, dtype=np.int64))
        for name in self._selection.removed_blocks:
            state[f"removed_block.{name}"] = torch.tensor(True)
        for name, held in self._held.items():
            state.update(held.stored(name))
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up a saved mask; the model's own state of the same moment is loaded before or after it.

        A mask that is set is dropped, and the dense values that it hides with it.

        Raises:
            CheckpointError: The state is that of the other kind of mask, or of another network.
            SurgeryError: The dense values are shown (:meth:`dense_values`); leave that first.
        """
        if self._shown:
            raise SurgeryError("load_state_dict() within dense_values(): leave it first")
        if "straight_through" not in state or bool(state["straight_through"]) is not self.straight_through:
            raise CheckpointError(
                f"the state is not that of a mask with straight_through={self.straight_through}; build the mask as it was built then"
            )
        self._forget()
        if "selected" not in state:
            return
        selection = Selection(
            kept={n.removeprefix("kept."): t.cpu().numpy() for n, t in state.items() if n.startswith("kept.")},
            removed_blocks=frozenset(n.removeprefix("removed_block.") for n in state if n.startswith("removed_block.")),
        )
        try:
            self._put_on(selection, self._places.removed(selection))
        except InvalidArgumentError as error:
            raise CheckpointError(f"the mask's state is of another network: {error}") from error
        for name, held in self._held.items():
            missing = held.load(name, state)
            if missing:
                self._forget()
                raise CheckpointError(f"the mask's state is of another network: '{missing}' is missing or has another shape")

    def close(self) -> None:
        """Take the mask off and leave the optimizers alone."""
        self.set(None)
        self.detach()
