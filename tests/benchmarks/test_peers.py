import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks.load.tally import Tally
from benchmarks.peers import PEERS, RAY_SERVE_TRANSFORMERS, SEXTET, Peer, PeerThroughput, Workload, contest
from benchmarks.peers.agreement import log_odds
from benchmarks.peers.installation import ensure, install
from benchmarks.peers.peer import Installed, PeerError, Way
from benchmarks.peers.servers import WRITER_SERVERS
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
    return Workload(
        "tiny",
        checkpoint(*asked),
        artifact,
        optimum=artifact,
        openvino=artifact,
        texts=TEXTS,
        concurrency=4,
        trial_s=0.3,
        duration_s=0.3,
        warm_up_s=0.1,
        repetitions=2,
    )


def ours() -> Tally:
    tally = Tally()
    tally.per_s["inputs"] = 7
    return tally


def measured(workload: Workload, peer: Peer) -> PeerThroughput:
    own, entry = contest(workload, ours, print, [peer])
    assert (own.peer, own.inputs_per_s) == (SEXTET, [7] * workload.repetitions)
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


def test_the_fastest_way_of_a_peer_is_measured_in_turn_with_ours(workload: Workload) -> None:
    entry = measured(workload, replace(TINY, ways=(Way(1), Way(1, workers=2))))

    assert entry.batch_size in ("1", "2 x 1")
    assert len(entry.inputs_per_s) == workload.repetitions


def test_peers_that_are_not_finalists_keep_the_rate_of_their_trial(workload: Workload) -> None:
    _, entry = contest(workload, ours, print, [TINY], finalists=lambda tried: set())

    assert len(entry.inputs_per_s) == 1


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
    with pytest.raises(PeerError, match=r"impossible \(cannot be installed: "):
        ensure([peer], print)


def test_peers_are_installed_once_and_anew_when_their_requirements_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ENVIRONMENTS", "REQUIREMENTS"):
        monkeypatch.setattr(f"benchmarks.peers.peer.{name}", tmp_path)
    package = tmp_path / "one"
    package.mkdir()
    (package / "pyproject.toml").write_text('[project]\nname = "one"\nversion = "1"\n', encoding="utf-8")
    peer = Installed(name="peer", building={"PIP_NO_BUILD_ISOLATION": "1", "PYTHONPATH": os.pathsep.join(sys.path)})
    sharing = Installed(name="other", installed_as="peer")
    said: list[str] = []
    peer.requirements.write_text(f"{package}\n", encoding="utf-8")

    ensure([peer, sharing], said.append)
    assert (peer.missing(), sharing.missing(), len(said)) == (None, None, 1)
    ensure([peer], said.append)
    assert len(said) == 1

    peer.requirements.write_text(f"{package}  # MIT\n", encoding="utf-8")
    assert (peer.missing() or "").startswith("other versions are there")
    ensure([peer], said.append)
    assert len(said) == 2


def test_log_odds_tell_scores_apart_that_are_all_nearly_one() -> None:
    assert log_odds(0.99999) - log_odds(0.9999) == pytest.approx(2.3, abs=0.01)
    assert log_odds(1.0) > log_odds(0.999999)


def test_the_command_line_lists_each_peer() -> None:
    listed = subprocess.run([sys.executable, "-m", "benchmarks.peers", "list"], capture_output=True, text=True)

    assert [line.split()[0] for line in listed.stdout.splitlines()] == [
        peer.name for peer in (*PEERS, *WRITERS, *WRITER_SERVERS)
    ]
