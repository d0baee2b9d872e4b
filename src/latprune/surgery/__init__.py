"""Physical removal of channels and blocks, the edits as data, and their replay on a fresh model."""

from latprune.graph.example_inputs import random_inputs
from latprune.surgery.apply import prune, replay
from latprune.surgery.edits import (
    ArchitectureEdits,
    AttributeEdit,
    BlockEdit,
    BranchEdit,
    EditStep,
    FoldEdit,
    NormEdit,
    PartEdit,
    ScaleEdit,
    TensorEdit,
)
from latprune.surgery.masked import MaskedModel, masked
from latprune.surgery.masked_rules import register_masked_rule
from latprune.surgery.present import PresentModel, present
from latprune.surgery.removed import RemovedBranch, RemovedPart
from latprune.surgery.training_masks import TrainingMask
from latprune.surgery.verify import EqualityReport, check_equal, compare
from latprune.surgery.widened import widened

__all__ = [
    "ArchitectureEdits",
    "AttributeEdit",
    "BlockEdit",
    "BranchEdit",
    "EditStep",
    "EqualityReport",
    "FoldEdit",
    "NormEdit",
    "MaskedModel",
    "PartEdit",
    "PresentModel",
    "RemovedBranch",
    "RemovedPart",
    "ScaleEdit",
    "TensorEdit",
    "TrainingMask",
    "check_equal",
    "compare",
    "masked",
    "present",
    "prune",
    "random_inputs",
    "register_masked_rule",
    "replay",
    "widened",
]
