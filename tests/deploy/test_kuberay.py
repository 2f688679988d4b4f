"""deploy/kuberay, rendered by kustomize: what Kubernetes, the operator, Ray and Sextet read of it.

`SEXTET_CRDS` names a folder with the operators' definitions (ray.io_rayservices.yaml of KubeRay,
monitoring.coreos.com_podmonitors.yaml of the Prometheus operator), with which their objects are then compared, too.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import validate
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve.schema import ServeDeploySchema

from deployments.cluster.ray_environment import ADDRESS_VARIABLE, METRICS_PORT
from deployments.config import CUT_S, DRAIN_S, task_configs
from deployments.ingress.config import IngressConfig
from tests.cluster.serving import clean_environment
from tests.crd import problems

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
SIZES = sorted(folder.name for folder in (KUBERAY / "overlays").iterdir())
FILES = {"small": "cluster.yaml", "large": "deploy/machines/server-32.yaml", "gpu": "deploy/machines/gpu-8.yaml"}
SHELL: Any = {"cwd": ROOT, "capture_output": True, "text": True, "check": True}
KUBERNETES = "1.33"
CRDS = os.environ.get("SEXTET_CRDS")
DEFINITIONS = {"RayService": "ray.io_rayservices.yaml", "PodMonitor": "monitoring.coreos.com_podmonitors.yaml"}
Object = dict[str, Any]

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
every_size = pytest.mark.parametrize("size", SIZES)


@pytest.fixture(scope="module")
def kustomized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder."""
    return Path(shutil.copytree(KUBERAY, tmp_path_factory.mktemp("kuberay"), dirs_exist_ok=True))


def rendered(kustomized: Path, size: str) -> dict[str, Object]:
    """The objects of a size by their kind, the last of each."""
    return {one["kind"]: one for one in objects_of(kustomized, size)}


def objects_of(kustomized: Path, size: str) -> list[Object]:
    """Those of a size, with a cluster.yaml that is made as docs/nodes.md says."""
    made = subprocess.run(
        ["sed", "s/host: 127.0.0.1/host: 0.0.0.0/; s#../../models[a-z-]*#models#", FILES[size]], **SHELL
    )
    (kustomized / "base" / "cluster.yaml").write_text(made.stdout, encoding="utf-8")
    command = ["kubectl", "kustomize", str(kustomized / "overlays" / size)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


def cluster_of(objects: dict[str, Object]) -> Object:
    cluster: Object = objects["RayService"]["spec"]["rayClusterConfig"]
    return cluster


def groups(objects: dict[str, Object]) -> Iterator[Object]:
    yield cluster_of(objects)["headGroupSpec"]
    yield from cluster_of(objects)["workerGroupSpecs"]


def container_of(group: Object) -> Object:
    (container,) = group["template"]["spec"]["containers"]
    return dict(container)


@every_size
def test_every_object_is_one_that_kubernetes_takes(size: str, kustomized: Path) -> None:
    objects = objects_of(kustomized, size)
    for one in objects:
        if one["kind"] not in DEFINITIONS:
            validate(one, KUBERNETES, strict=True)
    for group in groups({one["kind"]: one for one in objects}):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        validate(template, KUBERNETES, strict=True)
    kinds = "ConfigMap NetworkPolicy NetworkPolicy PodDisruptionBudget PodMonitor RayService Service StatefulSet"
    assert sorted(one["kind"] for one in objects) == kinds.split()


@pytest.mark.skipif(CRDS is None, reason="SEXTET_CRDS names no folder with the operators' definitions")
@every_size
def test_the_operators_know_every_field_of_their_objects(size: str, kustomized: Path) -> None:
    objects = rendered(kustomized, size)
    for kind, file in DEFINITIONS.items():
        definition = yaml.load(Path(str(CRDS), file).read_text(encoding="utf-8"), yaml.CSafeLoader)
        assert problems(definition, objects[kind]) == []


def test_a_field_that_no_operator_knows_is_found() -> None:
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["replicas"],
                "properties": {
                    "replicas": {"type": "integer", "format": "int32"},
                    "port": {"x-kubernetes-int-or-string": True},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                },
            }
        },
    }
    definition = {"spec": {"versions": [{"name": "v1", "served": True, "schema": {"openAPIV3Schema": schema}}]}}

    def found(**spec: Any) -> list[str]:
        return problems(definition, {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {}, "spec": spec})

    assert found(replicas=1, port="serve", labels={"any": "value"}) == []
    assert found(replicas=1, replica=2) == ["spec: 'replica' was unexpected"]
    assert found(port=8000) == ["spec: 'replicas' is a required property"]
    assert found(replicas="1") == ["spec.replicas: '1' is not of type 'integer'"]


@every_size
def test_ray_and_sextet_take_the_configuration_of_the_applications(size: str, kustomized: Path) -> None:
    text = rendered(kustomized, size)["RayService"]["spec"]["serveConfigV2"]
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(text))
    shipped = yaml.safe_load((ROOT / FILES[size]).read_text(encoding="utf-8"))

    assert deployed.http_options.host == "0.0.0.0"
    assert [one.name for one in deployed.applications] == [one["name"] for one in shipped["applications"]]
    configs = task_configs(yaml.safe_load(text))
    assert len(configs) == len(deployed.applications) - 1  # the gateway is no task
    assert {Path(one.model).parent for one in configs.values()} == {
        Path("models")
    }  # of the image, whose folder is /sextet


@every_size
def test_a_replica_of_every_task_fits_into_a_pod(size: str, kustomized: Path) -> None:
    objects = rendered(kustomized, size)
    pods = [container_of(group)["resources"]["limits"] for group in cluster_of(objects)["workerGroupSpecs"]]
    for application in yaml.safe_load(objects["RayService"]["spec"]["serveConfigV2"])["applications"]:
        for deployment in application["deployments"]:
            asked = deployment["ray_actor_options"]
            assert any(
                asked["num_cpus"] <= int(pod["cpu"]) and asked.get("num_gpus", 0) <= int(pod.get("nvidia.com/gpu", 0))
                for pod in pods
            )


@every_size
def test_rays_autoscaler_knows_what_a_pod_of_each_group_holds(size: str, kustomized: Path) -> None:
    """As it reads the RayCluster that KubeRay makes of the RayService."""
    spec = deepcopy(cluster_of(rendered(kustomized, size)))
    read = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "y"}, "spec": spec})
    nodes = read["available_node_types"]

    assert nodes["headgroup"]["resources"]["CPU"] == 0
    expected = {"small": {"cpu": (4, 0, 1, 4)}, "large": {"cpu": (30, 0, 2, 16)}}
    expected["gpu"] = {"cpu": (4, 0, 1, 4), "gpu": (8, 1, 1, 8)}
    assert {
        name: (one["resources"]["CPU"], one["resources"].get("GPU", 0), one["min_workers"], one["max_workers"])
        for name, one in nodes.items()
        if name != "headgroup"
    } == expected[size]
    assert read["idle_timeout_minutes"] == 5


@every_size
def test_the_operator_accepts_what_it_checks_beside_the_schema(size: str, kustomized: Path) -> None:
    """KubeRay refuses a RayService where one of these does not hold."""
    service = rendered(kustomized, size)["RayService"]
    cluster = service["spec"]["rayClusterConfig"]
    head, *workers = groups({"RayService": service})

    assert cluster["authOptions"] == {"mode": "token"}
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)  # of tokens
    assert "redis-password" not in head["rayStartParams"]
    for group in (head, *workers):
        assert "restartPolicy" not in group["template"]["spec"]  # the autoscaler's second version sets it
        named = {one["name"] for one in container_of(group)["env"]}
        assert not {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_enable_autoscaler_v2"} & named
    assert {"serve", "dashboard", "gcs-server"} <= {one["name"] for one in container_of(head)["ports"]}
    strategy = service["spec"]["upgradeStrategy"]
    if strategy["type"] == "NewClusterWithIncrementalUpgrade":
        options = strategy["clusterUpgradeOptions"]
        assert cluster["enableInTreeAutoscaling"] is True
        assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
        assert options["intervalSeconds"] > 0
        assert options["gatewayClassName"]


def test_the_large_sizes_upgrade_step_by_step_and_ask_for_keys(kustomized: Path) -> None:
    found = {
        size: (
            rendered(kustomized, size)["RayService"]["spec"]["upgradeStrategy"]["type"],
            "SEXTET_OPEN_TO_EVERYBODY" in json.dumps(rendered(kustomized, size)),
        )
        for size in SIZES
    }
    gradual = ("NewClusterWithIncrementalUpgrade", False)
    assert found == {"small": ("NewCluster", True), "large": gradual, "gpu": gradual}


@every_size
def test_a_pod_runs_as_nobody_special_and_writes_only_into_its_volumes(size: str, kustomized: Path) -> None:
    objects = rendered(kustomized, size)
    for group in groups(objects):
        pod, container = group["template"]["spec"], container_of(group)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"] == cluster_of(objects)["autoscalerOptions"]["securityContext"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        mounted = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        assert mounted == {"/tmp": "scratch", "/cache": "scratch", "/etc/sextet": "sextet"}
        assert {one["name"] for one in pod["volumes"]} == set(mounted.values())
    assert "ENV SEXTET_CACHE=/cache " in (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")


@every_size
def test_every_pod_that_serves_is_counted_scraped_and_drained(size: str, kustomized: Path) -> None:
    objects = rendered(kustomized, size)
    budget, monitor = objects["PodDisruptionBudget"]["spec"], objects["PodMonitor"]["spec"]
    head, *workers = groups(objects)

    def labels_of(group: Object) -> set[tuple[str, str]]:
        return set(group["template"]["metadata"]["labels"].items())

    counted = set(budget["selector"]["matchLabels"].items())
    assert [counted <= labels_of(group) for group in (head, *workers)] == [False, *[True] * len(workers)]
    assert all(set(monitor["selector"]["matchLabels"].items()) <= labels_of(group) for group in groups(objects))
    for group in workers:
        container = container_of(group)
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        assert {one["port"] for one in monitor["podMetricsEndpoints"]} <= ports.keys()
        assert ports["sextet-metrics"] == METRICS_PORT
        (told,) = (one["value"] for one in container["env"] if one["name"] == ADDRESS_VARIABLE)
        assert told == f"0.0.0.0:{METRICS_PORT}"
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > DRAIN_S + CUT_S
        assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """As Kubernetes reads a label selector of equalities and `NotIn`."""
    assert {one["operator"] for one in selector.get("matchExpressions", ())} <= {"NotIn"}
    return selector.get("matchLabels", {}).items() <= labels.items() and not any(
        labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", ())
    )


def reaches(policies: list[Object], source: dict[str, str] | None, target: dict[str, str], port: int) -> bool:
    """Whether a pod of the same namespace, or an address outside the Kubernetes cluster (None), may connect."""
    of_target = [one["spec"] for one in policies if selects(one["spec"]["podSelector"], target)]
    return not of_target or any(
        port in [one["port"] for one in rule.get("ports", [{"port": port}])]
        and (
            "from" not in rule
            or (source is not None and any(selects(one.get("podSelector", {}), source) for one in rule["from"]))
        )
        for spec in of_target
        for rule in spec["ingress"]
    )


@every_size
def test_clients_reach_the_ingress_alone(size: str, kustomized: Path) -> None:
    objects = objects_of(kustomized, size)
    policies = [one for one in objects if one["kind"] == "NetworkPolicy"]
    by_kind = {one["kind"]: one for one in objects}
    head, *workers = (group["template"]["metadata"]["labels"] for group in groups(by_kind))
    store = by_kind["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    operator, stranger = {"app.kubernetes.io/component": "kuberay-operator"}, {"app": "another"}
    ray, gcs, dashboard, clients, metrics = 10002, 6379, 8265, (8000, 8001), (8080, 9103)
    every = {ray, gcs, dashboard, *clients, *metrics}

    def open_to(source: dict[str, str] | None, target: dict[str, str]) -> set[int]:
        return {port for port in every if reaches(policies, source, target, port)}

    for node in (head, *workers):
        assert open_to(None, node) == {*clients}
        assert open_to(stranger, node) == {*clients, *metrics}
        assert open_to(operator, node) == {*clients, *metrics, dashboard}
        assert open_to(store, node) == {*clients, *metrics}
        assert open_to(node, store) == {gcs}
        assert all(open_to(other, node) == every for other in (head, *workers))
    assert [open_to(source, store) for source in (None, stranger, operator)] == [set()] * 3


def test_a_pod_for_gpus_has_one_and_starts_where_nodes_are_tainted_for_them(kustomized: Path) -> None:
    head, cpu, gpu = groups(rendered(kustomized, "gpu"))
    made = yaml.safe_load((KUBERAY / "base" / "rayservice.yaml").read_text(encoding="utf-8"))
    *_, unless_sized = groups({"RayService": made})

    assert (unless_sized["replicas"], unless_sized["minReplicas"]) == (0, 0)
    assert container_of(gpu)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container_of(gpu)["resources"]["requests"] == container_of(gpu)["resources"]["limits"]
    assert "nvidia.com/gpu" not in container_of(cpu)["resources"]["limits"]
    (toleration,) = gpu["template"]["spec"]["tolerations"]
    assert toleration == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert container_of(head)["image"] == container_of(cpu)["image"] != "sextet"
    assert container_of(gpu)["image"] == f"{container_of(cpu)['image']}-gpu"


def test_tls_reaches_the_probes_and_does_not_go_with_a_gateway_of_plain_http(kustomized: Path) -> None:
    file = kustomized / "overlays" / "small" / "kustomization.yaml"
    before = file.read_text(encoding="utf-8")
    try:
        file.write_text(before.replace("components/open", "components/tls"), encoding="utf-8")
        (worker,) = cluster_of(rendered(kustomized, "small"))["workerGroupSpecs"]
        both = before.replace("components: [", "components: [../../components/gradual-upgrade, ../../components/tls, ")
        file.write_text(both, encoding="utf-8")
        with pytest.raises(AssertionError, match="upgradeStrategy"):
            rendered(kustomized, "small")
    finally:
        file.write_text(before, encoding="utf-8")
    assert container_of(worker)["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"


def test_a_file_with_keys_and_tls_finds_them_where_the_secrets_are_mounted(kustomized: Path) -> None:
    (worker, *_) = cluster_of(rendered(kustomized, "small"))["workerGroupSpecs"]
    (volume,) = (one for one in worker["template"]["spec"]["volumes"] if one["name"] == "sextet")
    (file,) = (one["configMap"] for one in volume["projected"]["sources"] if "configMap" in one)
    secrets = {one["secret"]["name"]: one["secret"] for one in volume["projected"]["sources"] if "secret" in one}
    ingress = {"keys": "keys", "tls": {"certificate": "tls.crt", "key": "tls.key"}}
    gateway = {"name": "gateway", "user_config": {"ingress": ingress}}
    read = IngressConfig.of({"applications": [{"name": "gateway", "deployments": [gateway]}]}, Path("/etc/sextet"))

    assert file["name"] == "sextet-cluster"
    assert read.keys == f"/etc/sextet/{secrets['sextet-keys']['items'][0]['path']}"
    assert read.tls is not None
    assert (read.tls.certificate, read.tls.key) == (
        "/etc/sextet/tls.crt",
        "/etc/sextet/tls.key",
    )  # of `create secret tls`


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_pod_starts_ray_only_with_the_environment_of_its_ingress(is_whole: bool, kustomized: Path) -> None:
    """As KubeRay puts the command before its own, in a `bash` that reads what BASH_ENV names."""
    command = " ".join(container_of(cluster_of(rendered(kustomized, "small"))["headGroupSpec"])["command"])
    rendered(kustomized, "small")
    where = kustomized / ("base" if is_whole else "overlays") / "cluster.yaml"
    for told, here in (("/etc/sextet/cluster.yaml", where), ("/tmp/sextet", kustomized / "haproxy")):
        assert told in command
        command = command.replace(told, str(here))
    command = re.sub(r"\bsextet\b(?= environment)", f"{sys.executable} -m sextet", command)
    script = f" {command}  && ulimit -n 1024; echo started with $RAY_SERVE_ENABLE_HA_PROXY"
    said = subprocess.run(["bash", "-c", "--", script], env=clean_environment(), capture_output=True, text=True)

    assert (said.returncode, said.stdout) == ((0, "started with 1\n") if is_whole else (1, ""))
    assert is_whole or "cluster.yaml" in said.stderr.splitlines()[-1]


def test_every_node_has_the_version_of_ray_that_the_package_pins(kustomized: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (pinned,) = (found[1] for one in extras["serve"] if (found := re.fullmatch(r"ray\[serve\]==([\d.]+)", one)))
    assert cluster_of(rendered(kustomized, "small"))["rayVersion"] == pinned
