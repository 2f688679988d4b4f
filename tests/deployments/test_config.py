"""cluster.yaml: what it says arrives in frozen objects, and what it must not say is refused in one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.config import CUT_S, DRAIN_S, TaskConfig, deployment_of, model_sources, read_tasks, set_drains
from pipelines.errors import ConfigurationError
from pipelines.scheduling.scheduler import BatchingConfig
from pipelines.tasks import TASKS

SHIPPED = Path(__file__).parents[2] / "cluster.yaml"


def written(folder: Path, **user_config: Any) -> Path:
    application = {
        "name": "translation",
        "args": {"task": "translation"},
        "deployments": [{"name": "translation", "user_config": user_config}],
    }
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({"applications": [application, {"name": "gateway"}]}), encoding="utf-8")
    return path


def test_the_shipped_cluster_names_all_six_tasks_and_where_their_models_come_from() -> None:
    assert list(read_tasks(SHIPPED)) == list(TASKS)
    assert [source["task"] for source in model_sources(SHIPPED)] == list(TASKS)


def test_a_relative_model_is_relative_to_the_file_and_an_absolute_one_stays(tmp_path: Path) -> None:
    assert read_tasks(written(tmp_path, model="models/x"))["translation"].model == str(tmp_path / "models/x")
    assert read_tasks(written(tmp_path, model="/models/x"))["translation"].model == "/models/x"


def test_keys_that_are_absent_or_null_have_their_defaults() -> None:
    config = TaskConfig.from_user_config(
        {"model": "m", "threads": None, "batching": {"max_batch_size": 8}}, "translation"
    )

    assert config == TaskConfig("m", batching=BatchingConfig(max_batch_size=8))


def test_a_source_becomes_the_arguments_of_its_export(tmp_path: Path) -> None:
    path = written(tmp_path, model="m", source={"checkpoint": "starter:ner", "precision": "int8"})

    assert model_sources(path) == [
        {
            "task": "translation",
            "output": tmp_path / "m",
            "device": "cpu",
            "checkpoint": "starter:ner",
            "revision": None,
            "precision": "int8",
            "optimize": None,
            "exporter": "optimum",
            "allow_pickle": False,
        }
    ]


@pytest.mark.parametrize(
    ("user_config", "message"),
    [
        (
            {"modle": "m"},
            "user_config of translation has no key 'modle' (did you mean 'model'?); allowed: adapters, allow_",
        ),
        ({}, "user_config of translation: model is missing; allowed: a text"),
        (None, "user_config of translation is null; allowed: a mapping"),
        ({"model": 3}, "user_config of translation: model is 3; allowed: a text"),
        ({"model": "m", "threads": True}, "threads is true; allowed: an integer"),
        ({"model": "m", "threads": 0}, "user_config of translation: threads is 0; allowed: 1 to 1024"),
        ({"model": "m", "gpu_mem_limit_bytes": -5}, "gpu_mem_limit_bytes is -5; allowed: an integer from 1"),
        ({"model": "m", "device": "gpu"}, "device is 'gpu'; allowed: cpu, cuda"),
        ({"model": "m", "batching": {"max_batch": 1}}, "batching has no key 'max_batch' (did you mean 'max_batch_"),
        ({"model": "m", "batching": {"concurrency": 0}}, "batching: concurrency is 0; allowed: 1 to 1024"),
        ({"model": "m", "batching": {"concurrency": 10**30}}, "allowed: 1 to 1024"),
        (
            {"model": "m", "batching": {"batch_wait_timeout_s": 11}},
            "batch_wait_timeout_s is 11; allowed: 0 to 10",
        ),
        ({"model": "m", "queue": {"max_queue_s": 0}}, "queue: max_queue_s is 0; allowed: above 0 and at most 86400"),
        ({"model": "m", "slots": {"prefill_chunk_tokens": 2}}, "slots: prefill_chunk_tokens is 2; allowed: an integer"),
        ({"model": "m", "slots": {"slots": True}}, "slots: slots is true; allowed: an integer from 1"),
        ({"model": "m", "limits": [1]}, "limits is [1]; allowed: a mapping"),
        (
            {"model": "m", "source": {"checkpoint": "x", "precision": "fp8"}},
            "precision is 'fp8'; allowed: fp32, fp16, ",
        ),
    ],
)
def test_a_wrong_user_config_is_refused_by_task_key_and_what_is_allowed(user_config: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        TaskConfig.from_user_config(user_config, "translation")

    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("a: [", "line 1: not valid YAML"),
        ("a: \0", "not valid YAML: unacceptable character"),
        ("a: " + "[" * 10_000, "its lists and mappings are nested too deep"),
        ("- 1", "is not a Ray Serve config: it has no list of applications"),
        ("applications: []", "no application has args: {task: ...}"),
        ("applications: [{name: x, args: task}]", "no application has args: {task: ...}"),
        (
            "applications: [{name: translation, args: {task: translation}, deployments: 1}]",
            "needs name: translation and a deployment translation",
        ),
        (
            "applications: [{name: x, args: {task: translaton}}]",
            "'translaton' (did you mean 'translation'?); tasks: text-",
        ),
        ("applications: [{name: x, args: {task: [translation]}}]", "args.task is ['translation'] (did you"),
        (
            "applications: [{name: x, args: {task: translation}}]",
            "needs name: translation and a deployment translation",
        ),
    ],
)
def test_a_file_that_is_no_cluster_is_refused_in_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "cluster.yaml"
    if content is not None:
        path.write_text(content, encoding="utf-8")

    with pytest.raises(ConfigurationError) as refused:
        read_tasks(path)

    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_elsewhere_stays_as_it_is_named_and_nothing_is_exported_to_it(tmp_path: Path) -> None:
    names = ("someone/sentiment@v1", "s3://bucket/sentiment")

    assert [read_tasks(written(tmp_path, model=name))["translation"].model for name in names] == list(names)
    with pytest.raises(ConfigurationError) as refused:
        read_tasks(written(tmp_path, model=names[0], source={"checkpoint": "starter:ner"}))
    assert str(refused.value) == (
        "user_config of translation: source is set, but model is 'someone/sentiment@v1'; allowed with source: a folder"
    )


def several(folder: Path, *models: Any, **changes: Any) -> Path:
    """A file of translation's default, where `None` is among the names, and of others."""
    applications = []
    for model in models:
        suffix = "" if model is None else f".{model}"
        applications.append(
            {
                "name": f"translation{suffix}",
                "route_prefix": "/translation" + ("" if model is None else f"/{model}"),
                "args": {"task": "translation", **({} if model is None else {"model": model})},
                "deployments": [{"name": "translation", "user_config": {"model": f"models/{model}"}}],
                **(changes if model is not None else {}),
            }
        )
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({"applications": applications}), encoding="utf-8")
    return path


def test_a_task_may_have_other_models_beside_its_default(tmp_path: Path) -> None:
    found = read_tasks(several(tmp_path, None, "large", "small-2"))

    assert {name: Path(config.model).name for name, config in found.items()} == {
        "translation": "None",
        "translation.large": "large",
        "translation.small-2": "small-2",
    }


@pytest.mark.parametrize(
    ("models", "changes", "message"),
    [
        (["large"], {}, "translation.large needs the application translation, the default model of its task"),
        ([None, "large"], {"route_prefix": "/large"}, "translation.large: route_prefix is not /translation/large"),
        ([None, "large"], {"name": "large"}, "the application of translation.large needs name: translation.large"),
        ([None, "v1"], {}, "args.model is 'v1'; allowed: no task, and none of v1, v2, predict"),
        ([None, "summarization"], {}, "args.model is 'summarization'; allowed: no task"),
        ([None, "Large"], {}, "args.model is 'Large'; allowed: small letters, digits and -"),
        ([None, 3], {}, "args.model is 3; allowed: small letters"),
        ([None, "a/b"], {}, "args.model is 'a/b'; allowed: small letters"),
    ],
)
def test_a_model_that_clients_could_not_name_is_refused(
    tmp_path: Path, models: list[Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read_tasks(several(tmp_path, *models, **changes))
    assert str(refused.value).startswith(message)


def test_two_tasks_cannot_have_models_of_one_name(tmp_path: Path) -> None:
    path = several(tmp_path, None, "large")
    text = path.read_text(encoding="utf-8")
    applications = yaml.safe_load(text)["applications"]
    others = yaml.safe_load(text.replace("translation", "summarization"))["applications"]
    path.write_text(yaml.safe_dump({"applications": applications + others}), encoding="utf-8")

    with pytest.raises(ConfigurationError) as refused:
        read_tasks(path)
    assert str(refused.value) == "summarization.large and translation.large are both called large; allowed: one of them"


def test_how_long_a_replica_may_end_follows_from_one_setting_unless_the_file_says_it() -> None:
    def content(deployment: dict[str, Any], user_config: dict[str, Any]) -> dict[str, Any]:
        task = "translation"
        listed = [{"name": task, "user_config": {"model": "m", **user_config}, **deployment}]
        return {"applications": [{"name": task, "args": {"task": task}, "deployments": listed}]}

    assert set_drains(content({}, {})) == DRAIN_S + CUT_S
    given = content({}, {"drain_timeout_s": 20})
    assert set_drains(given) == 20 + CUT_S
    assert deployment_of("translation", given)["graceful_shutdown_timeout_s"] == 20 + CUT_S
    assert set_drains(content({"graceful_shutdown_timeout_s": 50}, {"drain_timeout_s": 20})) == 50
    with pytest.raises(
        ConfigurationError, match=r"^translation: graceful_shutdown_timeout_s is 'long'; allowed: 0 to "
    ):
        set_drains(content({"graceful_shutdown_timeout_s": "long"}, {}))
