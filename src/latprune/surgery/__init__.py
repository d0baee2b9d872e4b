"""Physical removal of channels and blocks, the edits as data, and their replay on a fresh model."""

from latprune.surgery.apply import prune, replay
from latprune.surgery.edits import ArchitectureEdits, AttributeEdit, BlockEdit, EditStep, TensorEdit
from latprune.surgery.removed import RemovedBranch

__all__ = [
    "ArchitectureEdits",
    "AttributeEdit",
    "BlockEdit",
    "EditStep",
    "RemovedBranch",
    "TensorEdit",
    "prune",
    "replay",
]
