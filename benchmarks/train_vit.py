"""Train the small vision transformer of the benchmarks on CIFAR-10, and write its weights.

    python benchmarks/train_vit.py --data DATA --output benchmarks/weights/cifar_vit.safetensors

Interrupted, it goes on from its last checkpoint. Prints the accuracy after each epoch. 0.3 M parameters, so that a processor trains it. The
weights are written in half precision; those that the committed results are of lie in benchmarks/weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from latprune.storage import encode_tensors, write_atomic
from latprune.train import AdamW, ProgressPrinter, Recipe, evaluate, finetune
from latprune.train.precision import native_precision
from latprune.zoo import cifar10_test, cifar10_train, cifar_vit

WIDTH = 64
"""Width of the embedding of the benchmarks' transformer."""
WEIGHTS = Path(__file__).parent / "weights" / "cifar_vit.safetensors"
"""Its weights, trained by this script."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with cifar10_train.npz and cifar10_test.npz")
    parser.add_argument("--output", default="runs/cifar_vit.safetensors", help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    output = Path(args.output)
    torch.manual_seed(0)
    model = cifar_vit(width=WIDTH)
    recipe = Recipe(
        epochs=args.epochs,
        learning_rate=1e-3,
        optimizer=AdamW(),
        warmup_epochs=1,
        weight_decay=0.05,
        decay_norm_and_bias=False,
        label_smoothing=0.1,
        precision=native_precision(),
    )
    test = cifar10_test(args.data)
    finetune(
        model,
        cifar10_train(args.data),
        recipe,
        evaluate=test,
        checkpoint_dir=output.parent / f"{output.stem}-training",
        progress=ProgressPrinter(),
    )
    half = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.load_state_dict(half)
    write_atomic(output, encode_tensors(half))
    print(f"accuracy {evaluate(model, test):.2%}, weights in {output}")


if __name__ == "__main__":
    main()
