"""One network on one engine: structures found once, recovered, trained at every rate; one row each."""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from measuring import Budget, counted, measured
from networks import Dense, Preparation, dense_network
from ours import OURS, Own, own_structure
from result_file import ResultFile
from rivals import BEST_OF, RIVALS, Ratios, gradients_of, rival_structure
from rows import KEY, best_rate, line
from structures import Structure, Unreachable
from torch import nn

import latprune
from latprune.errors import TrainingError
from latprune.graph import ModelGraph
from latprune.latency import Store, Target
from latprune.methods.from_scratch import reinitialise
from latprune.pruning import training_threads
from latprune.recovery import recover
from latprune.train import SGD, AdamW, Batches, Distillation, Recipe, evaluate, finetune
from latprune.train.batches import FirstBatches
from latprune.train.precision import native_precision
from latprune.zoo import cifar10_test, cifar10_train

__all__ = ["Bench"]

RECOVERY_IMAGES = 2048
SLACK = 0.03
"""Our networks are accepted from so far below a budget."""


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
    def of(cls, args: argparse.Namespace, name: str, store: Store) -> Bench:
        dense = dense_network(name, _preparation(args))
        print(f"{name}: {100 * dense.accuracy:.2f} % ({dense.note})", flush=True)
        return cls(
            args=args,
            dense=dense,
            graph=latprune.trace(dense.model, dense.example),
            target=Target(engine=args.engine, device=args.engine_device, threads=1, batch=args.batch),
            store=store,
            test=FirstBatches(cifar10_test(str(args.data)), -(-args.test_images // 500)),
        )

    def cell(self, file: ResultFile, budget: Budget, method: str, seed: int) -> None:
        """All rows of one method under one budget with one seed."""
        args = self.args
        head = {
            "network": self.dense.name,
            "engine": args.engine,
            "batch": args.batch,
            "budget": budget.text,
            "method": method,
            "seed": seed,
            "epochs": args.epochs,
            "train_images": args.train_images,
            "distilled": args.distill,
        }
        rates = args.scratch_rates if method == "from_scratch" else args.rates
        if seed:
            chosen = best_rate(file.rows, {**head, "seed": 0})
            rates = [chosen] if chosen is not None else rates
        heads = [{**head, "rate": rate} for rate in rates]
        done = [h for h in heads if any(all(row.get(c) == h[c] for c in KEY) for row in file.rows)]
        if len(done) == len(heads) or any(all(row.get(c) == head[c] for c in head) and "refused" in row for row in file.rows):
            return
        common = {
            "budget_share": budget.share,
            "test_images": args.test_images,
            "dense_accuracy": self.dense.accuracy,
            "dense": self.dense.note,
        }
        try:
            start = self.started(budget, method, seed)
        except Unreachable as error:
            row = {**head, "rate": None, **common, "refused": str(error), "floor": error.floor}
            file.add(row, self.target)
            print(line(row), flush=True)
            return
        for each in heads:
            if each in done:
                continue
            made = {**start.found, **counted(self.graph, start.selection)}
            row = {**each, **common, **made, **self.trained(start.network, each["rate"], seed, self.left_to_train(method))}
            file.add(row, self.target)
            print(line(row), flush=True)

    def share_of(self, name: str) -> float:
        """Latency of another dense network as a share of this one's; measured once."""
        args = self.args
        kept = args.work / f"{self.stem}-latency-of-{name}.txt"
        if not kept.exists():
            other = dense_network(name, _preparation(args))
            kept.write_text(repr(measured(self.dense, other.model, self.target)["pruned"].ratio))
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
        return found

    def structure(self, budget: Budget, name: str, seed: int) -> Structure:
        """A method's network as it leaves it, with its measured latency; found once."""
        path = self.path(budget, name, seed)
        kept = Structure.load(path, self.dense, self.graph)
        if kept is not None:
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
            }
        )
        found.save(path)
        return found

    def searched(self, budget: Budget, name: str, seed: int) -> Structure:
        data, train = str(self.args.data), cifar10_train(str(self.args.data), seed=seed)
        own = own_of(name)
        if own is not None:
            soft = (FirstBatches(train, self.batches - self.left_to_train(name)), self.recipe(0.01, seed))
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
        return Structure(network=best.network, selection=best.selection, found={**best.found, "variants": seen})

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

    def trained(self, network: nn.Module, rate: float, seed: int, batches: int) -> dict[str, Any]:
        """Accuracy of a copy after training on so many batches an epoch; at the last epoch."""
        args = self.args
        student = copy.deepcopy(network).to(args.device)
        teacher = copy.deepcopy(self.dense.model).to(args.device) if args.distill else None
        train = FirstBatches(cifar10_train(str(args.data), seed=100 + seed), batches)
        start = time.perf_counter()
        try:
            with training_threads(args.threads):
                finetune(student, train, self.recipe(rate, seed), teacher=teacher)
        except TrainingError as error:  # diverged
            return {"trained": None, "note": str(error)[:200]}
        seconds = time.perf_counter() - start
        return {"trained": self.accuracy(student), "training_seconds": seconds}

    def recipe(self, rate: float, seed: int) -> Recipe:
        """The same for every method."""
        transformer = self.dense.name == "vit"
        return Recipe(
            epochs=self.args.epochs,
            learning_rate=rate,
            optimizer=AdamW() if transformer else SGD(momentum=0.9),
            weight_decay=0.05 if transformer else 5e-4,
            precision=native_precision(),
            channels_last=not transformer,
            distillation=Distillation() if self.args.distill else None,
            seed=seed,
        )

    def accuracy(self, network: nn.Module, data: Batches | None = None) -> float:
        with training_threads(self.args.threads):
            return evaluate(network.eval(), self.test if data is None else data)

    @property
    def stem(self) -> str:
        return f"{self.dense.name}-{self.args.prepare_epochs}-{self.args.dense_epochs}-{self.args.engine}-b{self.args.batch}"

    def path(self, budget: Budget, name: str, seed: int) -> Path:
        work: Path = self.args.work
        return work / f"{self.stem}-{budget.text.replace('%', '').replace('=', '')}-{name}-s{seed}"


def own_of(method: str) -> Own | None:
    """Ours of this name, ``best`` of ``best=tp_taylor`` too; None of any other."""
    return OURS.get(method.partition("=")[0])


def _preparation(args: argparse.Namespace) -> Preparation:
    return Preparation(
        data=args.data,
        work=args.work,
        shortcut_epochs=args.prepare_epochs,
        dense_epochs=args.dense_epochs,
        threads=args.threads,
        device=args.device,
    )
