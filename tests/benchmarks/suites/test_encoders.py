import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from benchmarks.peers import RAY_SERVE_TRANSFORMERS, PeerThroughput
from benchmarks.replicas import MemoryWatch, find
from benchmarks.suites.cluster import measured_cluster
from benchmarks.suites.encoders import over_peers


def test_the_smaller_of_the_workloads_counts_over_the_best_peer_that_ran() -> None:
    peers = [
        PeerThroughput(RAY_SERVE_TRANSFORMERS, "large", [4.0, 6.0]),
        PeerThroughput(RAY_SERVE_TRANSFORMERS, "small", [50.0]),
        PeerThroughput("mosec", "large", [10.0]),
        PeerThroughput("mosec", "small", missing="it does not start here"),
    ]

    figures = over_peers({"large": [20.0, 20.0], "small": [100.0]}, peers)

    assert figures == {
        "over_best_peer": [2.0],
        "over_best_peer_without_our_graph": [2.0],
        "over_ray_serve_transformers": [2.0],
    }


def test_without_peers_there_is_no_figure() -> None:
    assert over_peers({"large": [20.0]}, []) == {}


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
