"""Fine-tuning on tiny checkpoints: every task learns, a killed run goes on, a recipe is checked before it runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, pipeline

from export.finetune import FinetuneArgs, LoraArgs, finetune
from pipelines.errors import CheckpointError, ConfigurationError

Checkpoint = Callable[..., Path]

SENTENCES = {
    "안녕하세요": "positive",
    "정말 재미없네요": "negative",
    "이 영화는 최고예요!": "positive",
    "그다지 좋지 않았어요": "negative",
}
ROWS: dict[str, list[dict[str, Any]]] = {
    "text-classification": [{"text": text, "label": label} for text, label in SENTENCES.items()],
    "token-classification": [
        {"tokens": ["Anna", "lives", "in", "Paris"], "tags": ["B-PER", "O", "O", "B-LOC"]},
        {"text": "서울은 크다", "entities": [{"start": 0, "end": 2, "label": "LOC"}]},
    ],
    "question-answering": [
        {
            "question": "Who wrote the letter?",
            "context": "The letter was found in Paris. " * 12 + "Anna Smith wrote it.",
            "answers": {"text": ["Anna Smith"], "answer_start": [31 * 12]},
        },
        {"question": "Where?", "context": "In Norway.", "answers": {"text": ["Norway"], "answer_start": [3]}},
    ],
    "translation": [{"source": "Go.", "target": "Va !"}, {"source": "I love you.", "target": "Je t'aime."}],
    "summarization": [{"source": "Prices rose by 3.5% in March, the bank said.", "target": "Prices rose."}],
    "text-generation": [{"text": "The river flows to the sea."}, {"text": "서울은 대한민국의 수도이다."}],
}
ARCHITECTURES = {
    "text-classification": "bert",
    "token-classification": "xlm-roberta",
    "question-answering": "bert",
    "translation": "marian",
    "summarization": "t5",
    "text-generation": "gpt2",
}


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


def test_the_notebook_example_runs_three_epochs_and_answers(recipe: Callable[..., FinetuneArgs]) -> None:
    args = recipe("text-classification", max_steps=-1, num_train_epochs=3, eval_strategy="epoch", seed=1)
    output = finetune(args)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["training"]["epochs"] == 3.0
    answers = pipeline("text-classification", model=str(output))(list(SENTENCES))
    assert {answer["label"] for answer in answers} <= {"negative", "positive"}


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


def test_a_small_marian_is_made_from_nothing(recipe: Callable[..., FinetuneArgs]) -> None:
    args = recipe("translation", model={"architecture": "marian", "vocab_size": 60, "d_model": 32, "ffn_dim": 32})
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
        ({"learning_rat": 1}, "recipe: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ({"lora": {"rank": 4}}, "recipe: lora: unknown key 'rank'; did you mean 'r'?"),
        ({"max_steps": 1.5}, "recipe: max_steps is 1.5; it must be an integer"),
        ({"freeze_embeddings": "yes please"}, "recipe: freeze_embeddings is 'yes please'; it must be true or false"),
        ({"eval_strategy": "often"}, "recipe: eval_strategy is 'often'; it must be one of no, steps, epoch"),
        ({"train": None}, "recipe: train is None; it must be a text"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(
    recipe: Callable[..., FinetuneArgs], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        recipe("text-classification", **changes)
    assert str(error.value) == message


def test_a_missing_key_an_unknown_task_and_a_missing_checkpoint_are_named(
    tmp_path: Path, recipe: Callable[..., FinetuneArgs]
) -> None:
    with pytest.raises(ConfigurationError, match="recipe: 'task' is missing"):
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
