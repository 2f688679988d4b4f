"""cluster.yaml against Ray Serve's schema: what Serve would ignore or reject in paragraphs is refused in one line."""

from pathlib import Path
from typing import Any

import pytest

from deployments.cluster.rollout import reason, validated
from deployments.config import read_yaml
from pipelines.errors import ConfigurationError

SHIPPED = Path(__file__).parents[3] / "cluster.yaml"


def test_the_shipped_cluster_is_a_valid_serve_config() -> None:
    assert [application.route_prefix for application in validated(read_yaml(SHIPPED)).applications][-1] == "/"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"http_option": {}}, "cluster.yaml has no key 'http_option' (did you mean 'http_options'?)"),
        ({"http_options": {"prot": 1}}, "cluster.yaml: http_options has no key 'prot' (did you mean 'port'?)"),
        ({"http_options": {"port": "x"}}, "http_options.port is 'x': "),
        ({"applications": [{"name": "a" * 99}]}, "..."),
        ({"applications": [3]}, "cluster.yaml: applications[0] is 3; allowed: a mapping"),
        (
            {"applications": [{"name": "a", "import_path": "a:b", "deployments": [True]}]},
            "cluster.yaml: applications[a]: deployments[0] is true; allowed: a mapping",
        ),
        (
            {
                "applications": [
                    {
                        "name": "a",
                        "import_path": "a:b",
                        "deployments": [{"name": "d", "autoscaling_config": {"min_replicas": 3, "max_replicas": 2}}],
                    }
                ]
            },
            "a: autoscaling_config: ",
        ),
        (
            {"applications": [{"name": "a", "import_path": "a:b", "deployments": [{"name": "d", "num_replica": 1}]}]},
            "cluster.yaml: applications[a]: deployments[d] has no key 'num_replica' (did you mean 'num_replicas'?)",
        ),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        validated({"applications": [], **changes})

    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_where_haproxy_does_not_start_its_alert_is_the_reason() -> None:
    said = """RayTaskError: Traceback (most recent call last):
RuntimeError: HAProxy crashed during startup: [NOTICE]   (2068) : haproxy version is 2.8.25-5cf5d0683
[ALERT]    (2068) : Starting frontend stats: cannot bind socket (Address already in use) for [127.0.0.1:8404]
"""
    expected = "HAProxy: Starting frontend stats: cannot bind socket (Address already in use) for [127.0.0.1:8404]"
    assert reason([said]) == expected
    assert reason([said.partition("[ALERT]")[0]]).startswith("RuntimeError: HAProxy crashed during startup")
