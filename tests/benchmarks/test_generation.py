import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.generation import Findings, Local, Pace
from benchmarks.peers.peer import PeerError
from benchmarks.peers.writers import WRITERS, Writer, writing
from benchmarks.report import GENERATION_FIGURES
from benchmarks.sentences import passages, sentences
from benchmarks.soak_generation import questions


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.name)
def test_every_writer_has_a_program_and_either_pins_or_the_projects_own_packages(writer: Writer) -> None:
    assert writer.script.is_file()
    assert writer.requirements.is_file() != bool(writer.needs)


def test_passages_have_exactly_so_many_tokens_and_come_again_with_the_seed() -> None:
    def made() -> list[list[int]]:
        return passages(3, 40, 7, lambda text: [len(word) for word in text.split()])

    assert [len(one) for one in made()] == [40, 40, 40]
    assert made() == made()
    assert len(set(sentences(64, 0))) == 64


def test_a_writer_goes_on_from_prompts_as_transformers_does(
    checkpoint: Callable[..., Path], exported: Callable[..., Path]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = checkpoint("llama", "text-generation")
    (writer,) = [one for one in WRITERS if one.name == "transformers"]
    prompts = [[5, 60, 70, 80], [9, 50, 40, 30]]

    with writing(writer, folder, folder / "tokenizer.json", 1) as running:
        tokens, seconds = running.write(prompts, 6)

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    given = torch.tensor(prompts)
    expected = model.generate(
        given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=6, min_new_tokens=6
    )
    assert tokens == expected[:, 4:].tolist()
    assert seconds > 0
    local = Local(exported("llama", "text-generation"))
    assert [local.write(prompt, 1) for prompt in prompts] == [one[:1] for one in tokens]


def test_a_writer_that_ends_says_why(tmp_path: Path) -> None:
    script = tmp_path / "write.py"
    script.write_text("raise SystemExit('no such model')", encoding="utf-8")
    writer = Writer(name="broken", serves="nothing", script=script, needs=("json",))

    assert writer.python == Path(sys.executable)
    with (
        pytest.raises(PeerError, match="ended: no such model"),
        writing(writer, tmp_path, tmp_path / "tokenizer.json", 1),
    ):
        pass


def test_ratios_are_taken_repetition_by_repetition() -> None:
    findings = Findings()
    for ours, theirs in ((10.0, 5.0), (12.0, 4.0)):
        findings.rate("w", "Sextet", ours)
        findings.rate("w", "other", theirs)

    findings.ratio("one_stream_over_genai", ("w", "Sextet"), ("w", "other"))
    findings.ratio("served_over_optimum", ("w", "Sextet"), ("w", "absent"))

    assert findings.figures == {"one_stream_over_genai": [2.0, 3.0]}
    assert set(findings.figures) <= set(GENERATION_FIGURES)


def test_the_engine_is_measured_with_all_clients_at_work(exported: Callable[..., Path]) -> None:
    local = Local(exported("llama", "text-generation"))
    pace = Pace(window_s=0.5, warm_up_s=0.1)

    assert local.tokens_per_s([[5, 60, 70], [9, 50, 40]], 4, pace) > 0
    assert local.engine.free_slots == local.engine.slots


def test_questions_of_a_soak_are_of_many_kinds_and_come_again_with_the_seed() -> None:
    made = questions(24, 0)

    assert made == questions(24, 0)
    parameters = [one["parameters"] for one in made]
    assert any("stop" in one for one in parameters)
    assert {one["do_sample"] for one in parameters} == {True, False}
    assert all("seed" in one for one in parameters if one["do_sample"])
    assert json.dumps(made)
