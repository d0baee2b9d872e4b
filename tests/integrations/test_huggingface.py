"""Pruned models of transformers: the folder and its configuration, the model card, the Hub (rehearsed), the Trainer's callback."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import latprune
from latprune.errors import CheckpointError, InvalidArgumentError, MissingExtraError
from latprune.integrations.huggingface import from_pretrained, model_card, pruning_callback, push_to_hub, save_pretrained
from support.sample_record import sample_record
from support.vision import torchvision

torchvision()
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

IDS = {"input_ids": torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))}
PIXELS = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


def bert() -> Any:
    config = transformers.BertConfig(vocab_size=64, max_position_embeddings=16, num_labels=8, **SMALL)
    return transformers.BertForSequenceClassification(config)


def vit() -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=8, num_labels=8, **SMALL))


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=64, num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True, pad_token_id=0, **SMALL
    )
    return transformers.LlamaForCausalLM(config)


MODELS = {"bert": (bert, IDS), "vit": (vit, PIXELS), "llama": (llama, IDS)}


def pruned(name: str, **options: Any) -> latprune.Result:
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    settings = {"budget": "flops=60%", "method": "uniform", "measure_latency": False, **options}
    return latprune.prune(make().eval(), inputs, **settings)


def logits(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**inputs)["logits"]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_widths_that_no_configuration_states_come_back_by_the_record(name: str, tmp_path: Path) -> None:
    result = pruned(name)
    folder = save_pretrained(result, tmp_path / "saved")
    kinds = {path.suffix for path in folder.iterdir()}
    assert kinds == {".json", ".md", ".safetensors"}
    with pytest.raises(ValueError, match="model type `latprune`"):  # transformers alone would build another network
        transformers.AutoModel.from_pretrained(folder)
    with pytest.raises(AttributeError, match="latprune"):
        type(result.model).from_pretrained(folder)
    model = from_pretrained(folder)
    assert type(model) is type(result.model) and not model.training
    torch.testing.assert_close(logits(model, MODELS[name][1]), logits(result.model.eval(), MODELS[name][1]), rtol=0, atol=0)
    assert "from latprune.integrations.huggingface import from_pretrained" in (folder / "README.md").read_text()
    # The dense model's configuration, although surgery has set sizes in the pruned one's.
    assert json.loads((folder / "config.json").read_text())["dense"]["intermediate_size"] == 96


def test_a_language_model_generates_after_it_came_back(tmp_path: Path) -> None:
    result = pruned("llama")
    result.model.generation_config.max_new_tokens = 5
    model = from_pretrained(save_pretrained(result, tmp_path / "saved"))
    prompt = IDS["input_ids"][:1]
    tokens = model.generate(prompt, do_sample=False)  # type: ignore[operator]
    assert tokens.shape == (1, 17) and torch.equal(tokens, result.model.eval().generate(prompt, do_sample=False))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("vit", {"vit.layers.*.mlp*": 0.5, "*": 1.0}),
        ("bert", {"bert.encoder.layer.*.intermediate*": 0.5, "*": 1.0}),
        ("llama", {"model.layers.*.mlp*": 0.5, "*": 1.0}),
        ("llama", {"model.layers.*": 1.0, "*": 0.5}),  # the stream: hidden_size
    ],
)
def test_widths_that_a_configuration_states_load_without_latprune(name: str, alike: dict[str, float], tmp_path: Path) -> None:
    rules = latprune.WidthRules(min_share=alike, max_share=alike)
    result = pruned(name, widths=rules, budget="params=99%")
    folder = save_pretrained(result, tmp_path / "saved")
    assert json.loads((folder / "config.json").read_text())["model_type"] == name
    for model in (type(result.model).from_pretrained(folder), from_pretrained(folder)):
        assert not model.training
        torch.testing.assert_close(logits(model, MODELS[name][1]), logits(result.model.eval(), MODELS[name][1]))
    assert "from transformers import" in (folder / "README.md").read_text()
    trunk = transformers.AutoModel.from_pretrained(folder)
    assert sum(p.numel() for p in trunk.parameters()) < sum(p.numel() for p in MODELS[name][0]().parameters())


def test_a_folder_that_is_written_again_keeps_nothing_of_the_earlier_one(tmp_path: Path) -> None:
    alike = {"vit.layers.*.mlp*": 0.5, "*": 1.0}
    save_pretrained(pruned("vit", widths=latprune.WidthRules(min_share=alike, max_share=alike), budget="params=99%"), tmp_path)
    result = pruned("vit")
    save_pretrained(result, tmp_path)
    torch.testing.assert_close(logits(from_pretrained(tmp_path), PIXELS), logits(result.model.eval(), PIXELS), rtol=0, atol=0)


def test_a_captured_program_needs_no_class(tmp_path: Path) -> None:
    result = pruned("bert", form="program")
    model = from_pretrained(save_pretrained(result, tmp_path))
    assert isinstance(model, latprune.ProgramModule)
    torch.testing.assert_close(logits(model, IDS), logits(result.model, IDS))


def test_half_precision_stays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vit().eval().to(torch.bfloat16)
    pixels = {"pixel_values": PIXELS["pixel_values"].to(torch.bfloat16)}
    result = latprune.prune(model, pixels, budget="flops=60%", method="uniform", measure_latency=False)
    again = from_pretrained(save_pretrained(result, tmp_path))
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(again, pixels), logits(result.model.eval(), pixels))


class Mine(transformers.BertForSequenceClassification):  # type: ignore[misc, name-defined]
    """A class that transformers does not have."""


def test_a_class_of_ones_own_is_given_by_hand(tmp_path: Path) -> None:
    result = latprune.prune(Mine(bert().config).eval(), IDS, budget="flops=60%", method="uniform", measure_latency=False)
    save_pretrained(result, tmp_path)
    with pytest.raises(CheckpointError, match="'Mine'.*model_class="):
        from_pretrained(tmp_path)
    assert torch.equal(logits(from_pretrained(tmp_path, model_class=Mine), IDS), logits(result.model.eval(), IDS))
    with pytest.raises(InvalidArgumentError, match="config_class"):
        from_pretrained(tmp_path, model_class=nn.Linear)


def test_what_cannot_come_back_is_not_saved(tmp_path: Path) -> None:
    result = pruned("bert")
    other = transformers.BertConfig(vocab_size=32, **SMALL)
    with pytest.raises(CheckpointError, match=r"does not build the dense BertForSequenceClassification.*'bert\.embeddings"):
        save_pretrained(result, tmp_path / "other", dense_config=other)
    assert not (tmp_path / "other").exists()
    assert from_pretrained(save_pretrained(result, tmp_path / "given", dense_config=bert().config))
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    small = latprune.prune(plain, torch.randn(1, 4), budget="params=60%", method="uniform", measure_latency=False)
    with pytest.raises(InvalidArgumentError, match=r"a Sequential, which is no transformers.PreTrainedModel: save it with result.save"):
        save_pretrained(small, tmp_path / "plain")
    result.save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="not written by save_pretrained"):
        from_pretrained(tmp_path / "saved")


def test_without_transformers_it_says_which_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = pruned("bert")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"latprune\[huggingface\]"):
        save_pretrained(result, tmp_path)


def test_the_card_states_what_was_measured() -> None:
    record = sample_record()
    assert record.pruned.latency is not None and record.dense.latency is not None and record.pruned.accuracy is not None
    card = model_card(record, metadata={"license": "apache-2.0", "tags": ["vision"]}, introduction="A small one.")
    header, _, text = card.partition("\n---\n")
    assert 'license: "apache-2.0"' in header and 'tags: ["vision", "pruned", "latprune"]' in header
    assert f"pruned to {record.budget.text}" in text and "A small one." in text and "Budget met" in text
    assert f"{record.pruned.latency.ms:.2f} ms" in text and f"{record.dense.latency.ms:.2f} ms" in text
    assert f"Measured on: {record.target}" in text and f"{record.pruned.accuracy * 100:.2f} %" in text
    assert f"Budget: {record.budget.text}" in text and all(note in text for note in record.notes)
    with pytest.raises(InvalidArgumentError, match=r"metadata\['license'\]"):
        model_card(record, metadata={"license": object()})
    with pytest.raises(InvalidArgumentError, match="loads_with"):
        model_card(record, loads_with="keras")


def test_the_card_says_what_was_not_measured(tmp_path: Path) -> None:
    card = model_card(pruned("vit").record)
    assert "| latency | not measured | not measured |" in card and "| accuracy | not measured | not measured |" in card
    assert "Asked for on (not measured)" in card


class Rehearsal:
    """In place of the Hub's interface: keeps what would be uploaded."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.made: list[tuple[str, bool | None]] = []

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
        assert exist_ok
        self.made.append((repo_id, private))

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str, revision: str | None) -> str:
        for path in Path(folder_path).iterdir():
            (self.place / path.name).write_bytes(path.read_bytes())
        return f"{repo_id}: {commit_message}"


def test_the_upload_is_whole_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = pruned("bert")
    api = Rehearsal(tmp_path)
    commit = push_to_hub(result, "me/bert-small", private=True, api=api, metadata={"license": "mit"})
    assert api.made == [("me/bert-small", True)]
    assert commit == "me/bert-small: BertForSequenceClassification pruned to flops=60% by latprune"
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors", "result.json"}
    assert 'from_pretrained("me/bert-small")' in (tmp_path / "README.md").read_text()
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = from_pretrained("me/bert-small", revision="v1")
    assert asked["repository"] == "me/bert-small" and asked["revision"] == "v1" and "*" not in "".join(asked["allow_patterns"])
    assert torch.equal(logits(model, IDS), logits(result.model.eval(), IDS))


def test_what_cannot_be_saved_makes_no_repository(tmp_path: Path) -> None:
    api = Rehearsal(tmp_path)
    with pytest.raises(CheckpointError):
        push_to_hub(pruned("bert"), "me/bert-small", api=api, dense_config=transformers.BertConfig(vocab_size=32, **SMALL))
    assert api.made == [] and list(tmp_path.iterdir()) == []


class Numbers(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 64, (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids[0] % 8}


def trainer_of(model: nn.Module, callback: Any, place: Path, **options: Any) -> Any:
    pytest.importorskip("accelerate")
    settings = {"num_train_epochs": 4, "per_device_train_batch_size": 16, "save_strategy": "no", "report_to": [], "disable_tqdm": True}
    args = transformers.TrainingArguments(output_dir=str(place), use_cpu=True, **{**settings, **options})
    return transformers.Trainer(model=model, args=args, train_dataset=Numbers(), eval_dataset=Numbers(), callbacks=[callback])


@pytest.mark.filterwarnings("ignore")
def test_the_callback_cuts_in_stages_between_epochs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = bert()
    pruner = latprune.Pruner(model, IDS, budget="flops=60%", method=latprune.SPLAMP(stages=2), measure_latency=False)
    callback = pruning_callback(pruner, start=2)
    trainer = trainer_of(model, callback, tmp_path)
    trainer.train()
    assert pruner.done and [report.stage for report in callback.reports] == [1, 2]
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    model = from_pretrained(save_pretrained(pruner.result(), tmp_path / "saved"))
    assert torch.equal(logits(model, IDS), logits(pruner.model.eval(), IDS))
    pruner.close()


@pytest.mark.filterwarnings("ignore")
def test_a_training_that_a_cut_would_break_is_refused(tmp_path: Path) -> None:
    def pruner(model: nn.Module, method: Any = "mdp") -> latprune.Pruner:
        return latprune.Pruner(model, IDS, budget="flops=60%", method=method, measure_latency=False)

    with pytest.raises(InvalidArgumentError, match="trains under masks"):
        pruning_callback(pruner(bert(), "smcp"))
    with pytest.raises(InvalidArgumentError, match=r"start \(=0\)"):
        pruning_callback(pruner(bert()), start=0)
    model = bert()
    with pytest.raises(InvalidArgumentError, match="does not hold the pruner's"):
        trainer_of(bert(), pruning_callback(pruner(model)), tmp_path).train()
    best = {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "epoch"}
    trainer = trainer_of(model, pruning_callback(pruner(model)), tmp_path, **best, **{"metric_for_best_model": "loss"})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidArgumentError, match="load_best_model_at_end"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
