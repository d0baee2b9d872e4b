"""Drive the pruner from a callback of the Hugging Face Trainer: MDP after an epoch of gathered gradients, then fine-tuning.

    python examples/huggingface_trainer.py --budget flops=60% --output pruned

A small BERT for sequences of numbers, made here, so that nothing has to be downloaded. The pruned model is saved with its model card as a
folder that ``latprune.integrations.huggingface.from_pretrained`` loads, and is loaded again. Needs the extra ``huggingface``.
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import latprune
from latprune.integrations.huggingface import from_pretrained, pruning_callback, save_pretrained


class Numbers(Dataset[dict[str, torch.Tensor]]):
    """Which of the first eight numbers occurs most often in a sequence."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(0, 8, (count, 16), generator=generator)
        self.labels = torch.nn.functional.one_hot(self.ids, 8).sum(dim=1).argmax(dim=1)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


def main(arguments: list[str] | None = None) -> latprune.Result:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="flops=60%")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--examples", type=int, default=2048)
    parser.add_argument("--predict-only", action="store_true", help="measure nothing (for a counted budget)")
    parser.add_argument("--output", default="pruned")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=16,
        num_labels=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForSequenceClassification(config)
    pruner = latprune.Pruner(
        model,
        {"input_ids": torch.randint(0, 8, (1, 16))},
        budget=args.budget,
        target=args.engine,
        method=latprune.MDP(score=latprune.importance.TaylorConfig()),
        measure_latency=not args.predict_only,
    )
    callback = pruning_callback(pruner)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=args.output,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=64,
            learning_rate=1e-3,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Numbers(args.examples, seed=1),
        callbacks=[callback],
    )
    trainer.train()
    for report in callback.reports:
        print(f"cut: {report}")
    result = pruner.result(name="BERT, by the Hugging Face Trainer")
    pruner.close()
    print(result)
    save_pretrained(result, args.output)
    again = from_pretrained(args.output)
    test = Numbers(512, seed=2)
    with torch.no_grad():
        right = (again(test.ids).logits.argmax(dim=1) == test.labels).double().mean()
    print(f"accuracy {float(right):.2%}")
    return result


if __name__ == "__main__":
    main()
