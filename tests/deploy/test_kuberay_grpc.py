"""deploy/kuberay with gRPC: where cluster.yaml opens its port, clients reach it, by KubeRay's service or a Gateway.

`SEXTET_CRDS` as in test_kuberay.py, with gateway.networking.k8s.io_gateways.yaml and ..._grpcroutes.yaml of the Gateway
API.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from kubernetes_validate import validate

from deployments.ingress.config import IngressConfig
from tests.crd import problems
from tests.deploy.test_kuberay import (
    CRDS,
    DEFINITIONS,
    KUBERNETES,
    Object,
    container_of,
    groups,
    kustomized,  # noqa: F401  (a fixture)
    rendered,
)

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
GATEWAYS = {
    "Gateway": "gateway.networking.k8s.io_gateways.yaml",
    "GRPCRoute": "gateway.networking.k8s.io_grpcroutes.yaml",
}
SERVICE = "inference.GRPCInferenceService"
GRPC = {"grpc": "small", "grpc-gateway": "gpu"}
"""The size that each component is for, by the way in which it upgrades."""


@contextmanager
def with_component(kustomized: Path, size: str, name: str) -> Iterator[None]:  # noqa: F811
    """Of an overlay, whose cluster.yaml opens the port for gRPC."""
    file = kustomized / "overlays" / size / "kustomization.yaml"
    before = file.read_text(encoding="utf-8")
    try:
        file.write_text(before.replace("monitoring]", f"monitoring, ../../components/{name}]"), encoding="utf-8")
        yield
    finally:
        file.write_text(before, encoding="utf-8")


def objects_with_grpc(kustomized: Path, name: str) -> list[Object]:  # noqa: F811
    size = GRPC[name]
    with with_component(kustomized, size, name):
        rendered(kustomized, size)
        cluster = kustomized / "base" / "cluster.yaml"
        content = yaml.safe_load(cluster.read_text(encoding="utf-8"))
        gateway = content["applications"][-1]["deployments"][0]
        gateway.setdefault("user_config", {}).setdefault("ingress", {})["grpc_port"] = 8001
        cluster.write_text(yaml.safe_dump(content), encoding="utf-8")
        command = ["kubectl", "kustomize", str(kustomized / "overlays" / size)]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        return list(yaml.safe_load_all(made.stdout))


@pytest.mark.parametrize("name", GRPC)
def test_the_port_for_grpc_reaches_clients_and_the_probes_stay(name: str, kustomized: Path) -> None:  # noqa: F811
    before = {"RayService": rendered(kustomized, GRPC[name])["RayService"]}
    objects = objects_with_grpc(kustomized, name)
    (service,) = [one for one in objects if one["kind"] == "RayService"]
    port = IngressConfig.of(yaml.safe_load(service["spec"]["serveConfigV2"]), kustomized).grpc_port

    assert port == 8001
    for was, group in zip(groups(before), groups({"RayService": service}), strict=True):
        container, old = container_of(group), container_of(was)
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        is_head = group["template"]["metadata"]["labels"].get("app.kubernetes.io/component") != "worker"
        assert ports.get("serve-grpc") == (port if name == "grpc" or not is_head else None)
        assert container | {"ports": old["ports"]} == old
    made = service["spec"].get("serveService")
    if name == "grpc":  # KubeRay 1.7 merges these ports with those of the head whose names begin with serve
        validate({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, **made}, KUBERNETES, strict=True)
        listed = {one["name"]: (one["port"], one.get("appProtocol")) for one in made["spec"]["ports"]}
        assert listed == {"serve": (8000, None), "serve-grpc": (port, "kubernetes.io/h2c")}
    else:
        assert made is None  # KubeRay ignores it beside a Gateway
        named = {(one["kind"], one["metadata"]["name"]): one for one in objects}
        behind, way, gateway = (named[kind, "sextet-grpc"] for kind in ("Service", "GRPCRoute", "Gateway"))
        validate(behind, KUBERNETES, strict=True)
        (opened,) = behind["spec"]["ports"]
        assert (opened["port"], opened["targetPort"], opened["appProtocol"]) == (
            port,
            "serve-grpc",
            "kubernetes.io/h2c",
        )
        _, *workers = groups({"RayService": service})
        selected = behind["spec"]["selector"].items()
        assert all(selected <= one["template"]["metadata"]["labels"].items() for one in workers)
        (rule,) = way["spec"]["rules"]
        assert rule["backendRefs"] == [{"name": "sextet-grpc", "port": port}]
        assert rule["matches"] == [{"method": {"service": SERVICE}}]
        (parent,), (listener,) = way["spec"]["parentRefs"], gateway["spec"]["listeners"]
        assert (parent["name"], parent["sectionName"]) == (gateway["metadata"]["name"], listener["name"])
        assert listener["port"] == port
        strategy = service["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]
        assert gateway["spec"]["gatewayClassName"] == strategy["gatewayClassName"]


@pytest.mark.skipif(CRDS is None, reason="SEXTET_CRDS names no folder with the operators' definitions")
@pytest.mark.parametrize("name", GRPC)
def test_the_operators_know_every_field_of_the_way_for_grpc(name: str, kustomized: Path) -> None:  # noqa: F811
    for one in objects_with_grpc(kustomized, name):
        if one["kind"] in DEFINITIONS | GATEWAYS:
            file = Path(str(CRDS), (DEFINITIONS | GATEWAYS)[one["kind"]])
            assert problems(yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader), one) == []


@pytest.mark.parametrize(("size", "name"), [("gpu", "grpc"), ("small", "grpc-gateway")])
def test_each_way_for_grpc_refuses_the_upgrade_of_the_other(size: str, name: str, kustomized: Path) -> None:  # noqa: F811
    with (
        with_component(kustomized, size, name),
        pytest.raises(AssertionError, match="upgradeStrategy"),
    ):
        rendered(kustomized, size)
