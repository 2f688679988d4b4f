import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks.peers import PEERS, RAY_SERVE_TRANSFORMERS, Peer, PeerThroughput, Workload, peer_throughputs
from benchmarks.peers.__main__ import install
from benchmarks.peers.agreement import log_odds
from benchmarks.peers.peer import PeerError
from benchmarks.peers.writers import WRITERS

TEXTS = ["a small step", "the river flows", "he was late again", "good", "no", "she reads"]
TINY = Peer(
    name="tiny",
    serves="the artifact's own pipeline",
    script=Path(__file__).with_name("tiny_service.py"),
    path="/",
    body=lambda text: {"inputs": text},
    top=lambda answer: (answer["label"], answer["score"]),
    log_odds_tolerance=1e-4,
    needs=("pipelines",),
)


@pytest.fixture
def workload(
    exported: Callable[..., Path], checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Workload:
    monkeypatch.setattr("benchmarks.peers.process.STOP_S", 1.0)  # what a peer starts is not told to stop, and sleeps on
    asked = ("bert", "text-classification")
    artifact = exported(*asked)
    return Workload("tiny", checkpoint(*asked), artifact, artifact, TEXTS, 4, 0.3, 0.1, repetitions=2)


def measured(workload: Workload, peer: Peer) -> PeerThroughput:
    (entry,) = peer_throughputs([workload], print, [peer])
    return entry


def descendants() -> list[psutil.Process]:
    return psutil.Process(os.getpid()).children(recursive=True)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_has_a_service_and_either_pins_or_the_projects_own_packages(peer: Peer) -> None:
    assert peer.script.is_file()
    assert peer.requirements.is_file() != bool(peer.needs)
    if not peer.needs:
        pins = [line for line in peer.requirements.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        assert all("==" in pin and "  # " in pin for pin in pins), "a version and a licence each"


def test_what_people_write_today_is_among_them() -> None:
    assert RAY_SERVE_TRANSFORMERS in [peer.name for peer in PEERS]


def test_a_peer_is_started_measured_and_leaves_nothing_behind(workload: Workload) -> None:
    before = descendants()

    entry = measured(workload, TINY)

    assert entry.missing is None
    assert len(entry.inputs_per_s) == 2
    assert min(entry.inputs_per_s) > 0
    assert descendants() == before


def test_a_peer_that_is_not_installed_is_listed_with_how_to_install_it(workload: Workload) -> None:
    entry = measured(workload, replace(TINY, needs=(), name="absent"))

    assert entry == PeerThroughput("absent", "tiny", missing="not installed: python -m benchmarks.peers install absent")


def test_a_service_that_ends_is_listed_with_its_own_last_error(workload: Workload, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("print('starting')\nraise ValueError('no such model')\n", encoding="utf-8")

    entry = measured(workload, replace(TINY, script=broken))

    assert entry.missing == "ended with status 1 before it answered: ValueError: no such model"


def test_another_model_is_refused(workload: Workload, exported: Callable[..., Path]) -> None:
    other = exported("bert", "text-classification", hidden_size=64)

    entry = measured(replace(workload, checkpoint=other), replace(TINY, model="checkpoint"))

    assert entry.missing is not None
    assert entry.missing.startswith("not the same model: ")


def test_an_installation_that_fails_is_kept_as_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENVIRONMENTS", "REQUIREMENTS"):
        monkeypatch.setattr(f"benchmarks.peers.peer.{name}", tmp_path)
    peer = replace(TINY, needs=(), name="impossible")
    peer.requirements.write_text("./no-such-folder\n", encoding="utf-8")

    with pytest.raises(PeerError, match="impossible"):
        install([peer], print)

    assert (peer.missing() or "").startswith("cannot be installed: ")


def test_log_odds_tell_scores_apart_that_are_all_nearly_one() -> None:
    assert log_odds(0.99999) - log_odds(0.9999) == pytest.approx(2.3, abs=0.01)
    assert log_odds(1.0) > log_odds(0.999999)


def test_the_command_line_lists_each_peer() -> None:
    listed = subprocess.run([sys.executable, "-m", "benchmarks.peers", "list"], capture_output=True, text=True)

    assert [line.split()[0] for line in listed.stdout.splitlines()] == [peer.name for peer in (*PEERS, *WRITERS)]
