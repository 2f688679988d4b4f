"""What a cluster.yaml asks of this machine: one line each, an error where it could not be served."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import yaml

from deployments.cluster.launch import Launch
from deployments.cluster.ports import check_port
from deployments.cluster.ray_environment import spare_port
from deployments.config import TaskConfig, cut_down, read_yaml, user_configs
from deployments.doctor.cgroup import Cgroup
from deployments.doctor.cluster import Cluster
from deployments.doctor.examine import examine
from deployments.doctor.finding import Finding
from deployments.doctor.machine import Capacity
from deployments.doctor.memory import cache_bytes
from deployments.gpu_memory import CONTEXT_BYTES
from pipelines.errors import ConfigurationError, SextetError
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.memory import slot_bytes
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.nvidia.driver import Gpu
from tests.artifacts import write_artifact

TASK = "text-classification"
SHIPPED = Path(__file__).parents[3] / "cluster.yaml"
GIB = 2**30
without_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA"
)


def write(folder: Path, user_config: dict[str, Any], task: str = TASK, **deployment: Any) -> Path:
    """The shipped cluster.yaml cut down to one task, with other keys, on a port of its own."""
    cluster = cut_down(read_yaml(SHIPPED), [task, "gateway"])
    cluster["http_options"] = {"host": "127.0.0.1", "port": spare_port()}
    user_configs(cluster)[task].clear()
    user_configs(cluster)[task].update(user_config)
    cluster["applications"][0]["deployments"][0].update(deployment)
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(cluster), encoding="utf-8")
    return path


def found(path: Path, gpus: tuple[Gpu, ...] = ()) -> dict[str, Finding]:
    """The findings by name. Tests with one name twice look at the last."""
    return {one.name: one for one in Cluster.read(path).findings(Capacity.read(Cgroup()), gpus)}


def test_an_artifact_that_is_there_fits(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    path = write(tmp_path, {"model": "model", "threads": 2, "batching": {"concurrency": 2}})
    lines = found(path)
    assert {one.level for one in lines.values()} <= {"ok", "note"}
    assert lines[TASK].text == f"{tmp_path}/model, int8, 0 MiB, on cpu"
    assert lines["memory of replicas"].facts["estimated_bytes"] == 250 * 2**20 + 2 * 5000


def test_an_artifact_to_be_built_names_the_command_and_a_damaged_one_what_is_wrong(tmp_path: Path) -> None:
    path = write(tmp_path, {"model": "model", "source": {"checkpoint": "starter:sentiment"}})
    missing = found(path)[TASK]
    assert (missing.level, missing.remedy) == ("error", f"sextet export --all {path}")
    assert missing.text == f"{tmp_path}/model is to be built from starter:sentiment"
    endless = write(tmp_path, {"model": "m" * 5000, "source": {"checkpoint": "starter:sentiment"}})
    assert found(endless)[TASK].text.endswith("m is to be built from starter:sentiment")
    path = write(tmp_path, {"model": "model", "source": {"checkpoint": "starter:sentiment"}})
    (write_artifact(tmp_path / "model") / "model.onnx").write_bytes(b"other")
    assert "was altered since its export" in found(path)[TASK].text
    assert found(path)[TASK].level == "error"


def test_artifacts_from_elsewhere_are_not_fetched_and_the_package_for_them_is_named(tmp_path: Path) -> None:
    hub = found(write(tmp_path, {"model": "someone/sentiment@main"}))[TASK]
    assert (hub.level, hub.text) == ("note", "someone/sentiment@main, elsewhere: fetched and checked when it starts")


def test_an_int8_artifact_on_a_gpu_is_refused_as_a_replica_would(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    lines = found(write(tmp_path, {"model": "model", "device": "cuda"}))
    assert lines[TASK].level == "error"
    assert lines[TASK].text.startswith("device is 'cuda', but")
    assert lines["num_gpus"].text == f"{TASK} runs on cuda, and reserves no GPU"


def test_a_replica_takes_its_part_of_a_gpu_or_what_the_file_says(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model", precision="fp16", device="cuda")
    gpu = (Gpu("NVIDIA H200", (9, 0), 140 * GIB, 140 * GIB),)
    user_config: dict[str, Any] = {"model": "model", "device": "cuda"}

    def memory(num_gpus: float, **changes: Any) -> dict[str, Finding]:
        options = {"num_cpus": 0.2, "num_gpus": num_gpus}
        return found(write(tmp_path, user_config | changes, ray_actor_options=options), gpu)

    assert memory(0.25)["num_gpus"].level == "ok"
    assert memory(0.25)["gpu memory"].facts["limit_bytes"] == 35 * GIB - CONTEXT_BYTES
    assert memory(1)["gpu memory"].facts["limit_bytes"] == 140 * GIB - CONTEXT_BYTES
    tight = memory(0.25, gpu_mem_limit_bytes=4096)["gpu memory"]
    assert (tight.level, tight.facts["estimated_bytes"]) == ("warning", 5000)
    assert memory(1, gpu_mem_limit_bytes=200 * GIB)["gpu memory"].level == "error"
    assert memory(0.001)["gpu memory"].text.startswith(f"{TASK}: num_gpus 0.001 of a GPU")

    write_artifact(tmp_path / "model", precision="fp16", device="cuda", rows="packed")
    for cuda_graphs, n_bytes in ((True, 10_000), (False, 5_000)):
        estimated = memory(0.25, cuda_graphs=cuda_graphs)["gpu memory"].facts["estimated_bytes"]
        assert estimated == n_bytes, "captured graphs hold the weights a second time"


def test_what_replicas_of_several_tasks_ask_of_one_gpu_is_summed(tmp_path: Path) -> None:
    """Each alone is within its part or its bound; together they are not."""
    write_artifact(tmp_path / "model", precision="fp16", device="cuda")
    other = write_artifact(tmp_path / "other", precision="fp16", device="cuda", task="token-classification")

    def together(bound: int, first_replicas: int, gpus: int = 1) -> dict[str, Finding]:
        config = {"device": "cuda", "gpu_mem_limit_bytes": bound}
        options = {"num_cpus": 0.1, "num_gpus": 0.25}
        path = write(tmp_path, {"model": "model", **config}, ray_actor_options=options)
        content = read_yaml(path)
        second = cut_down(read_yaml(SHIPPED), ["token-classification"])["applications"][0]
        second["deployments"][0] |= {"ray_actor_options": options, "user_config": {"model": str(other), **config}}
        for application in (content["applications"][0], second):
            (deployment,) = application["deployments"]
            deployment.pop("autoscaling_config", None)
            deployment["num_replicas"] = first_replicas
        content["applications"].insert(1, second)
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return found(path, (Gpu("NVIDIA H200", (9, 0), 16 * GIB, 16 * GIB),) * gpus)

    fits = together(4 * GIB, 1)["memory of gpu 0"]
    assert fits.level == "ok"
    assert fits.facts["estimated_bytes"] == 2 * (4 * GIB + CONTEXT_BYTES)
    too_much = together(8 * GIB, 1)["memory of gpu 0"]
    assert too_much.level == "warning"
    assert too_much.text == (
        f"about 17.5 GiB asked by its 2 replicas (1 of {TASK}, 1 of token-classification); it has 16.0 GiB"
    )
    assert together(4 * GIB, 2)["memory of gpu 0"].facts["replicas"] == {TASK: 2, "token-classification": 2}
    two = together(8 * GIB, 4, gpus=2)
    assert [two[f"memory of gpu {number}"].level for number in (0, 1)] == ["warning", "warning"]
    alone = write(tmp_path, {"model": "model", "device": "cuda"}, ray_actor_options={"num_cpus": 0.1, "num_gpus": 1})
    assert "memory of gpu 0" not in found(alone, (Gpu("NVIDIA H200", (9, 0), 16 * GIB, 16 * GIB),))


@pytest.mark.parametrize("amount", [float("inf"), float("nan"), 1e308, 10**400, -1])
@pytest.mark.parametrize("name", ["num_cpus", "num_gpus"])
def test_an_amount_that_no_cluster_has_is_one_line_and_the_json_stays_json(
    tmp_path: Path, name: str, amount: float
) -> None:
    write_artifact(tmp_path / "model")
    path = write(tmp_path, {"model": "model"}, ray_actor_options={name: amount})

    report = examine(path)

    (file,) = [one for one in report.findings if one.section == "cluster.yaml"]
    assert (file.level, "\n" in file.text) == ("error", False)
    assert name in file.text
    json.loads(report.to_json(), parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


def test_more_replicas_than_any_cluster_has_are_one_line(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    scaling = {"min_replicas": 1, "max_replicas": 10**400}
    file = examine(write(tmp_path, {"model": "model"}, autoscaling_config=scaling)).findings[-1]
    line = f"{TASK}: autoscaling_config.max_replicas is a huge integer; allowed: 0 to 1,000,000"
    assert (file.level, file.text) == ("error", line)


def test_a_gpu_that_is_reserved_and_not_there_is_an_error(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model", precision="fp16", device="cuda")
    options = {"num_cpus": 0.2, "num_gpus": 0.25}
    path = write(tmp_path, {"model": "model", "device": "cuda"}, ray_actor_options=options)
    assert found(path)["num_gpus"].level == "error"


def test_a_gpu_that_is_reserved_and_not_used_is_a_warning(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    path = write(tmp_path, {"model": "model"}, ray_actor_options={"num_cpus": 0.2, "num_gpus": 1})
    lines = found(path, (Gpu("NVIDIA H200", (9, 0), None, None),))
    assert lines["num_gpus"].text == f"{TASK} has num_gpus 1, and runs on the CPU"


def test_the_kv_cache_is_counted_with_paused_sequences(tmp_path: Path, exported: Callable[..., Path]) -> None:
    artifact = ModelArtifact.open(exported("gpt2", "text-generation"))
    config = TaskConfig("model", slots=SlotsConfig(slots=4, max_tokens=100, max_paused=1))
    one = slot_bytes(artifact, 100) or 0
    assert cache_bytes(artifact, config) == (4 * one, one)
    assert sum(cache_bytes(artifact, config)) > 0
    slots = {"slots": 4096, "max_tokens": 2**20}
    path = write(tmp_path, {"model": str(artifact.path), "slots": slots}, task="text-generation")
    memory = found(path)["memory of replicas"]
    assert (memory.level, memory.remedy) == ("warning", "lower slots.slots, slots.max_tokens or min_replicas")


def test_on_a_gpu_slots_take_its_memory_and_paused_sequences_that_of_the_machine(
    tmp_path: Path, exported: Callable[..., Path]
) -> None:
    artifact = ModelArtifact.open(exported("llama", "text-generation", "fp16", device="cuda"))
    slots = {"slots": 4, "max_tokens": 100, "max_paused": 1}
    user_config = {"model": str(artifact.path), "device": "cuda", "slots": slots}
    options = {"num_cpus": 0.2, "num_gpus": 0.5}
    gpu = (Gpu("NVIDIA H200", (9, 0), 16 * GIB, 16 * GIB),)
    lines = found(write(tmp_path, user_config, task="text-generation", ray_actor_options=options), gpu)
    one = slot_bytes(artifact, 100) or 0
    weights = artifact.path.joinpath("model.onnx").stat().st_size
    assert lines["gpu memory"].facts["estimated_bytes"] == weights + 4 * one
    assert lines["memory of replicas"].facts["cache_bytes"] == one > 0


def test_a_port_that_is_taken_is_an_error_that_names_who_has_it(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    path = write(tmp_path, {"model": "model"})
    port = read_yaml(path)["http_options"]["port"]
    assert found(path)["port"].level == "ok"
    with socket.create_server(("127.0.0.1", port)):
        taken = found(path)["port"]
        with pytest.raises(SextetError) as refused:
            check_port("127.0.0.1", port)
    assert (taken.level, taken.text) == ("error", str(refused.value))
    assert taken.facts["listeners"] == [f"{Path('/proc/self/comm').read_text().strip()}, pid {os.getpid()}"]


def test_an_ingress_that_nothing_guards_is_refused_as_serve_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_artifact(tmp_path / "model")
    path = write(tmp_path, {"model": "model"})
    assert (found(path)["ingress"].level, found(path)["ingress"].text) == ("ok", "no tls, no keys")
    cluster = read_yaml(path)
    cluster["http_options"]["host"] = "0.0.0.0"
    path.write_text(yaml.safe_dump(cluster), encoding="utf-8")
    unguarded = found(path)["ingress"]
    assert unguarded.level == "error"
    assert unguarded.text.startswith("the ingress would listen on 0.0.0.0 without keys; set")
    monkeypatch.setenv("SEXTET_OPEN_TO_EVERYBODY", "1")
    assert found(path)["ingress"].level == "ok"


def test_a_share_of_a_model_that_is_not_deployed_is_an_error_as_serve_says_it(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    (tmp_path / "traffic").write_text(f"{TASK} large 5\n", encoding="ascii")
    cluster = read_yaml(write(tmp_path, {"model": "model"}))
    cluster["applications"][-1]["deployments"][0]["user_config"] = {"ingress": {"traffic": "traffic"}}
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(cluster), encoding="utf-8")

    refused = found(path)["ingress"]

    assert refused.level == "error"
    assert f"traffic has {TASK} large, which is not deployed; allowed: {TASK}" in refused.text
    launch = Launch(path, None, None, lambda _line: None)
    with pytest.raises(ConfigurationError) as told:
        launch.ingress(launch.content())
    assert str(told.value) == refused.text
    (tmp_path / "traffic").write_text(f"{TASK} large 0\n", encoding="ascii")
    assert found(path)["ingress"].level == "ok"


def test_the_port_of_grpc_is_looked_at_where_grpc_is_served(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    path = write(tmp_path, {"model": "model"})
    assert "grpc port" not in found(path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        cluster = read_yaml(path) | {"grpc_options": {"port": port, "grpc_servicer_functions": ["a.b:c"]}}
        path.write_text(yaml.safe_dump(cluster), encoding="utf-8")
        assert (found(path)["grpc port"].level, found(path)["grpc port"].facts["port"]) == ("error", port)
    assert found(path)["grpc port"].level == "ok"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        own = read_yaml(write(tmp_path, {"model": "model"}))
        own["applications"][-1]["deployments"][0]["user_config"] = {"ingress": {"grpc_port": port}}
        path.write_text(yaml.safe_dump(own), encoding="utf-8")
        assert (found(path)["grpc port"].level, found(path)["grpc port"].facts["port"]) == ("error", port)
    assert found(path)["grpc port"].level == "ok"
    for wrong in (0, 65536, -1):
        cluster["grpc_options"]["port"] = wrong
        path.write_text(yaml.safe_dump(cluster), encoding="utf-8")
        with pytest.raises(SextetError, match=rf"^grpc_options.port is {wrong}; allowed: 1 to 65535$"):
            Cluster.read(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"user_config": {"model": "m", "thread": 2}}, "has no key 'thread' (did you mean 'threads'?)"),
        ({"max_ongoing_request": 2}, "has no key 'max_ongoing_request' (did you mean 'max_ongoing_requests'?)"),
    ],
)
def test_a_file_that_serve_refuses_is_one_error_with_the_same_line(
    change: dict[str, Any], text: str, tmp_path: Path
) -> None:
    path = write(tmp_path, **{"user_config": {"model": "m"}, **change})
    report = examine(path)
    (line,) = [one for one in report.findings if one.level == "error"]
    assert (line.section, line.name, report.exit_code) == ("cluster.yaml", "file", 1)
    assert text in line.text


def test_the_shipped_cluster_asks_for_six_artifacts(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        SHIPPED.read_text(encoding="utf-8").replace("port: 8000", f"port: {spare_port()}"), encoding="utf-8"
    )
    lines = found(path)
    named = [one.text for one in lines.values() if one.name in user_configs(read_yaml(SHIPPED))]
    assert len(named) == 6
    assert all("is to be built from starter:" in text for text in named)
    assert lines["num_cpus"].facts["first_replicas"] == pytest.approx(1.3)
    assert lines["num_cpus"].facts["all_replicas"] == pytest.approx(2.5)


@without_cuda
def test_a_device_that_is_asked_for_and_missing_prevents_serving(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model", precision="fp16", device="cuda")
    report = examine(write(tmp_path, {"model": "model", "device": "cuda"}))
    levels = {one.name: one.level for one in report.findings if one.section == "devices"}
    assert (levels["cpu"], levels["cuda"], levels["tensorrt"]) == ("ok", "error", "note")
    assert report.exit_code == 1
