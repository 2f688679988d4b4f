"""cluster.yaml against Ray Serve's own schema. Serve ignores keys that it does not know; here they are refused.

Imports ray: call it after the environment is set.
"""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from deployments.config import unknown_key
from pipelines.errors import ConfigurationError
from pipelines.schema import shown


def validated(content: Mapping[str, Any]) -> ServeDeploySchema:
    """The configuration as Serve takes it; raises ConfigurationError that names the key in one line."""
    _check_keys(ServeDeploySchema, content, "cluster.yaml")
    try:
        config = ServeDeploySchema.model_validate(content)
        for application in config.applications:
            for deployment in application.deployments:
                _check_autoscaling(f"{application.name}: autoscaling_config", deployment.autoscaling_config)
        return config
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "cluster.yaml"
        raise ConfigurationError(f"{where} is {shown(first['input'])}: {first['msg']}") from None


def _check_autoscaling(where: str, given: Any) -> None:
    """What Serve itself checks only once its controller runs."""
    if isinstance(given, Mapping):
        try:
            AutoscalingConfig.model_validate(given)
        except ValidationError as error:
            raise ConfigurationError(f"{where}: {error.errors()[0]['msg']}") from None


def _check_keys(model: type[BaseModel], given: Mapping[str, Any], where: str) -> None:
    for key, value in given.items():
        if key not in model.model_fields:
            raise unknown_key(key, model.model_fields, where)
        nested = next(_models(model.model_fields[key].annotation), None)
        if nested is not None:
            for index, one in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(value, list) and not isinstance(one, Mapping):
                    raise ConfigurationError(f"{where}: {key}[{index}] is {shown(one)}; allowed: a mapping")
                if isinstance(one, Mapping):
                    name = one.get("name", index) if isinstance(value, list) else None
                    _check_keys(nested, one, f"{where}: {key}" if name is None else f"{where}: {key}[{name}]")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models inside an annotation such as `Optional[Union[Dict, AutoscalingConfig]]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
