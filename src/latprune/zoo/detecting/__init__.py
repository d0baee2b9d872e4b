"""What a detector needs beside its network: anchors, losses, suppression, metrics, batches of Pascal VOC."""

from latprune.zoo.detecting.anchors import DefaultBoxes, map_sizes
from latprune.zoo.detecting.augmentation import DetectionAugmentation
from latprune.zoo.detecting.boxes import decode, encode, overlaps, suppress, to_centres, to_corners
from latprune.zoo.detecting.centre_distance import CentreDistance, centre_distance_precision, evaluate_streaming
from latprune.zoo.detecting.evaluation import detections_of, evaluate_detector
from latprune.zoo.detecting.loader import DetectionLoader
from latprune.zoo.detecting.multibox import MultiboxLoss, match
from latprune.zoo.detecting.precision import AveragePrecision, Detections, Objects, average_precision, mean_average_precision
from latprune.zoo.detecting.scenes import SCENE_CLASSES, MadeScenes, SceneKind
from latprune.zoo.detecting.set_loss import SetLoss, StreamingLoss, decode_places, encode_places

__all__ = [
    "SCENE_CLASSES",
    "CentreDistance",
    "MadeScenes",
    "SceneKind",
    "SetLoss",
    "StreamingLoss",
    "centre_distance_precision",
    "decode_places",
    "encode_places",
    "evaluate_streaming",
    "AveragePrecision",
    "DefaultBoxes",
    "DetectionAugmentation",
    "DetectionLoader",
    "Detections",
    "MultiboxLoss",
    "Objects",
    "average_precision",
    "decode",
    "detections_of",
    "encode",
    "evaluate_detector",
    "map_sizes",
    "match",
    "mean_average_precision",
    "overlaps",
    "suppress",
    "to_centres",
    "to_corners",
]
