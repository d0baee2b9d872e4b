"""Drive the pruner from a plain PyTorch loop: SP-LAMP in three stages on scikit-learn's digits.

    python examples/own_loop.py --engine onnxruntime --budget 60%

Needs the extra ``demo``. Each stage cuts the model in place; between the stages the loop trains as it likes.
"""

from __future__ import annotations

import argparse
from itertools import islice

import torch
from torch import nn

import latprune
from latprune.train import evaluate
from latprune.zoo import ImageLoader, digits_resnet, digits_test, digits_train


def train(model: nn.Module, batches: ImageLoader, epochs: int, learning_rate: float, steps: int | None) -> None:
    steps = steps or len(batches)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    model.train()
    for _ in range(epochs):
        for images, labels in islice(batches, steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def main(arguments: list[str] | None = None) -> latprune.Result:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of the dense network")
    parser.add_argument("--steps", type=int, help="batches of an epoch (default: all)")
    parser.add_argument("--predict-only", action="store_true", help="measure nothing (for a counted budget)")
    parser.add_argument("--output", default="pruned")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    batches, test = digits_train(), digits_test()
    model = digits_resnet()
    train(model, batches, epochs=args.epochs, learning_rate=0.05, steps=args.steps)
    print(f"dense    accuracy {evaluate(model, test):.2%}")

    pruner = latprune.Pruner(
        model,
        torch.randn(1, 1, 32, 32),
        budget=args.budget,
        method="sp_lamp",
        target=latprune.Target(engine=args.engine, threads=1, batch=1),
        measure_latency=not args.predict_only,
        progress=print,
    )
    while not pruner.done:
        report = pruner.step()
        train(model, batches, epochs=1, learning_rate=0.02, steps=args.steps)
        print(f"stage {report.stage}  accuracy {evaluate(model, test):.2%}, {sum(p.numel() for p in model.parameters())} parameters")
    result = pruner.result(name="digits, in a loop of its own")
    pruner.close()
    print(result)
    result.save(args.output)
    result.report(f"{args.output}/report.html")
    return result


if __name__ == "__main__":
    main()
