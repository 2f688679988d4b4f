"""`sextet keys`: add, list and revoke, in the file that a cluster.yaml names."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.config import check_task, read_yaml
from deployments.ingress.config import IngressConfig
from deployments.ingress.keys import CLASSES, MAX_PER_MINUTE, NAME, Key, KeysError, add, new_key, read_keys, revoke
from pipelines.errors import ConfigurationError


def add_key(file: Path | None, cluster: Path, name: str, per_minute: int, class_: str, tasks: tuple[str, ...]) -> str:
    """The new key, which is not kept anywhere. Raises ConfigurationError, as the others do."""
    if not re.fullmatch(NAME, name):
        raise ConfigurationError(f"NAME is {name!r}; allowed: up to 64 letters, digits, '.', '_' and '-'")
    if not 0 <= per_minute <= MAX_PER_MINUTE:
        raise ConfigurationError(f"--per-minute is {per_minute}; allowed: 0 to {MAX_PER_MINUTE}")
    if class_ not in CLASSES:
        raise ConfigurationError(f"--class is {class_!r}; allowed: {', '.join(CLASSES)}")
    for task in tasks:
        check_task(task)
    key, digest = new_key()
    with _worded():
        add(_file(file, cluster), Key(digest, name, per_minute, class_, tasks))
    return key


def list_keys(file: Path | None, cluster: Path) -> list[str]:
    """A line for each key."""
    with _worded():
        keys = read_keys(_file(file, cluster))
    return [
        f"{one.name}  {one.kind}  {one.per_minute or 'any number'} a minute  {', '.join(one.tasks) or 'all tasks'}"
        for one in keys
    ]


def revoke_key(file: Path | None, cluster: Path, name: str) -> None:
    with _worded():
        revoke(_file(file, cluster), name)


def _file(file: Path | None, cluster: Path) -> Path:
    if file is not None:
        return file
    named = IngressConfig.of(read_yaml(cluster), cluster.parent).keys
    if named is None:
        raise ConfigurationError(
            f"{cluster} names no file of keys: `ingress: {{keys: FILE}}` under the gateway's user_config, or --file"
        )
    return Path(named)


@contextmanager
def _worded() -> Iterator[None]:
    try:
        yield
    except KeysError as error:
        raise ConfigurationError(str(error)) from None
    except OSError as error:
        raise ConfigurationError(f"{error.filename}: {error.strerror}") from None
