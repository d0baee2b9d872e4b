"""Drive the pruner from a Lightning callback: SP-LAMP in stages on scikit-learn's digits, cut between epochs, momentum carried along.

    python examples/lightning_loop.py --budget flops=50% --output pruned

Needs the extra ``demo`` and the package ``lightning``.
"""

from __future__ import annotations

import argparse

import lightning
import torch
from torch import nn

import latprune
from latprune.zoo import digits_resnet, digits_test, digits_train


class Classifier(lightning.LightningModule):
    def __init__(self, net: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.net, self.learning_rate = net, learning_rate

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9, weight_decay=5e-4)


class Prune(lightning.Callback):
    """One stage after each of the epochs from ``start`` on, until the budget is reached."""

    def __init__(self, pruner: latprune.Pruner, start: int) -> None:
        self.pruner, self.start = pruner, start

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.start and not self.pruner.done:
            report = self.pruner.step(optimizers=trainer.optimizers)
            print(f"stage {report.stage}: {sum(p.numel() for p in module.parameters())} parameters")


def main(arguments: list[str] | None = None) -> latprune.Result:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--predict-only", action="store_true", help="measure nothing (for a counted budget)")
    parser.add_argument("--output", default="pruned")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    net = digits_resnet(blocks=2, widths=(16, 32, 64))
    pruner = latprune.Pruner(
        net,
        torch.randn(1, 1, 32, 32),
        budget=args.budget,
        target=args.engine,
        method=latprune.SPLAMP(stages=args.stages),
        measure_latency=not args.predict_only,
    )
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[Prune(pruner, start=args.epochs - args.stages)],
    )
    trainer.fit(Classifier(net, learning_rate=0.02), digits_train())
    result = pruner.result(name="digits, by Lightning")
    pruner.close()
    print(result)
    print(f"accuracy {latprune.evaluate(net, digits_test()):.2%}")
    result.save(args.output)
    return result


if __name__ == "__main__":
    main()
