import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from benchmarks.figures.bars import GENERATION_FIGURES
from benchmarks.figures.front import OPEN_LOOP
from benchmarks.load.generator import Call
from benchmarks.load.texts import passages, sentences
from benchmarks.peers.entrants import Entrants
from benchmarks.peers.peer import PeerError
from benchmarks.peers.servers import WRITER_SERVERS, WriterServer
from benchmarks.peers.writers import WRITERS, Writer, WriterModel, writing
from benchmarks.suites.engines import structured
from benchmarks.suites.engines.contestants import HttpSeat, other
from benchmarks.suites.engines.goodput import Mixture, Point, goodput
from benchmarks.suites.engines.local_engine import LocalEngine
from benchmarks.suites.engines.plain import slots_over_plain
from benchmarks.suites.generation import GOODPUT, SLOTS, Pace, measure_goodput
from benchmarks.suites.shapes import ensure_without_slots
from benchmarks.suites.soak_generation import questions
from benchmarks.suites.suite import Rates
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.artifact import ModelArtifact
from tests.local_server import LocalServer


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

    with writing(writer, WriterModel("llama", folder, folder / "tokenizer.json", 1)) as running:
        written = running.write(prompts, 6)

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    given = torch.tensor(prompts)
    expected = model.generate(
        given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=6, min_new_tokens=6
    )
    assert written.tokens == expected[:, 4:].tolist()
    assert written.seconds > 0
    local = LocalEngine(exported("llama", "text-generation"), 1, SLOTS)
    assert [local.write(prompt, 1) for prompt in prompts] == [one[:1] for one in written.tokens]


def test_a_writer_that_ends_says_why(tmp_path: Path) -> None:
    script = tmp_path / "write.py"
    script.write_text("raise SystemExit('no such model')", encoding="utf-8")
    writer = Writer(name="broken", serves="nothing", script=script, needs=("json",))

    assert writer.python == Path(sys.executable)
    with (
        pytest.raises(PeerError, match="ended: no such model"),
        writing(writer, WriterModel("none", tmp_path, tmp_path / "tokenizer.json", 1)),
    ):
        pass


def test_a_writer_that_is_killed_says_by_which_signal(tmp_path: Path) -> None:
    script = tmp_path / "write.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", encoding="utf-8")
    writer = Writer(name="broken", serves="nothing", script=script, needs=("json",))

    with (
        pytest.raises(PeerError, match=r"nothing was written \(SIGSEGV\)"),
        writing(writer, WriterModel("none", tmp_path, tmp_path / "tokenizer.json", 1)),
    ):
        pass


def test_ratios_are_taken_repetition_by_repetition() -> None:
    rates = Rates()
    for ours, theirs in ((10.0, 5.0), (12.0, 4.0)):
        rates.keep("w", {"Sextet": ours, "other": theirs})

    rates.ratio("translation_greedy_over_ct2", ("w", "Sextet"), ("w", "other"))
    rates.ratio("translation_beam4_over_ct2", ("w", "Sextet"), ("w", "absent"))

    assert rates.figures == {"translation_greedy_over_ct2": [2.0, 3.0]}
    assert set(rates.figures) <= set(GENERATION_FIGURES)


@pytest.mark.parametrize("server", WRITER_SERVERS, ids=lambda server: server.name)
def test_every_server_has_a_script_and_pins_and_is_asked_for_tokens(server: WriterServer) -> None:
    assert server.script.is_file()
    assert server.requirements.is_file()
    call = server.call([5, 60, 70], 8, stream=True)
    body = json.loads(call.request.split(b"\r\n\r\n", 1)[1])
    assert call.new_tokens == 8
    assert body["prompt"] == [5, 60, 70]
    assert body["stream"] is True


def test_a_program_without_a_server_is_measured_in_batches(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llama", "text-generation")
    (writer,) = [one for one in WRITERS if one.name == "transformers"]
    model = WriterModel("llama", folder, folder / "tokenizer.json", 1)

    with other(writer, []).seated(model) as seat:
        first = seat.first_tokens([[5, 60, 70], [9, 50, 40]])
        rate = seat.tokens_per_s([[5, 60, 70], [9, 50, 40]], 4, at_once=2, warm_up_s=0.0, window_s=0.1)

    assert len(first) == 2
    assert rate > 0


def point(rate: float, good: float) -> Point:
    return Point(rate, good, tokens_per_s=50 * rate, first_token_ms=100.0, token_ms=20.0)


def test_goodput_is_interpolated_between_the_last_rate_that_keeps_the_level_and_the_next() -> None:
    assert goodput([point(2, 1.0), point(6, 0.4), point(4, 0.95)]) == pytest.approx(4 + 2 * (0.05 / 0.55))
    assert goodput([point(2, 1.0), point(4, 0.9)]) == 4
    assert goodput([point(2, 0.8), point(4, 0.5)]) == 0


def test_a_server_that_drops_clients_keeps_the_level_at_no_rate_and_its_other_rates_stand() -> None:
    class Dropping(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.close_connection = True

    pace, said = Pace(open_s=0.2, warm_up_s=0.0), list[str]()
    with LocalServer(Dropping) as server:
        port = int(server.url.rpartition(":")[2])
        request = b"POST / HTTP/1.1\r\nhost: local\r\ncontent-length: 0\r\n\r\n"
        seat = HttpSeat(port, lambda prompt, new_tokens, stream: Call(request), first=lambda prompt: 0, streams=True)
        rates = Rates({}, per_s={("one stream", "peer"): [9.0], (GOODPUT, "Sextet"): [6.0], (GOODPUT, "other"): [8.0]})
        measure_goodput(rates, pace, "peer", seat, [list(range(20_000))], 0, said.append)
        with pytest.raises(PeerError, match="failed"):
            measure_goodput(rates, pace, "Sextet", seat, [list(range(20_000))], 0, said.append)

    assert rates.per_s["one stream", "peer"] == [9.0]
    assert rates.per_s[GOODPUT, "peer"] == [0.0]
    assert not rates.missing
    assert not [one for one in rates.raw if OPEN_LOOP in one["measurement"]], "no point of the plot"
    assert "peer keeps the service level at no rate: of " in said[0]
    assert rates.over_best(GOODPUT, ("peer", "other")) == [0.75]
    assert rates.over_best(GOODPUT, ("peer",)) == []


def test_lengths_of_an_open_loop_are_mixed_and_come_again_with_the_seed() -> None:
    tokens = list(range(20_000))
    mixture = Mixture.drawn(tokens, 200, 3)

    assert mixture == Mixture.drawn(tokens, 200, 3)
    lengths = [len(prompt) for prompt in mixture.prompts]
    assert min(lengths) < 60 < 200 < max(lengths) <= 1024
    assert len({tuple(prompt[:2]) for prompt in mixture.prompts}) == 200, "no prompt has the beginning of another"
    assert min(mixture.answers) >= 2
    assert not {tuple(one[:2]) for one in mixture.prompts} & {
        tuple(one[:2]) for one in Mixture.drawn(tokens, 200, 4).prompts
    }


def test_a_writer_that_fails_or_is_another_model_drops_out_and_the_result_says_why(tmp_path: Path) -> None:
    script = tmp_path / "write.py"
    script.write_text(
        "import json, sys\nprint(json.dumps('ready'), flush=True)\n"
        "for line in sys.stdin:\n    print(json.dumps({'tokens': [[1]], 'seconds': 2.0}), flush=True)\n    break\n",
        encoding="utf-8",
    )
    rates = Rates()
    entrants = Entrants(WriterModel("model", tmp_path, tmp_path / "tokenizer.json", 1), rates, lambda line: None)
    one, second = (Writer(name=name, serves="", script=script, needs=("json",)) for name in ("one", "other"))
    with ExitStack() as stack:
        entrants.enter(stack, one, lambda running: 1.0)
        entrants.enter(stack, second, lambda running: 0.25)
        assert entrants.names == ["one"]
        assert entrants.seconds("one", "w", [[[5]]], 1) == 2.0
        assert entrants.seconds("one", "w", [[[5]]], 1) is None

    assert entrants.names == []
    assert set(rates.missing) == {("model", "other"), ("w", "one")}
    assert "25%" in rates.missing["model", "other"]


def test_the_engine_is_measured_with_all_clients_at_work(exported: Callable[..., Path]) -> None:
    local = LocalEngine(exported("llama", "text-generation"), 1, SLOTS)

    assert local.tokens_per_s([[5, 60, 70], [9, 50, 40]], 64, clients=4, warm_up_s=0.1, window_s=0.5) > 0
    assert local.engine.free_slots == local.engine.slots


def test_questions_of_a_soak_are_of_many_kinds_and_come_again_with_the_seed() -> None:
    made = questions(24, 0)

    assert made == questions(24, 0)
    parameters = [one["parameters"] for one in made]
    assert any("stop" in one for one in parameters)
    assert {one["do_sample"] for one in parameters} == {True, False}
    assert all("seed" in one for one in parameters if one["do_sample"])
    assert json.dumps(made)


def test_structured_output_and_prompt_lookup_have_figures(exported: Callable[..., Path]) -> None:
    rates, said = Rates(), list[str]()
    slots = SlotsConfig(slots=4, max_tokens=250, prefill_chunk_tokens=16)
    prompts = [[50 + row, 51, 52, 53] for row in range(4)]

    structured.measure(rates, exported("llama", "text-generation"), slots, 1, prompts, 40, said.append)

    measured = {"guided_overhead", "guided_valid", "lookup_speedup", "lookup_crowd"}
    assert set(rates.figures) == measured <= set(GENERATION_FIGURES)
    assert rates.figures["guided_valid"] == [1.0]
    assert all(value > 0 for (value,) in rates.figures.values())


def test_the_plain_graph_of_a_model_is_measured_beside_its_slots(
    exported: Callable[..., Path], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    task, output = "text-generation", tmp_path / "plain"

    plain = ensure_without_slots(str(checkpoint("llama", task)), task, "fp32", output, lambda line: None)

    assert ModelArtifact.open(plain).manifest.cache == "plain"
    assert ensure_without_slots("nothing", task, "fp32", output, lambda line: None) == plain  # it is there
    prompts = [[50 + row, 51, 52, 53] for row in range(6)]
    assert slots_over_plain(exported("llama", task), plain, SLOTS, 1, prompts, 8) > 0
    assert "slots_over_plain" in GENERATION_FIGURES
