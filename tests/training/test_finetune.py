"""Fine-tuning on tiny checkpoints: every task learns, a killed run goes on, a recipe is checked before it runs."""

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, pipeline

from checkpoints.resolve import resolve
from export.build import ExportArgs, export_checkpoint
from pipelines.errors import CheckpointError, ConfigurationError, SextetError, TrainingError
from tests.evaluation.labelled import ARCHITECTURES, ROWS, SENTENCES
from training.callbacks import last_whole_checkpoint
from training.finetune import FinetuneArgs, LoraArgs, finetune
from training.objective import TextGeneration
from training.trainee import save
from training.trainer import class_weights, weighted_loss

Checkpoint = Callable[..., Path]


KEYS = ", ".join(sorted(one.name for one in dataclasses.fields(FinetuneArgs)))


@pytest.fixture
def recipe(tmp_path: Path, checkpoint: Checkpoint) -> Callable[..., FinetuneArgs]:
    """`recipe(task, **changes)`: a recipe over the task's tiny checkpoint and rows."""

    def make(task: str, **changes: Any) -> FinetuneArgs:
        data = tmp_path / "train.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]), encoding="utf-8")
        given = {
            "task": task,
            "train": str(data),
            "validation": str(data),
            "output": str(tmp_path / "output"),
            "max_length": 64,
            "max_steps": 60,
            "learning_rate": 5e-3,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_steps": 1,
        }
        if "model" not in changes:
            given["model"] = str(checkpoint(ARCHITECTURES[task], task))
        return FinetuneArgs.from_mapping(given | changes)

    return make


@pytest.mark.parametrize("task", list(ROWS))
def test_every_task_learns_its_rows(task: str, recipe: Callable[..., FinetuneArgs]) -> None:
    output = finetune(recipe(task))
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["training"]["last_loss"] < 0.8 * metrics["training"]["first_loss"]
    assert metrics["validation"]["validation"]["rows"] == len(ROWS[task])
    assert not (output / "checkpoints").exists()


def test_four_korean_sentences_and_three_epochs_from_the_command_line(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """The example that most people begin with: 1 is good, 0 is bad, two sentences to validate on."""
    lines = [f"{text},{int(label == 'positive')}" for text, label in SENTENCES.items()]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *lines, ""]), encoding="utf-8")
    (tmp_path / "validation.csv").write_text("text,label\n아쉬워요,0\n훌륭한 작품이에요,1\n", encoding="utf-8")
    flags = ["--model", str(checkpoint("bert", "text-classification")), "--task", "text-classification"]
    flags += [
        "--train",
        "train.csv",
        "--validation",
        "validation.csv",
        "--output",
        "results",
        "--save_total_limit",
        "2",
    ]
    flags += [
        "--per_device_train_batch_size",
        "16",
        "--num_train_epochs=3",
        "--labels",
        "0=negative",
        "--labels",
        "1=positive",
    ]
    finished = sextet("finetune", *flags, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    header, *epochs = finished.stdout.splitlines()[:4]
    assert header.split("  ")[-1].strip() == "f1 macro"
    assert all(0 < float(line.split()[2]) < 5 for line in epochs), "a training loss for each epoch"
    assert [line.split()[:2] for line in epochs] == [["1.00", "1"], ["2.00", "2"], ["3.00", "3"]]
    assert finished.stderr.endswith("wrote results\n")
    results = tmp_path / "results"
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["training"]["epochs"] == 3.0
    assert 0 < metrics["training"]["first_loss"] < 5
    assert len(metrics["evaluations"]) == 3
    assert (results / "learning-curve.png").read_bytes().startswith(b"\x89PNG")
    card = (results / "README.md").read_text()
    assert "| validation | 2 |" in card
    metadata: Any = ModelCard(card).data
    shown = {one.metric_type: one.metric_value for one in metadata.eval_results}
    assert shown == {name: one for name, one in metrics["validation"]["validation"].items() if name != "rows"}
    assert "sextet export results --task text-classification" in card
    answers = pipeline("text-classification", model=str(results))(list(SENTENCES))
    assert {answer["label"] for answer in answers} <= {"negative", "positive"}


def sextet(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sextet", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def test_a_lora_run_writes_an_adapter_that_merges_into_the_same_checkpoint(recipe: Callable[..., FinetuneArgs]) -> None:
    from peft import PeftModel

    args = recipe("text-classification", lora={"r": 4, "target_modules": ["query", "value"]}, freeze_embeddings=True)
    output = finetune(args)
    assert isinstance(args.model, str)
    base = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2, ignore_mismatched_sizes=True)
    merged = PeftModel.from_pretrained(base, str(output / "adapter")).merge_and_unload().state_dict()
    written = load_file(output / "model.safetensors")
    assert all(merged[name].equal(tensor) for name, tensor in written.items())
    embeddings = "bert.embeddings.word_embeddings.weight"
    assert written[embeddings].equal(load_file(Path(args.model) / "model.safetensors")[embeddings])
    assert json.loads((output / "adapter" / "config.json").read_text())["id2label"] == {
        "0": "negative",
        "1": "positive",
    }


def test_an_adapter_names_a_base_in_a_folder_so_that_it_is_found_from_everywhere(
    recipe: Callable[..., FinetuneArgs], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    args = recipe("text-classification", lora={"r": 4}, max_steps=1)
    folder = Path(str(args.model))
    monkeypatch.chdir(folder.parent)
    output = finetune(dataclasses.replace(args, model=f"./{folder.name}"))
    assert json.loads((output / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        folder
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEXTET_CACHE", str(tmp_path / "cache"))
    assert resolve(str(output / "adapter")).path.is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_generation_parameters_that_contradict_each_other_stay_as_they_are_in_the_base(
    recipe: Callable[..., FinetuneArgs], checkpoint: Checkpoint, tmp_path: Path, lora: dict[str, int] | None
) -> None:
    base = Path(shutil.copytree(checkpoint("gpt2", "text-generation"), tmp_path / "base"))
    file = base / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": 0.7, "do_sample": False}))
    steps = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}

    output = finetune(recipe("text-generation", model=str(base), lora=lora, **steps))

    assert json.loads((output / "generation_config.json").read_text())["temperature"] == 0.7


def test_an_adapter_is_saved_under_the_name_of_its_starter_without_a_word(
    checkpoint: Checkpoint, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    from peft import LoraConfig, get_peft_model

    base = resolve(str(checkpoint("bert", "text-classification")))
    plain = AutoModelForSequenceClassification.from_pretrained(base.path)
    model = get_peft_model(plain, LoraConfig(task_type="SEQ_CLS"))
    recwarn.clear()

    save(model, AutoTokenizer.from_pretrained(base.path), dataclasses.replace(base, name="starter:encoder"), tmp_path)

    assert [str(one.message) for one in recwarn] == []
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "starter:encoder"


def test_in_a_log_file_every_logging_step_is_a_line(recipe: Callable[..., FinetuneArgs]) -> None:
    said: list[str] = []
    finetune(recipe("text-classification", max_steps=4, logging_steps=2, learning_rate=4e-3), said.append)
    steps = [re.fullmatch(r"step (\d) of 4: loss (\d+\.\d{4}), learning rate (\S+)", line) for line in said]
    assert [(step[1], step[3]) for step in steps if step] == [("2", "0.003"), ("4", "0.001")]


def test_a_question_without_an_answer_is_learned_as_one(tmp_path: Path, recipe: Callable[..., FinetuneArgs]) -> None:
    asked = [
        {"question": "Who?", "context": "Anna wrote it.", "answers": {"text": ["Anna"], "answer_start": [0]}},
        {"question": "When?", "context": "The bank said so.", "answers": {"text": [], "answer_start": []}},
    ]
    data = tmp_path / "squad.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    output = finetune(recipe("question-answering", train=str(data), validation=str(data)))
    scores = json.loads((output / "metrics.json").read_text())["validation"]["validation"]
    assert (scores["exact_match"], scores["no_answer_accuracy"]) == (100.0, 100.0)


def test_a_small_marian_is_made_from_nothing(recipe: Callable[..., FinetuneArgs]) -> None:
    args = recipe(
        "translation", model={"architecture": "marian", "vocab_size": 60, "d_model": 32, "ffn_dim": 32}, max_steps=5
    )
    output = finetune(args)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.decode(tokenizer("I love you.")["input_ids"], skip_special_tokens=True) == "I love you."
    answer = pipeline("translation", model=str(output))("I love you.", max_length=8)
    assert set(answer[0]) == {"translation_text"}


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_a_killed_run_ends_as_the_uninterrupted_one(
    tmp_path: Path, recipe: Callable[..., FinetuneArgs], monkeypatch: pytest.MonkeyPatch, lora: dict[str, int] | None
) -> None:
    shape = {"lora": lora, "save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 2, "max_steps": 8}
    whole = finetune(recipe("text-classification", **shape, output=str(tmp_path / "whole")))

    killed = recipe("text-classification", **shape, output=str(tmp_path / "killed"))
    real_step = Trainer.training_step
    steps = iter(range(100))

    def step_then_die(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        if next(steps) == 5:
            raise KeyboardInterrupt
        return real_step(trainer, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "training_step", step_then_die)
        with pytest.raises(KeyboardInterrupt):
            finetune(killed)
    assert (tmp_path / "killed" / "checkpoints" / "checkpoint-3").is_dir()
    assert not (tmp_path / "killed" / "metrics.json").exists()

    resumed = finetune(killed)
    expected = load_file(whole / "model.safetensors")
    assert all(tensor.equal(expected[name]) for name, tensor in load_file(resumed / "model.safetensors").items())


def test_what_a_killed_run_left_half_written_is_not_gone_on_from(tmp_path: Path) -> None:
    for step, state in ((9, '{"global_step": 9}'), (10, '{"global_step": 10}'), (11, '{"global_')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-12").mkdir()
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    tmp_path: Path, recipe: Callable[..., FinetuneArgs]
) -> None:
    shape = {"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    written = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        finetune(recipe("text-classification", **shape, seed=seed, output=str(tmp_path / name)))
        written.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(tensor.equal(written[1][name]) for name, tensor in written[0].items())
    assert not all(tensor.equal(written[2][name]) for name, tensor in written[0].items())


@pytest.mark.parametrize(
    ("problem_type", "labels", "scores"),
    [
        ("multi_label_classification", [["joy"], [], ["joy", "fear"], ["fear"]], {"accuracy", "f1_macro", "f1_micro"}),
        ("regression", [0.5, 1.5, 2.5, 3.5], {"rmse", "mae", "pearson"}),
    ],
)
def test_a_classifier_learns_many_labels_or_a_number(
    tmp_path: Path, recipe: Callable[..., FinetuneArgs], problem_type: str, labels: list[Any], scores: set[str]
) -> None:
    data = tmp_path / "several.jsonl"
    rows = ({"text": text, "label": label} for text, label in zip(SENTENCES, labels, strict=True))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changes = {"problem_type": problem_type, "train": str(data), "validation": str(data)}
    output = finetune(recipe("text-classification", **changes))
    config = json.loads((output / "config.json").read_text())
    assert config["problem_type"] == problem_type
    metrics = json.loads((output / "metrics.json").read_text())
    assert scores <= set(metrics["validation"]["validation"])
    assert metrics["training"]["last_loss"] < 0.8 * metrics["training"]["first_loss"]


def test_training_stops_early_with_the_best_model(recipe: Callable[..., FinetuneArgs]) -> None:
    early = {"early_stopping_patience": 2, "metric_for_best_model": "f1_macro"}
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    output = finetune(recipe("text-classification", max_steps=400, learning_rate=1e-8, **early, **every))
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["training"]["steps"] == 3  # nothing gets better at such a rate: the first and two more
    assert metrics["training"]["best_step"] == 1
    assert metrics["training"]["best"] == metrics["validation"]["validation"]["f1_macro"]


def test_balanced_class_weights_make_all_labels_weigh_the_same() -> None:
    weights = class_weights(("a", "b", "c"), iter([0, 0, 0, 1]), "balanced")
    assert weights.tolist() == [pytest.approx(4 / 6), 2.0, 1.0]
    assert class_weights(("a", "b"), iter([]), {"b": 3}).tolist() == [1.0, 3.0]


def test_a_weighted_loss_is_torchs_own_and_adds_up_over_accumulated_batches() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, -100, 1, 0])
    weights = torch.tensor([1.0, 2.0, 0.5])
    loss = weighted_loss(weights, 0.1)
    whole = loss({"logits": logits}, labels)
    halves = [loss({"logits": logits[part]}, labels[part], 5) for part in (slice(0, 3), slice(3, 6))]
    assert whole.item() == pytest.approx(float(sum(halves)))
    torchs = torch.nn.functional.cross_entropy(logits, labels, weights, label_smoothing=0.1, reduction="sum")
    assert whole.item() == pytest.approx(torchs.item() / 5)


def test_class_weights_change_what_is_learned(tmp_path: Path, recipe: Callable[..., FinetuneArgs]) -> None:
    shape = {"max_steps": 2, "lora": True, "bf16": "auto"}
    plain = finetune(recipe("text-classification", **shape, output=str(tmp_path / "plain")))
    heavy = {"class_weights": {"positive": 50.0}, "output": str(tmp_path / "heavy")}
    weighted = finetune(recipe("text-classification", **shape, **heavy))
    first, second = (json.loads((one / "metrics.json").read_text())["training"] for one in (plain, weighted))
    assert second["first_loss"] > 5 * first["first_loss"]
    assert finetune(recipe("token-classification", max_steps=1, class_weights="balanced", output=str(tmp_path / "ner")))


def test_a_loss_that_is_no_number_ends_the_training_and_keeps_the_last_checkpoint(
    recipe: Callable[..., FinetuneArgs],
) -> None:
    shape = {"save_strategy": "steps", "save_steps": 1, "max_grad_norm": 0, "lr_scheduler_type": "constant"}
    with pytest.raises(TrainingError) as error:
        finetune(recipe("text-classification", learning_rate=1e30, **shape))
    assert re.match(
        r"the loss is (nan|inf) at step \d+: with a learning_rate of 1e\+30 the training diverges", str(error.value)
    )
    assert "output/checkpoints/checkpoint-" in str(error.value)


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(recipe: Callable[..., FinetuneArgs]) -> None:
    args = recipe("text-classification", save_strategy="steps", save_steps=2, max_steps=4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(
            TrainingError, match=r"output cannot be written: .*; free some, then run it again; no checkp"
        ):
            finetune(args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (finetune(args) / "metrics.json").is_file()


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(
    recipe: Callable[..., FinetuneArgs], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = recipe("text-classification", max_steps=6)
    real_step = Trainer.training_step
    steps = iter(range(100))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background

    def step_and_signal(trainer: Trainer, *given: Any, **named: Any) -> Any:
        if next(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real_step(trainer, *given, **named)

    said: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "training_step", step_and_signal)
        with pytest.raises(
            TrainingError, match=r"interrupted at step 3; kept .*checkpoint-3; the same command goes on"
        ):
            finetune(args, said.append)
    assert any(line.startswith("stopping after this step; once more stops at once") for line in said)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    output = finetune(args, said.append)
    assert f"going on from {output / 'checkpoints' / 'checkpoint-3'}" in said
    assert json.loads((output / "metrics.json").read_text())["training"]["steps"] == 6


def test_a_finished_output_is_not_overwritten(recipe: Callable[..., FinetuneArgs]) -> None:
    args = recipe("text-classification", max_steps=1)
    finetune(args)
    with pytest.raises(ConfigurationError, match="holds a finished run; remove it, or set another output"):
        finetune(args)


def test_a_run_is_not_continued_with_another_seed(tmp_path: Path, recipe: Callable[..., FinetuneArgs]) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / "recipe.yaml").write_text(yaml.safe_dump({"seed": 7}))
    with pytest.raises(ConfigurationError, match="was begun with another model"):
        finetune(recipe("text-classification"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learning_rat": 1},
            f"recipe has no key 'learning_rat' (did you mean 'learning_rate'?); allowed: {KEYS}",
        ),
        ({"lora": {"rank": 4}}, "recipe: lora has no key 'rank'; allowed: alpha, dropout, r, target_modules"),
        ({"max_steps": 1.5}, "recipe: max_steps is 1.5; allowed: an integer"),
        ({"freeze_embeddings": "yes please"}, "recipe: freeze_embeddings is 'yes please'; allowed: true or false"),
        ({"eval_strategy": "often"}, "recipe: eval_strategy is 'often'; allowed: no, steps, epoch"),
        ({"train": None}, "recipe: train is missing; allowed: a list, each a string"),
        ({"bf16": "often"}, "recipe: bf16 is 'often'; allowed: true or false or auto"),
        ({"class_weights": "even"}, "recipe: class_weights is 'even'; allowed: balanced or an object"),
        ({"weight_decay": "much"}, "recipe: weight_decay is 'much'; allowed: a number"),
        ({"adam_beta1": "much"}, "recipe: adam_beta1 is 'much'; allowed: a number"),
        ({"max_eval_samples": 0}, "recipe: max_eval_samples is 0; allowed: an integer from 1"),
        ({"max_steps": -1, "num_train_epochs": "nan"}, "recipe: num_train_epochs is nan; allowed: a number above 0"),
        ({"max_steps": -1, "num_train_epochs": 0}, "recipe: num_train_epochs is 0.0; allowed: a number above 0"),
        ({"max_steps": 0}, "recipe: max_steps is 0; allowed: from 1, or -1 for all the epochs"),
        ({"save_steps": 0}, "recipe: save_steps is 0; allowed: an integer from 1"),
        ({"eval_steps": 0}, "recipe: eval_steps is 0; allowed: an integer from 1"),
        ({"logging_steps": -1}, "recipe: logging_steps is -1; allowed: an integer from 1"),
        ({"save_total_limit": 0}, "recipe: save_total_limit is 0; allowed: an integer from 1"),
        ({"learning_rate": "nan"}, "recipe: learning_rate is nan; allowed: a number from 0"),
        ({"per_device_train_batch_size": 0}, "recipe: per_device_train_batch_size is 0; allowed: an integer from 1"),
        ({"per_device_eval_batch_size": 0}, "recipe: per_device_eval_batch_size is 0; allowed: an integer from 1"),
        ({"gradient_accumulation_steps": 0}, "recipe: gradient_accumulation_steps is 0; allowed: an integer from 1"),
        ({"seed": -1}, "recipe: seed is -1; allowed: an integer from 0"),
        ({"lora": {"dropout": 1}}, "recipe: lora: dropout is 1; allowed: from 0 and below 1"),
        (
            {"model": {"architecture": "marian", "d_model": 0}},
            "recipe: model: d_model is 0; allowed: an integer from 1",
        ),
        ({"lora": {"r": 0}}, "recipe: lora: r is 0; allowed: an integer from 1"),
        ({"max_length": 1}, "recipe: max_length is 1; allowed: an integer from 3"),
        ({"push_to_hub": True}, f"recipe has no key 'push_to_hub'; allowed: {KEYS}"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(
    recipe: Callable[..., FinetuneArgs], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        recipe("text-classification", **changes)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("text-classification", {"max_length": 4096}, "max_length is 4096; {model} reads 128 tokens at most"),
        (
            "text-classification",
            {"metric_for_best_model": "f2", "load_best_model_at_end": True, "eval_strategy": "epoch"},
            "metric_for_best_model is 'f2'; allowed: loss, accuracy, f1_macro",
        ),
        (
            "text-classification",
            {"early_stopping_patience": 1},
            "compare evaluations: set validation and eval_strategy",
        ),
        (
            "text-classification",
            {"class_weights": {"neutral": 2}},
            "class_weights names 'neutral'; the labels are negative",
        ),
        (
            "translation",
            {"class_weights": "balanced"},
            "class_weights is set; allowed where each text or token has one",
        ),
        ("text-classification", {"optim": "adamvv"}, "recipe: adamvv is not a valid OptimizerNames"),
        ("text-classification", {"train": "one.csv"}, "every one of the 2 training rows has the label 'a'; two labels"),
        ("text-classification", {"validation": "new.csv"}, "new.csv:3: the training files have no label 'c', only a"),
        ("text-classification", {"train": "empty.csv"}, "empty.csv: no rows"),
        ("token-classification", {"train": "plain.conll"}, "there is no entity in any of the 1 training rows"),
        ("question-answering", {"max_length": 8}, "tokens, which leaves too little of max_length 8"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    tmp_path: Path,
    recipe: Callable[..., FinetuneArgs],
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "one.csv": "text,label\nx,a\ny,a\n",
        "new.csv": "text,label\nx,a\ny,c\n",
        "empty.csv": "",
        "plain.conll": "x O\ny O\n",
    }
    for name, text in files.items():
        Path(name).write_text(text)
    if "validation" in changes:
        Path("two.csv").write_text("text,label\nx,a\ny,b\n")
        changes = changes | {"train": "two.csv"}
    args = recipe(task, **changes)
    with pytest.raises(SextetError) as error:
        finetune(args)
    assert message.format(model=args.model) in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_that_are_longer_than_max_length_are_said_to_be_cut(recipe: Callable[..., FinetuneArgs]) -> None:
    said: list[str] = []
    args = recipe("text-classification", max_length=6, max_steps=1)
    finetune(args, said.append)
    assert re.match(r"training: \d of 4 rows have more than max_length 6 tokens and are cut there, the first", said[0])


def test_question_answering_is_asked_in_windows_of_the_length_it_learned_from(
    recipe: Callable[..., FinetuneArgs], tmp_path: Path
) -> None:
    output = finetune(recipe("question-answering", max_length=48, max_steps=1))
    artifact = export_checkpoint(ExportArgs(str(output), "question-answering", tmp_path / "artifact"))

    assert AutoTokenizer.from_pretrained(output).model_max_length == 48
    assert artifact.manifest.tokenizer.max_length == 48


def test_a_long_text_is_divided_for_generation(recipe: Callable[..., FinetuneArgs], checkpoint: Checkpoint) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("gpt2", "text-generation"))
    features = TextGeneration(tokenizer, 4).encode({"text": ["The river flows from the mountains."]})
    joined = [token for piece in features["input_ids"] for token in piece]
    assert (
        tokenizer.decode(joined) == "The river flows from the mountains.<|endoftext|>"[: len(tokenizer.decode(joined))]
    )
    assert all(2 <= len(piece) <= 4 for piece in features["input_ids"])


def test_the_other_names_of_training_arguments_are_known(recipe: Callable[..., FinetuneArgs]) -> None:
    args = recipe("text-classification", warmup_steps=2, dataloader_num_workers=0, optim="sgd", max_steps=2)
    assert args.training_arguments == {"warmup_steps": 2, "dataloader_num_workers": 0, "optim": "sgd"}
    output = finetune(args)
    written = FinetuneArgs.read(output / "recipe.yaml")
    assert written.training_arguments == args.training_arguments


def test_a_missing_key_an_unknown_task_and_a_missing_checkpoint_are_named(
    tmp_path: Path, recipe: Callable[..., FinetuneArgs]
) -> None:
    with pytest.raises(ConfigurationError, match="recipe: task is missing; allowed: a string"):
        FinetuneArgs.from_mapping({"model": "starter:encoder"})
    with pytest.raises(ConfigurationError, match="task is 'fill-mask'; allowed: text-classification"):
        finetune(FinetuneArgs(model="x", task="fill-mask", train=("a.csv",), output=str(tmp_path / "o")))
    with pytest.raises(CheckpointError, match="no folder"):
        finetune(recipe("text-classification", model=str(tmp_path / "nowhere")))


def test_flags_go_on_top_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: starter:encoder\ntask: text-classification\ntrain: [a.csv, b.csv]\noutput: o\nlora: {r: 8, alpha: 9}\n"
    )
    args = FinetuneArgs.read(path, ["--learning_rate", "5e-5", "--lora.r=4", "--eval-strategy", "no"])
    assert (args.train, args.learning_rate, args.eval_strategy) == (("a.csv", "b.csv"), 5e-5, "no")
    assert args.lora == LoraArgs(r=4, alpha=9)
    with pytest.raises(ConfigurationError, match="--seed is not an option with a value"):
        FinetuneArgs.read(path, ["--seed"])
    for flags in (["--lora", "--lora.r", "4"], ["--lora.r", "4", "--lora"]):
        assert FinetuneArgs.read(path, flags).lora == LoraArgs(r=4, alpha=9)
    with pytest.raises(ConfigurationError, match="--train is given twice; several values are one list"):
        FinetuneArgs.read(path, ["--train", "a.csv", "--train", "b.csv"])
    with pytest.raises(ConfigurationError, match=r"--train\.x is given beside --train a\.csv"):
        FinetuneArgs.read(path, ["--train", "a.csv", "--train.x", "b.csv"])
    path.write_bytes("model: 모델\n".encode("cp949"))
    with pytest.raises(ConfigurationError, match=r"recipe\.yaml cannot be read"):
        FinetuneArgs.read(path)
