"""The measurements on a GPU, as far as they need none: models, clusters, and the verdict. The rest: tests/deploy."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.figures.bars import GPU_FIGURES
from benchmarks.figures.report import unmeasured
from benchmarks.suites.cluster import CLASSIFY, WRITE
from benchmarks.suites.gpu.models import LLAMA_TINY, QWEN2, SMOLLM2, Models, write_decoder
from benchmarks.suites.gpu.phase import QUICK, Journal, Pace, Setting, replicas_on_gpu
from benchmarks.suites.gpu.verdict import all_met, ended, gpu, merged, parity_share, verdicts
from deployments.doctor.demand import demands, gpu_shares
from pipelines.generation.slots.config import SlotsConfig


def setting(folder: Path, device: str = "cpu") -> Setting:
    return Setting(device, Models.of(device, quick=True), QUICK, folder)  # type: ignore[arg-type]


def test_a_test_of_parity_that_is_skipped_has_not_passed(tmp_path: Path) -> None:
    case = '<testcase classname="tests.gpu.{module}" name="one">{inside}</testcase>'
    cases = [
        case.format(module="test_parity", inside=inside)
        for inside in ("", "", "<skipped/>", '<failure message="no">no</failure>')
    ]
    other = case.format(module="test_replicas", inside='<error message="no">no</error>')
    (tmp_path / "tests.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    (tmp_path / "tests-cluster.xml").write_text(f"<testsuites><testsuite>{other}</testsuite></testsuites>")

    assert parity_share(tmp_path) == 0.5
    assert parity_share(tmp_path / "nothing") is None
    for status, share in ((1, 0.5), (2, None), (124, None), (0, 0.5)):
        with (tmp_path / "phases.tsv").open("a", encoding="utf-8") as file:
            file.write(f"tests\t{status}\t85\twhy\n")
        assert parity_share(tmp_path) == share, "tests that were cut off may have left out what fails"


def test_figures_of_a_phase_that_did_not_run_are_missing_and_no_bar_of_them_is_met(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "encoders", {"workload": "w"})
    for rate in (12_000.0, 14_000.0):
        journal.note(gpu_rows_s=rate)
    journal.compare(gpu_over_transformers=[2.5])
    journal.compare(gpu_over_transformers=[1.5])

    result = merged(setting(tmp_path))

    assert result.figures == {"gpu_rows_s": [12_000.0, 14_000.0], "gpu_over_transformers": [1.5]}
    assert set(result.missing) == set(GPU_FIGURES) - set(result.figures)
    assert verdicts(result)["gpu_rows_s"] == "met by 30%"
    assert verdicts(result)["gpu_over_transformers"].startswith("**missed** by 25%")
    assert verdicts(result)["gpu_parity"] == "not measured"
    assert not all_met(result)
    every = {name: [figure.bar.number] for name, figure in GPU_FIGURES.items() if figure.bar is not None}
    assert all_met(replace(result, figures=every))


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("echo 'NVIDIA H200, 143771 MiB, 580.95'; echo second", "NVIDIA H200, 143771 MiB, driver 580.95"),
        ("exit 9", "unknown GPU"),
        ("true", "unknown GPU"),
        ("echo No devices were found", "unknown GPU"),
    ],
)
def test_a_driver_that_names_no_gpu_costs_no_result(
    said: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{said}\n", encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert gpu() == named


def test_a_phase_counts_as_it_ended_last(tmp_path: Path) -> None:
    (tmp_path / "phases.tsv").write_text("tests\t1\t9\t2 failed\nencoders\t0\t5\t\ntests\t0\t8\t\n", encoding="utf-8")

    assert [(one.phase, one.status, one.reason) for one in ended(tmp_path)] == [("tests", 0, ""), ("encoders", 0, "")]


def test_replicas_share_the_gpu_and_generators_have_it_alone(tmp_path: Path) -> None:
    on_gpu = setting(tmp_path, "cuda")

    (encoder,) = on_gpu.cluster({CLASSIFY.name: tmp_path}, 4)["applications"]
    (decoder,) = on_gpu.cluster({WRITE.name: tmp_path}, 1, SlotsConfig(slots=64))["applications"]

    (deployment,) = encoder["deployments"]
    assert deployment["num_replicas"] == 4
    assert deployment["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0.25}
    assert deployment["user_config"]["device"] == "cuda"
    assert "batching" not in deployment["user_config"]
    (deployment,) = decoder["deployments"]
    assert deployment["ray_actor_options"]["num_gpus"] == 1
    assert deployment["user_config"]["slots"]["slots"] == 64


@pytest.mark.parametrize("replicas", [4, 6, 7, 30])
def test_ray_has_room_for_all_replicas_of_a_gpu(replicas: int, tmp_path: Path) -> None:
    """It rounds shares: six sixths are more than a GPU, and the last replica would wait for ever."""
    cluster = setting(tmp_path, "cuda").cluster({CLASSIFY.name: tmp_path}, replicas)
    (demand,) = demands({"applications": cluster["applications"][:1]})
    (finding,) = gpu_shares([demand], 1)
    assert (finding.level, demand.first_replicas) == ("ok", replicas)


@pytest.mark.parametrize(
    ("cores", "gpu_bytes", "replicas"),
    [(16, 140 * 2**30, 6), (16, None, 6), (64, 140 * 2**30, 30), (64, 24 * 2**30, 8), (8, 2**40, 2), (2, 2**30, 1)],
)
def test_replicas_are_as_many_as_cores_and_memory_feed(cores: int, gpu_bytes: int | None, replicas: int) -> None:
    assert replicas_on_gpu(cores, gpu_bytes) == replicas


def test_the_cluster_that_is_measured_fits_this_machine(tmp_path: Path) -> None:
    """Of a machine with few cores, Ray would never place six replicas."""
    asked = setting(tmp_path, "cuda").replicas
    assert asked == replicas_on_gpu(len(os.sched_getaffinity(0)))
    assert 1 <= asked <= len(os.sched_getaffinity(0))


def test_every_number_of_streams_has_a_figure_for_each_shape() -> None:
    figures = {f"gpu_tokens_s_{shape.figure}_{streams}" for shape in (SMOLLM2, QWEN2) for streams in Pace().streams}
    assert figures <= set(GPU_FIGURES)


def test_the_page_names_every_figure_that_is_missing() -> None:
    assert [line.split("`")[1] for line in unmeasured().splitlines() if line.startswith("| `")] == list(GPU_FIGURES)


def test_a_decoder_with_random_weights_reads_all_of_its_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that drops a part of the cache, or guesses repetitions, must not pass for a fast one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr("benchmarks.suites.gpu.models.FOLDER", tmp_path)
    folder = write_decoder(LLAMA_TINY)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == LLAMA_TINY.vocabulary
    given = tokenizer("the river flows and the train leaves", return_tensors="pt").input_ids
    assert tokenizer.decode(given[0]) == "the river flows and the train leaves"

    with torch.no_grad():
        written = model.generate(given, do_sample=False, max_new_tokens=16, pad_token_id=0, eos_token_id=None)
        logits = [model(one).logits[0, -1] for one in (given, given[:, 1:], torch.cat([given[:, 1:], given[:, :1]], 1))]

    assert len(set(written[0, given.shape[1] :].tolist())) > 8
    assert 1 < float(logits[0].std()) < 10
    for other in logits[1:]:
        assert float((logits[0] - other).abs().max()) > 0.5
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"]
