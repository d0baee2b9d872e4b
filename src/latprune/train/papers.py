"""Recipes by name: the papers', and one for right after a recovery.

Where a source leaves a value open, ``notes`` says so and says what stands here instead.
"""

from __future__ import annotations

from latprune.errors import InvalidArgumentError
from latprune.train.recipe import SGD, AdamW, Cosine, Distillation, Linear, Recipe, Steps

__all__ = ["RECIPES", "recipe"]

RECIPES: dict[str, Recipe] = {
    "sp-lamp-cifar10": Recipe(
        epochs=200,
        learning_rate=0.01,
        optimizer=SGD(momentum=0.9),
        schedule=Cosine(),
        weight_decay=5e-4,
        batch_size=128,
        notes=(
            "SP-LAMP, section 4: fine-tuning after each stage",
            "the text does not say whether the 200 epochs are per stage or in all",
            "momentum and schedule are not stated; 0.9 and a cosine stand here",
        ),
    ),
    "sp-lamp-cifar10-base": Recipe(
        epochs=240,
        learning_rate=0.1,
        optimizer=SGD(momentum=0.9),
        schedule=Steps(milestones=(120, 180), gamma=0.1),
        weight_decay=5e-4,
        batch_size=64,
        notes=(
            "SP-LAMP, section 4: training of the dense networks",
            "momentum and weight decay of the base training are not stated; 0.9 and the fine-tuning's 5e-4 stand here",
        ),
    ),
    "sp-lamp-mobilenet": Recipe(
        epochs=70,
        learning_rate=0.1,
        optimizer=SGD(momentum=0.9),
        schedule=Cosine(),
        weight_decay=5e-4,
        batch_size=512,
        notes=(
            "SP-LAMP, section 4: MobileNet from scratch",
            "momentum and weight decay are not stated; 0.9 and 5e-4 stand here",
        ),
    ),
    "sp-lamp-imagenet": Recipe(
        epochs=90,
        learning_rate=0.01,
        optimizer=SGD(momentum=0.9),
        schedule=Cosine(),
        weight_decay=5e-4,
        batch_size=256,
        notes=(
            "SP-LAMP, section 4: fine-tuning of ResNet-50 and MobileNetV2 on ImageNet, of which the text states the augmentation alone",
            "learning rate and weight decay are appendix E's, which names no data set",
            "epochs, batch, momentum and schedule are not stated; 90, 256, 0.9 and a cosine stand here",
        ),
    ),
    "halp-imagenet": Recipe(
        epochs=90,
        learning_rate=1.024,
        optimizer=SGD(momentum=0.875),
        schedule=Cosine(),
        warmup_epochs=8,
        weight_decay=3.05e-5,
        decay_norm_and_bias=False,
        label_smoothing=0.1,
        batch_size=1024,
        notes=(
            "HALP's published configuration",
            "it keeps batch norm out of the weight decay; here all vectors are kept out, biases too",
        ),
    ),
    "mdp-imagenet": Recipe(
        epochs=90,
        learning_rate=1.024,
        optimizer=SGD(momentum=0.875),
        schedule=Linear(),
        warmup_epochs=16,
        weight_decay=3.05e-5,
        decay_norm_and_bias=False,
        label_smoothing=0.1,
        batch_size=1024,
        notes=(
            "MDP's published code: HALP's configuration with a longer warm-up and linear decay",
            "the numbers of the paper's own table are not available",
        ),
    ),
    "mdp-voc": Recipe(
        epochs=116,
        learning_rate=1e-3,
        optimizer=SGD(momentum=0.9),
        schedule=Steps(milestones=(77, 97), gamma=0.1),
        weight_decay=5e-4,
        batch_size=32,
        notes=(
            "MDP, appendix G: SGD with a step decay for SSD512-ResNet-50 on Pascal VOC",
            "the numbers of the paper's own table are not available; those of SSD (arXiv:1512.02325, section 3.1) stand here",
            "SSD's 60,000 steps, with decays after 40,000 and 50,000, are epochs of VOC 2007 and 2012 trainval (16,551 images)",
        ),
    ),
    "mdp-nuscenes": Recipe(
        epochs=60,
        learning_rate=4e-4,
        optimizer=AdamW(),
        schedule=Cosine(),
        weight_decay=0.01,
        batch_size=16,
        notes=(
            "MDP, appendix G: AdamW with a cosine for StreamPETR on nuScenes",
            "the numbers of the paper's own table are not available; rate, batch and epochs of StreamPETR (arXiv:2303.11926) stand here",
            "weight decay is not stated there; 0.01 stands here",
        ),
    ),
    "match-dense": Recipe(
        epochs=3,
        learning_rate=0.03,
        optimizer=AdamW(relative=True),
        schedule=Cosine(),
        warmup_epochs=0.05,
        fixed_norms=True,
        distillation=Distillation(weight=1.0, loss="matching", features="streams"),
        batch_size=128,
        notes=(
            "no paper's: a short training right after a recovery, to the dense network's outputs and streams; labels are not read",
            "benchmarks/recovery/finetuning.py compares it with training on labels",
        ),
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe called ``name``; change single values with :func:`dataclasses.replace`, its length with :meth:`Recipe.with_epochs`.

    Raises:
        InvalidArgumentError: There is none of that name.

    Example:
        >>> recipe("halp-imagenet").with_epochs(30).warmup_epochs
        2.6666666666666665
    """
    try:
        return RECIPES[name]
    except KeyError:
        raise InvalidArgumentError(f"recipe (={name!r}) must be one of {', '.join(RECIPES)}") from None
