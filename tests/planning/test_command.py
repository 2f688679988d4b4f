"""`sextet plan`, from its options to its last line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import sextet
from deployments.scaling.daily import DailyPattern
from deployments.scaling.options import AUTOSCALER
from pipelines.errors import ConfigurationError

COSTS = [
    {"rows": 1, "longest": 16, "seconds": 0.1},
    {"rows": 1, "longest": 64, "seconds": 0.4},
    {"rows": 4, "longest": 64, "seconds": 1.6},
]
KINDS = """
kinds:
  - {name: small, cores: 2, memory_gib: 8, price_per_hour: 0.1}
  - {name: fast, cores: 4, memory_gib: 16, price_per_hour: 0.5, speed: 4.0}
  - {name: tiny, cores: 1, memory_gib: 1, price_per_hour: 0.01}
"""


def written(folder: Path, task: str, model: Path, **user_config: Any) -> Path:
    """A cluster.yaml of one small model; beside it, what batches of an encoder cost, and kinds of machines."""
    deployment = {
        "name": task,
        "autoscaling_config": {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 2},
        "user_config": {"model": str(model), "threads": 2, "queue": {"max_queue_s": 600}, **user_config},
    }
    application = {
        "name": task,
        "route_prefix": f"/{task}",
        "import_path": "deployments.app:build",
        "args": {"task": task},
        "deployments": [deployment],
    }
    (folder / "costs.json").write_text(json.dumps(COSTS), encoding="utf-8")
    (folder / "machines.yaml").write_text(KINDS, encoding="utf-8")
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({"applications": [application]}), encoding="utf-8")
    return path


@pytest.fixture
def cluster(exported: Callable[..., Path], tmp_path: Path) -> Path:
    """A cluster.yaml of an encoder."""
    return written(tmp_path, "text-classification", exported("bert", "text-classification"))


def arguments(cluster: Path, *more: str) -> list[str]:
    usual = ["--costs", str(cluster.parent / "costs.json"), "--tokens", "fixed:64", "--trace", "constant:1.5"]
    return ["plan", str(cluster), *usual, "--hours", "0.5", "--slo-ms", "1000", *more]


def planned(capsys: pytest.CaptureFixture[str], *given: str) -> tuple[dict[str, Any], list[str]]:
    """The last line, and the lines before it."""
    with pytest.raises(SystemExit) as ended:
        sextet.main(list(given))
    assert ended.value.code == 0
    *lines, last = capsys.readouterr().out.splitlines()
    return json.loads(last), lines


def test_plans_are_compared_and_the_cheapest_that_holds_the_level_is_named(
    cluster: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    policies = ["--policy", "ray", "--policy", "configured", "--policy", "static", "--policy", "static:3"]
    output = tmp_path / "plans" / "day"
    machines = str(cluster.parent / "machines.yaml")
    found, lines = planned(capsys, *arguments(cluster, *policies, "--machines", machines, "--output", str(output)))
    plans = found["plans"]
    assert [(one["policy"], one["machines"]) for one in plans if one["machines"] == "fast"] == [
        ("ray", "fast"),
        ("configured", "fast"),
        ("static 1", "fast"),
        ("static 3", "fast"),
    ]
    assert {one["machines"] for one in plans} == {"small", "fast"}, "tiny has no room for two threads"
    assert all(one["answered"] + one["refused"] + one["expired"] == found["requests"] for one in plans)
    holding = [one for one in plans if one["held"]]
    assert plans[found["best"]]["price"] == min(one["price"] for one in holding)
    assert all(one["held"] for one in plans if one["policy"].startswith("static"))
    assert sum("held, cheapest" in line for line in lines) == 1
    assert len(lines) == 1 + len(plans)
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in output.with_suffix(".html").read_text(encoding="utf-8")


def test_one_replica_less_than_static_found_does_not_hold_the_level(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = planned(capsys, *arguments(cluster, "--policy", "static", "--trace", "constant:4"))
    count = int(found["plans"][0]["policy"].split()[1])
    assert count > 1
    fewer, _ = planned(capsys, *arguments(cluster, "--policy", f"static:{count - 1}", "--trace", "constant:4"))
    assert (found["plans"][0]["held"], fewer["plans"][0]["held"]) == (True, False)
    assert fewer["best"] is None


def test_what_the_file_says_of_replicas_is_what_is_configured(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def configured(**changed: Any) -> dict[str, Any]:
        content = yaml.safe_load(cluster.read_text(encoding="utf-8"))
        deployment = content["applications"][0]["deployments"][0]
        deployment.pop("autoscaling_config", None)
        deployment.update(changed)
        cluster.write_text(yaml.safe_dump(content), encoding="utf-8")
        given = arguments(cluster, "--policy", "configured", "--trace", "constant:6", "--hours", "0.1")
        found: dict[str, Any] = planned(capsys, *given)[0]["plans"][0]
        return found

    assert configured(num_replicas=2)["policy"] == "static 2"
    scaled = configured(num_replicas="auto")
    assert (scaled["policy"], scaled["most_replicas"] > 2) == ("configured", True)
    assert configured(num_replicas=None, autoscaling_config={"max_replicas": 2})["most_replicas"] == 2


def test_a_pattern_is_kept_where_a_running_cluster_reads_it(
    cluster: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name, kept = "text-classification", tmp_path / "new" / "days"
    given = arguments(cluster, "--policy", "configured", "--pattern", str(kept))
    with pytest.raises(SystemExit, match=f"--pattern is set; allowed: with --policy configured, where {name} has"):
        sextet.main(given)
    assert not kept.exists()

    content = yaml.safe_load(cluster.read_text(encoding="utf-8"))
    policy = {"policy_function": AUTOSCALER, "policy_kwargs": {"slo_ms": 1000, "pattern": "days", "day_s": 900}}
    content["applications"][0]["deployments"][0]["autoscaling_config"] = {"max_replicas": 8, "policy": policy}
    cluster.write_text(yaml.safe_dump(content), encoding="utf-8")
    planned(capsys, *given, "--trace", "constant:8")

    found = DailyPattern.of_text(DailyPattern.file(kept, f"{name}:{name}").read_bytes())
    assert (found.day_s, found.needs(400.0) > 1) == (900, True)


def test_a_file_of_arrivals_is_replayed(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = cluster.parent / "arrivals.csv"
    trace.write_text("time,tokens\n" + "".join(f"{n},64\n" for n in range(50)), encoding="utf-8")
    found, _ = planned(
        capsys, *arguments(cluster, "--policy", "static:1", "--trace", str(trace), "--overhead-ms", "50")
    )
    assert found["requests"] == 50
    assert found["plans"][0]["p50_ms"] == pytest.approx(450, rel=0.05)


def test_costs_that_nobody_kept_are_measured_and_kept(
    cluster: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEXTET_CACHE", str(tmp_path / "cache"))
    given = ["plan", str(cluster), "--policy", "static:1", "--hours", "0.1", "--trace", "constant:1"]
    first, _ = planned(capsys, *given)
    (kept,) = (tmp_path / "cache" / "costs").glob("*.json")
    assert first["plans"][0]["p50_ms"] < 1000
    second, _ = planned(capsys, *given, "--costs", str(kept))
    again, _ = planned(capsys, *given)
    assert again["plans"][0]["p50_ms"] == second["plans"][0]["p50_ms"] == first["plans"][0]["p50_ms"]


@pytest.mark.parametrize(
    ("architecture", "task", "slots"), [("gpt2", "text-generation", 2), ("marian", "translation", 8)]
)
def test_a_model_that_writes_is_measured_and_planned_by_its_first_token(
    exported: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    architecture: str,
    task: str,
    slots: int,
) -> None:
    """The shape of a Marian searches with four beams: its answers count as a whole."""
    path = written(tmp_path, task, exported(architecture, task), threads=1, slots={"slots": slots, "max_tokens": 512})
    given = ["plan", str(path), "--hours", "0.05", "--trace", "constant:1", "--tokens", "fixed:16"]
    measured, _ = planned(capsys, *given, "--policy", "static:1")
    assert measured["plans"][0]["answered"] == measured["requests"]
    costs = tmp_path / "decoding.json"
    cost = {"prompt_token_s": 0.01, "step_s": 0.1, "sequence_s": 0.0, "beams": slots // 2}
    costs.write_text(json.dumps(cost), encoding="utf-8")
    more = ["--costs", str(costs), "--written-tokens", "fixed:20", "--overhead-ms", "0", "--slo-ms", "4000"]
    found, _ = planned(capsys, *given, *more, "--policy", "static", "--policy", "level")
    least_ms = 16 * 10 + (100 if task == "text-generation" else 19 * 100)
    assert least_ms <= found["plans"][0]["p50_ms"] <= 3 * least_ms
    assert found["plans"][0]["held"]
    assert all(one["answered"] == found["requests"] for one in found["plans"])
    # Two answers at once: each keeps one busy for two seconds, and one comes every second.
    assert found["plans"][0]["most_replicas"] >= 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--slo-ms", "0"], "--slo-ms is 0; allowed: 0.1 to 3,600,000"),
        (["--slo-ms", "nan"], "--slo-ms is nan"),
        (["--quantile", "1"], "--quantile is 1; allowed: 0.5 to 0.9999"),
        (["--scale", "-1"], "--scale is -1"),
        (["--scale", "1e5"], "requests; allowed: 20,000,000"),
        (["--hours", "1000"], "--hours is 1,000; allowed"),
        (["--start-s", "1e9"], "--start-s is 1,000,000,000; allowed: 0 to 86,400"),
        (["--most-replicas", "0"], "--most-replicas is 0; allowed: 1 to 100,000"),
        (["--least-replicas", "5", "--most-replicas", "3"], "--least-replicas is 5; allowed: 0 to 3"),
        (["--deadline-s", "0"], "--deadline-s is 0"),
        (["--overhead-ms", "-1"], "--overhead-ms is -1"),
        (["--seed", "-1"], "--seed is -1"),
        (["--tokens", "normal:3"], "the lengths are 'normal:3'"),
        (["--written-tokens", "many"], "the lengths are 'many'"),
        (["--policy", "statik"], "--policy is 'statik' (did you mean 'static'?)"),
        (["--policy", "static:0"], "static:N is 0; allowed: 1 to 100,000"),
        (["--policy", "static", "--slo-ms", "100"], "100.0% of the requests take longer than 100 ms"),
        (["--policy", "static", "--trace", "constant:100", "--most-replicas", "2"], "the work takes at least"),
        (["--task", "text-clasification"], "--task is 'text-clasification' (did you mean 'text-classification'?)"),
        (["--trace", "weekly:1-2"], "--trace is 'weekly:1-2'; allowed: constant:RATE"),
        (["--trace", "none.csv"], "--trace: none.csv does not exist"),
        (["--costs", "none.json"], "--costs: none.json does not exist"),
        (["--machines", "none.yaml"], "--machines: none.yaml does not exist"),
    ],
)
def test_what_is_not_allowed_is_one_line(cluster: Path, given: list[str], message: str) -> None:
    with pytest.raises((SystemExit, ConfigurationError)) as error:
        sextet.main(arguments(cluster, *given))
    said = str(error.value)
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("kinds: []", "kinds"),
        ("kinds: [{name: a, cores: 0, memory_gib: 1}]", "cores"),
        ("kinds: [{name: a, cores: 1, memory_gib: 1, price: 3}]", "0 has no key 'price'"),
        ("kinds: [{name: a, cores: 1, memory_gib: 1}, {name: a, cores: 2, memory_gib: 1}]", "two kinds have one name"),
        (
            "kinds: [{name: a, cores: 1, memory_gib: 1}]",
            "no kind of machine has room for a replica, which takes 2 cores",
        ),
        ("kinds: [", "is no valid YAML"),
    ],
)
def test_kinds_of_machines_are_checked(cluster: Path, content: str, message: str) -> None:
    machines = cluster.parent / "machines.yaml"
    machines.write_text(content, encoding="utf-8")
    with pytest.raises((SystemExit, ConfigurationError)) as error:
        sextet.main(arguments(cluster, "--machines", str(machines)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "{}", '[{"rows": 1, "longest": 16, "seconds": 0}]', "no"])
def test_costs_are_checked(cluster: Path, content: str) -> None:
    (cluster.parent / "costs.json").write_text(content, encoding="utf-8")
    with pytest.raises((SystemExit, ConfigurationError), match="--costs: ") as error:
        sextet.main(arguments(cluster, "--policy", "ray"))
    assert "\n" not in str(error.value)


def test_the_kinds_that_are_shipped_are_valid() -> None:
    from planning.machines import read_kinds

    assert len(read_kinds(Path(sextet.__file__).parent / "deploy" / "kinds.yaml")) > 1
