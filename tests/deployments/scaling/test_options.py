"""What cluster.yaml says of scaling, as `sextet serve` reads it."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

import sextet
from deployments.cluster.launch import Launch
from deployments.cluster.rollout import validated
from deployments.config import cut_down, deployment_of, read_yaml
from deployments.ingress.lines import Settings
from deployments.scaling.options import AUTOSCALER, DEFAULTS, may_sleep, set_scaling, start_asleep
from pipelines.errors import ConfigurationError

SHIPPED = Path(__file__).parents[3] / "cluster.yaml"
TASK = "translation"


def cluster(policy: Any = None, **autoscaling: Any) -> dict[str, Any]:
    content = deepcopy(cut_down(read_yaml(SHIPPED), [TASK, "gateway"]))
    given = {"min_replicas": 1, "max_replicas": 2, **autoscaling}
    deployment_of(TASK, content)["autoscaling_config"] = given | ({} if policy is None else {"policy": policy})
    return content


def autoscaling(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = deployment_of(TASK, content)["autoscaling_config"]
    return found


def test_a_service_level_brings_its_own_delays_and_what_the_file_says_stays(tmp_path: Path) -> None:
    policy = {"policy_function": AUTOSCALER, "policy_kwargs": {"slo_ms": 500, "pattern": "patterns"}}
    content = cluster(policy, upscale_delay_s=7)

    set_scaling(content, tmp_path)

    assert {key: autoscaling(content)[key] for key in DEFAULTS} == DEFAULTS | {"upscale_delay_s": 7}
    assert autoscaling(content)["policy"]["policy_kwargs"]["pattern"] == str(tmp_path / "patterns")
    validated(content)


def test_other_policies_stay_as_they_are(tmp_path: Path) -> None:
    for content in (cluster(), cluster({"policy_function": "my_package.policy:by_price", "policy_kwargs": {"a": 1}})):
        before = deepcopy(content)
        set_scaling(content, tmp_path)
        assert content == before


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        ({"policy_function": AUTOSCALER}, "translation: policy_kwargs: slo_ms is missing"),
        ({"policy_function": AUTOSCALER, "policy_kwargs": 3}, "translation: policy_kwargs is 3"),
        (
            {"policy_function": AUTOSCALER, "policy_kwargs": {"slo": 1}},
            "translation: policy_kwargs has no key 'slo' (did you mean 'slo_ms'?)",
        ),
        (
            {"policy_function": AUTOSCALER[:-1]},
            f"policy_function is '{AUTOSCALER[:-1]}' (did you mean '{AUTOSCALER}'?); allowed: {AUTOSCALER}",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(policy: dict[str, Any], error: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        set_scaling(cluster(policy), tmp_path)
    assert error in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_policy_that_cannot_be_imported_is_refused_in_one_line() -> None:
    for function in ("no_such_package:policy", "deployments.config:no_such_name", "without"):
        with pytest.raises(ConfigurationError) as refused:
            validated(cluster({"policy_function": function}))
        assert f"policy_function is '{function}'" in str(refused.value)
        assert "\n" not in str(refused.value)


def test_models_that_may_have_no_replica_are_known() -> None:
    assert (may_sleep(cluster()), start_asleep(cluster())) == ([], [])
    rare, warm = cluster(min_replicas=0), cluster(min_replicas=0, initial_replicas=1)
    assert (may_sleep(rare), start_asleep(rare)) == ([TASK], [TASK])
    assert (may_sleep(warm), start_asleep(warm)) == ([TASK], [])


def test_the_launcher_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster({"policy_function": AUTOSCALER, "policy_kwargs": {"slo_ms": -1}})))
    with pytest.raises(ConfigurationError, match="translation: policy_kwargs: slo_ms is -1"):
        Launch(file, None, None, lambda _line: None).content()


def test_sextet_environment_tells_the_nodes_which_models_may_be_asleep(tmp_path: Path) -> None:
    content = cluster(min_replicas=0)
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(content))
    sextet.environment(tmp_path / "haproxy", tmp_path / "cluster.yaml")
    assert Settings.read(tmp_path / "haproxy" / "settings.json").sleeping == (TASK,)


def test_sextet_environment_tells_the_nodes_the_names_of_adapters(tmp_path: Path) -> None:
    content = cluster()
    deployment_of(TASK, content)["user_config"]["adapters"] = {"pirate": "adapters/pirate"}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(content))
    sextet.environment(tmp_path / "haproxy", tmp_path / "cluster.yaml")
    assert Settings.read(tmp_path / "haproxy" / "settings.json").adapters == {"pirate": TASK}
