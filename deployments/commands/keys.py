"""`sextet keys`: add, list and revoke, in the file that a cluster.yaml names."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from deployments.config import check_task, read_yaml
from deployments.ingress.config import IngressConfig
from deployments.ingress.keys import CLASSES, MAX_PER_MINUTE, NAME, Key, KeysError, add, new_key, read_keys, revoke
from pipelines.errors import ConfigurationError

keys = typer.Typer(no_args_is_help=True, help="Who may ask: keys of the ingress, whose file has only their SHA-256.")
KeyFile = Annotated[
    Path | None, typer.Option("--file", help="The file of keys, where that is not the one of cluster.yaml.")
]
Cluster = Annotated[Path, typer.Option(help="The file whose gateway names the file of keys: ingress: {keys: FILE}.")]


@keys.command("add")
def keys_add(
    name: Annotated[str, typer.Argument(help="Whose key it is: replicas and logs learn the name, never the key.")],
    per_minute: Annotated[int, typer.Option(help="Requests a minute at each node; 0 for no limit.")] = 0,
    class_: Annotated[str, typer.Option("--class", help="interactive, or bulk: behind all interactive ones.")] = (
        "interactive"
    ),
    task: Annotated[list[str] | None, typer.Option(help="A task it may ask; repeat it. All of them if absent.")] = None,
    file: KeyFile = None,
    cluster: Cluster = Path("cluster.yaml"),
) -> None:
    """Make a key and print it, once; it is valid within a second where that file is the ingress's."""
    if not re.fullmatch(NAME, name):
        raise ConfigurationError(f"NAME is {name!r}; allowed: up to 64 letters, digits, '.', '_' and '-'")
    if not 0 <= per_minute <= MAX_PER_MINUTE:
        raise ConfigurationError(f"--per-minute is {per_minute}; allowed: 0 to {MAX_PER_MINUTE}")
    if class_ not in CLASSES:
        raise ConfigurationError(f"--class is {class_!r}; allowed: {', '.join(CLASSES)}")
    for one in task or ():
        check_task(one)
    key, digest = new_key()
    with _worded():
        add(_file(file, cluster), Key(digest, name, per_minute, class_, tuple(task or ())))
    print(key)


@keys.command("list")
def keys_list(file: KeyFile = None, cluster: Cluster = Path("cluster.yaml")) -> None:
    """The names of the keys, and what each may do."""
    with _worded():
        found = read_keys(_file(file, cluster))
    for one in found:
        rate, tasks = one.per_minute or "any number", ", ".join(one.tasks) or "all tasks"
        print(f"{one.name}  {one.kind}  {rate} a minute  {tasks}")


@keys.command("revoke")
def keys_revoke(
    name: Annotated[str, typer.Argument(help="Whose key.")],
    file: KeyFile = None,
    cluster: Cluster = Path("cluster.yaml"),
) -> None:
    """Remove a key; within a second nobody is answered with it."""
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
