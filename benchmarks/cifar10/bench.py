"""One network on one engine: structures found once, recovered, trained at every rate; one row each."""

from __future__ import annotations

import argparse
import copy
import re
import shutil
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from measuring import Budget, counted, measured
from networks import ADAMW, Dense, Preparation, dense_network
from ours import own_of, own_structure, trains
from result_file import ResultFile
from rivals import BEST_OF, RIVALS, Ratios, gradients_of, rival_structure
from rows import best_rate, line
from structure import Structure, Unreachable
from teaching import match_dense, matching
from torch import nn

import latprune
from latprune.errors import TrainingError
from latprune.graph import ModelGraph, Selection
from latprune.latency import Store, Target
from latprune.methods.from_scratch import reinitialise
from latprune.pruning import training_threads
from latprune.recovery import recover
from latprune.storage import write_atomic
from latprune.train import SGD, AdamW, Batches, Distillation, ProgressPrinter, Recipe, evaluate, finetune
from latprune.train.batches import FirstBatches
from latprune.train.precision import native_precision
from latprune.zoo import cifar10_test, cifar10_train

__all__ = ["Bench"]

RECOVERY_IMAGES = 2048
SLACK = 0.03
"""Our networks are accepted from so far below a budget."""
_TRAINING = ("epochs", "train_images", "teacher", "rate")
"""Columns that tell trainings of one structure apart."""
MASKED_RATES = {"sgd": 0.01, "adamw": 3e-4, "match": 0.03}
"""Peak learning rate of a training under masks, for each kind of training."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bench:
    """One network on one engine."""

    args: argparse.Namespace
    dense: Dense
    graph: ModelGraph
    target: Target
    store: Store
    test: Batches

    @classmethod
    def of(cls, args: argparse.Namespace, name: str, target: Target, store: Store) -> Bench:
        dense = dense_network(name, _preparation(args))
        print(f"{name}: {100 * dense.accuracy:.2f} % ({dense.note})", flush=True)
        return cls(
            args=args,
            dense=dense,
            graph=latprune.trace(dense.model, dense.example),
            target=target,
            store=store,
            test=FirstBatches(cifar10_test(str(args.data)), -(-args.test_images // 500)),
        )

    def cell(self, file: ResultFile, budget: Budget, method: str, seed: int) -> None:
        """All rows of one method under one budget with one seed."""
        args = self.args
        head = {
            "network": self.dense.name,
            "engine": self.target.engine,
            "device": self.target.device,
            "batch": self.target.batch,
            "budget": budget.text,
            "method": method,
            "seed": seed,
            "epochs": args.epochs,
            "train_images": args.train_images,
            "teacher": args.teacher,
            "test_images": args.test_images,
        }
        rates = self.rates(method)
        if seed:
            chosen = best_rate(file.rows, {**head, "seed": 0})
            rates = [chosen] if chosen is not None else rates
        heads = [{**head, "rate": rate} for rate in rates]
        done = [each for each in heads if file.has(**each)]
        refused = [row for row in file.having(**head) if "refused" in row]
        if len(done) == len(heads) or any(row.get("final") for row in refused):
            return
        common = {
            "budget_share": budget.share,
            "dense_accuracy": self.dense.accuracy,
            "dense": self.dense.note,
        }
        try:
            start = self.started(budget, method, seed)
        except Unreachable as error:
            row = {**head, "rate": None, **common, "refused": str(error), "floor": error.floor, "final": error.final}
            file.add(row, self.target)
            print(line(row), flush=True)
            return
        file.rows = [row for row in file.rows if not any(row is other for other in refused)]
        for each in heads:
            if each in done:
                continue
            made = {**start.found, **counted(self.graph, start.selection)}
            # An interrupted training goes on; what it began with is part of its name, through the structure's.
            kept = args.work / "training" / f"{self.path(budget, method, seed).name}-{'-'.join(str(each[name]) for name in _TRAINING)}"
            row = {**each, **common, **made, **self.trained(start, each["rate"], seed, self.left_to_train(method), kept)}
            file.add(row, self.target)
            print(line(row), flush=True)

    def rates(self, method: str) -> list[float]:
        """Peak learning rates to choose from: each kind of training has its own, and fresh weights trained by SGD."""
        rates: dict[str, list[float]] = {"sgd": self.args.rates, "adamw": self.args.adamw_rates, "match": self.args.match_rates}
        return self.args.scratch_rates if method == "from_scratch" and self.training == "sgd" else rates[self.training]

    def share_of(self, name: str) -> float:
        """Latency of another dense network as a share of this one's; measured once."""
        args = self.args
        kept = args.work / f"{self.stem}-latency-of-{name}.txt"
        if not kept.exists():
            other = dense_network(name, _preparation(args))
            write_atomic(kept, repr(measured(self.dense, other.model, self.target)["pruned"].ratio))
        return float(kept.read_text())

    def started(self, budget: Budget, method: str, seed: int) -> Structure:
        """The network that training begins with: cut, measured and, where the method's name says so or it is ours, recovered."""
        base = method.removesuffix("+recover")
        own = own_of(base)
        wants = method.endswith("+recover") or (own is not None and not own.trains)
        if not wants:
            return self.structure(budget, base, seed)
        path = self.path(budget, f"{base}+recover", seed)
        found = Structure.load(path, self.dense, self.graph)
        if found is None:
            cut = self.structure(budget, base, seed)
            found = self.recovered(cut, seed)
            found.save(path)
        elif self.outdated(found):
            cut = self.structure(budget, base, seed).found["cut"]
            found.found.update(cut=cut, recovered=self.accuracy(found.network), test_images=self.args.test_images)
            found.save(path)
        return found

    def outdated(self, kept: Structure) -> bool:
        """Whether a kept network was judged on another number of test images."""
        return kept.found.get("test_images") != self.args.test_images

    def structure(self, budget: Budget, name: str, seed: int) -> Structure:
        """A method's network as it leaves it, with its measured latency; found once."""
        path = self.path(budget, name, seed)
        kept = Structure.load(path, self.dense, self.graph)
        if kept is not None:
            if self.outdated(kept):
                kept.found.update(cut=self.accuracy(kept.network), test_images=self.args.test_images)
                kept.save(path)
            return kept
        start = time.perf_counter()
        found = self.searched(budget, name, seed)
        trial = measured(self.dense, found.network, self.target, seed=seed)
        pruned = trial["pruned"]
        found.found.setdefault("structure_seconds", time.perf_counter() - start)
        found.found.update(
            {
                "dense_ms": trial["dense"].ms,
                "ms": pruned.ms,
                "ratio": pruned.ratio,
                "ratio_interval": [pruned.ratio_low, pruned.ratio_high],
                "doubts": list(pruned.doubts),
                "cut": self.accuracy(found.network),
                "test_images": self.args.test_images,
            }
        )
        found.save(path)
        return found

    def searched(self, budget: Budget, name: str, seed: int) -> Structure:
        data, train = str(self.args.data), cifar10_train(str(self.args.data), seed=seed)
        own = own_of(name)
        if own is not None:
            recipe = self.recipe(MASKED_RATES[self.training], seed)
            if own.trains and self.matches:
                uncut = matching(recipe, self.dense.model, self.graph, Selection(kept={}), self.dense.example)
                recipe = replace(uncut[0], fixed_norms=False)
            soft = (FirstBatches(train, self.batches - self.left_to_train(name)), recipe)
            return own_structure(
                own,
                self.dense,
                self.graph,
                self.matched(budget, name, seed),
                self.target,
                train=train,
                plain=cifar10_train(data, seed=seed, augment=False),
                masked=soft,
                store=self.store,
                seed=seed,
                threads=self.args.threads,
            )
        if name == "from_scratch":
            best = self.structure(budget, "best", seed)
            network = copy.deepcopy(best.network)
            reinitialise(network, seed=seed)
            return Structure(network=network, selection=best.selection, found={"structure_seconds": 0.0})
        if name == "tp_best":
            return self.best_rival(budget, seed)
        gradients = gradients_of(self.dense.model, islice(train, 16)) if RIVALS[name].importance == "taylor" else {}
        ratios = Ratios(path=self.args.work / f"{self.stem}-s{seed}-ratios.json")
        return rival_structure(name, self.dense, self.graph, budget, self.target, gradients=gradients, ratios=ratios)

    def matched(self, budget: Budget, name: str, seed: int) -> Budget:
        """The budget, or of ``best=tp_taylor`` the latency that the rival's network was measured at, in the middle of what is accepted."""
        rival = name.partition("=")[2]
        if not rival:
            return budget
        ratio = self.structure(budget, rival, seed).found["ratio"]
        return Budget(text=f"={rival}", share=ratio / (1.0 - 0.5 * SLACK))

    def best_rival(self, budget: Budget, seed: int) -> Structure:
        """The variant whose network, recovered, is best on training images; recovered networks rank as trained ones do."""
        seen: dict[str, float] = {}
        best: Structure | None = None
        floors = []
        held = FirstBatches(cifar10_train(str(self.args.data), seed=1000 + seed, augment=False), 40)
        for variant in BEST_OF:
            try:
                found = self.structure(budget, variant, seed)
            except Unreachable as error:
                floors.append((error.floor if error.floor is not None else 1.0, str(error)))
                continue
            seen[variant] = self.accuracy(self.recovered(found, seed).network, held)
            if seen[variant] == max(seen.values()):
                best = found
        if best is None:
            floor, reason = min(floors)
            raise Unreachable(f"none of {len(BEST_OF)} variants meets the budget; {reason}", floor)
        # Its time is that of the whole search, which the caller takes.
        found = {name: value for name, value in best.found.items() if name != "structure_seconds"}
        return Structure(network=best.network, selection=best.selection, found={**found, "variants": seen})

    def recovered(self, cut: Structure, seed: int) -> Structure:
        """A copy, brought back without training."""
        network = copy.deepcopy(cut.network)
        loader = cifar10_train(str(self.args.data), seed=seed, augment=False)
        images = [batch for batch, _ in islice(loader, RECOVERY_IMAGES // 128)]
        report = recover(network, self.dense.model, images, graph=self.graph, selection=cut.selection, images=RECOVERY_IMAGES, seed=seed)
        found = {**cut.found, "recovered": self.accuracy(network), "recovery_seconds": report.seconds, "error_left": report.error_left}
        return Structure(network=network, selection=cut.selection, found=found)

    @property
    def batches(self) -> int:
        """Batches of 128 that a method may train on in an epoch, before and after its cut together."""
        return max(2, self.args.train_images // 128)

    def left_to_train(self, method: str) -> int:
        """Those of them that come after the cut: a method that trains under masks has had half of them."""
        own = own_of(method)
        return self.batches - self.batches // 2 if own is not None and own.trains else self.batches

    def trained(self, start: Structure, rate: float, seed: int, batches: int, checkpoints: Path) -> dict[str, Any]:
        """Accuracy of a copy after training on so many batches an epoch; at the last epoch."""
        args = self.args
        student = copy.deepcopy(start.network).to(args.device)
        teacher = copy.deepcopy(self.dense.model).to(args.device) if args.teacher != "no" else None
        recipe, kept = self.recipe(rate, seed), None
        if self.matches:
            # Norms that were never measured again must move; those of a recovered network may stay.
            recipe = replace(recipe, fixed_norms="recovered" in start.found)
            recipe, kept = matching(recipe, self.dense.model, self.graph, start.selection, self.dense.example)
        train = FirstBatches(cifar10_train(str(args.data), seed=100 + seed), batches)
        try:
            with training_threads(args.threads):
                report = finetune(
                    student, train, recipe, teacher=teacher, kept=kept, checkpoint_dir=checkpoints, progress=ProgressPrinter()
                )
            found = {"trained": self.accuracy(student), "training_seconds": report.seconds}
        except TrainingError as error:  # diverged
            found = {"trained": None, "note": str(error)[:200]}
        shutil.rmtree(checkpoints, ignore_errors=True)
        return found

    def recipe(self, rate: float, seed: int) -> Recipe:
        """The same for every method; of ``match`` still without what is compared."""
        if self.matches:
            shared = match_dense(self.args.epochs, rate, absolute=self.training == "adamw")
            return replace(shared, precision=native_precision(), channels_last=self.dense.name not in ADAMW, seed=seed)
        return Recipe(
            epochs=self.args.epochs,
            learning_rate=rate,
            optimizer=SGD(momentum=0.9) if self.training == "sgd" else AdamW(),
            weight_decay=5e-4 if self.training == "sgd" else 0.05,
            precision=native_precision(),
            channels_last=self.training == "sgd",
            distillation=Distillation() if self.args.teacher == "classes" else None,
            seed=seed,
        )

    def accuracy(self, network: nn.Module, data: Batches | None = None) -> float:
        with training_threads(self.args.threads):
            return evaluate(network.eval(), self.test if data is None else data)

    @property
    def matches(self) -> bool:
        """Whether training is to the dense network's outputs and streams."""
        return str(self.args.teacher).startswith("match")

    @property
    def training(self) -> str:
        """Whose rates it takes: ``sgd``, ``adamw`` (one rate for all tensors) or ``match`` (relative to the size of each)."""
        if self.args.teacher == "match":
            return "match"
        return "adamw" if self.matches or self.dense.name in ADAMW else "sgd"

    @property
    def stem(self) -> str:
        """What every structure of this network on this target shares in its file's name."""
        target, prepared = self.target, f"{self.args.prepare_epochs}-{self.args.dense_epochs}"
        device = "" if target.device == "cpu" else "-" + re.sub(r"[^\w.]+", "_", target.device)
        return f"{self.dense.name}-{prepared}-{target.engine}{device}-b{target.batch}"

    def path(self, budget: Budget, name: str, seed: int) -> Path:
        """Where a method's structure is kept; of one that trains it is another for every length of the training."""
        args = self.args
        trained = f"-e{args.epochs}-i{args.train_images}{'' if args.teacher == 'no' else f'-{args.teacher}'}" if trains(name) else ""
        work: Path = args.work
        return work / f"{self.stem}-{budget.text.replace('%', '').replace('=', '')}-{name}{trained}-s{seed}"


def _preparation(args: argparse.Namespace) -> Preparation:
    return Preparation(
        data=args.data,
        work=args.work,
        shortcut_epochs=args.prepare_epochs,
        dense_epochs=args.dense_epochs,
        threads=args.threads,
        device=args.device,
    )
