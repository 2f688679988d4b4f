import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

from benchmarks.peers import OPENVINO, PEERS, SEXTET, PeerThroughput
from benchmarks.replicas import MemoryWatch, find
from benchmarks.suites.calibration import beside
from benchmarks.suites.cluster import measured_cluster
from benchmarks.suites.encoders import FIGURES_OVER_PEERS, over_peers, strongest


def throughputs(workload: str, ours: list[float], theirs: float, **others: float) -> list[PeerThroughput]:
    """Ours, and those of every peer: `theirs` where `others` has nothing else."""
    rates = {peer.name: [others.get(peer.name, theirs)] * len(ours) for peer in PEERS}
    return [
        PeerThroughput(SEXTET, workload, ours),
        *(PeerThroughput(name, workload, one) for name, one in rates.items()),
    ]


def test_the_smaller_of_the_workloads_counts_over_the_best_peer_repetition_by_repetition() -> None:
    figures = over_peers(
        [*throughputs("large", [20.0, 30.0], 5.0), *throughputs("small", [100.0, 90.0], 10.0, mosec=50.0)]
    )

    assert figures["over_best_peer_encoders"] == [2.0, 1.8]
    assert figures["over_openvino_encoders"] == [4.0, 6.0]


def test_a_peer_without_a_rate_leaves_out_the_figures_that_it_might_decide() -> None:
    entries = [
        PeerThroughput(one.peer, one.workload, missing="it does not start here") if one.peer == "mosec" else one
        for one in throughputs("large", [20.0], 5.0)
    ]

    assert "over_best_peer_encoders" not in over_peers(entries)
    assert over_peers(entries)["over_openvino_encoders"] == [4.0]


def test_the_best_peer_of_every_figure_is_measured_in_turn_with_ours() -> None:
    tried = throughputs("large", [20.0], 5.0, mlserver=9.0)[1:]

    assert {"mlserver", OPENVINO} <= strongest(tried)
    assert len(strongest(tried)) <= len(FIGURES_OVER_PEERS)


def test_without_peers_there_is_no_figure() -> None:
    assert over_peers([PeerThroughput(SEXTET, "large", [20.0])]) == {}


def test_busy_neighbours_end_when_they_are_told_to_and_at_the_end() -> None:
    def neighbours() -> list[psutil.Process]:
        return [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]

    before = len(neighbours())
    with beside(2) as stop:
        assert len(neighbours()) == before + 2
        stop()
        assert len(neighbours()) == before
    with beside(1):
        pass
    assert len(neighbours()) == before


def test_a_measured_cluster_is_the_shipped_one_with_one_replica(tmp_path: Path) -> None:
    configuration = measured_cluster({"text-classification": tmp_path}, threads=2, noop=True)

    task, noop = configuration["applications"]
    (deployment,) = task["deployments"]
    assert deployment["num_replicas"] == 1
    assert "autoscaling_config" not in deployment
    assert deployment["user_config"]["model"] == str(tmp_path)
    assert noop["route_prefix"] == "/noop"
    assert yaml.safe_load(yaml.safe_dump(configuration)) == configuration


def test_replicas_are_found_by_the_name_that_ray_gives_them_and_watched() -> None:
    program = "import time; print('up', flush=True); time.sleep(60)"
    named = ["ray::ServeReplica:translation:translation"]
    process = subprocess.Popen([*named, "-c", program], executable=sys.executable, stdout=subprocess.PIPE, text=True)
    watch = MemoryWatch("translation", os.getpid())
    try:
        assert process.stdout is not None
        process.stdout.readline()  # a process that has only begun has almost no memory
        assert process.pid in find(os.getpid())
        watch.start()
        while not watch.samples.get(process.pid):
            time.sleep(0.01)
        watch.stop()
    finally:
        process.kill()
        process.communicate()

    ((series,),) = [list(watch.samples.values())]
    assert series[0][1] > 2**20
