"""Sections of gRPC, added to the file that Ray Serve has written before rewrite.py puts our lines into it.

    frontend sextet_grpc    HTTP/2 from clients; its rules find the application and make a path of the call
    backend grpc-TASK       the replicas of backend http-TASK over HTTP/1.1, whose health checks are also these

Replicas answer gRPC with the server that answers HTTP, so it needs no ports and no servers of its own. The standard
library alone (node.py).
"""

from deployments.ingress.lines import APPLICATION, MODEL, MODELS, PREFIX, SEPARATOR, TASK, GrpcLines, Settings
from deployments.ingress.rewrite import (
    GATEWAY,
    MARK,
    OWN_GRPC,
    PUBLIC,
    RewriteError,
    indented,
    is_of,
    of_backend,
    of_several,
    prefixes_of,
    same_servers,
    sections_of,
)

BACKEND = "grpc-"
NOWHERE = f"{BACKEND}nowhere"
APPLICATION_VARIABLE = "txn.sextet_application"
"""Which application a call is for."""


def with_grpc(text: str, settings: Settings) -> str:
    """`text` with the sections that `settings.grpc` describes; unchanged where there are none, or already."""
    grpc = settings.grpc
    if grpc.port is None or text.startswith(MARK):
        return text
    sections = sections_of(text)
    if PUBLIC[0] not in sections:
        raise RewriteError(f"no section '{PUBLIC[0]}'")
    found = prefixes_of(sections[PUBLIC[0]])
    listed = sorted(found, key=lambda name: [*settings.order, *found].index(name))
    prefixes = {name: found[name] for name in listed if _is_ours(name, found[name])}
    names = [(name, name.rpartition(SEPARATOR)[2]) for name in prefixes if name != GATEWAY]
    names += [(base, adapter) for adapter, base in settings.adapters.items() if base in prefixes]
    added = {OWN_GRPC: _frontend(grpc, prefixes, names, _host(settings, sections[PUBLIC[0]]))}
    added[f"backend {NOWHERE}"] = indented(grpc.nowhere)
    for number, name in enumerate(found):
        if name in prefixes:
            lines = sections[f"backend http-{name}"]
            ours = of_backend(grpc.backend, f"backend {BACKEND}{name}", number, lines)
            added[f"backend {BACKEND}{name}"] = [*indented(ours), *same_servers(lines, name)]
    end = "" if text.endswith("\n") else "\n"
    return text + end + "".join(line for header, lines in added.items() for line in (f"{header}\n", *lines))


def _is_ours(name: str, prefix: str) -> bool:
    """Whether it is the gateway, or a task at a path of its own."""
    return (name == GATEWAY) == (prefix == "/")


def _host(settings: Settings, lines: list[str]) -> str:
    """The interface that the HTTP frontend listens on."""
    written = next((line.split()[1] for line in lines if is_of("bind", line)), "")
    host, _, port = (settings.address or written).rpartition(":")
    if not port:
        raise RewriteError(f"section '{PUBLIC[0]}' has no 'bind ADDRESS'")
    return host


def _frontend(grpc: GrpcLines, prefixes: dict[str, str], names: list[tuple[str, str]], host: str) -> list[str]:
    """`names` are the applications with the names that clients ask for: that of a model, and those of its adapters."""
    rules = [*grpc.frontend, *of_several(grpc.several, prefixes)]
    for name, model in names:
        marks = {APPLICATION: name, TASK: name.partition(SEPARATOR)[0], MODEL: model, PREFIX: prefixes[name]}
        for line in grpc.application:
            for mark, value in marks.items():
                line = line.replace(mark, value)
            rules.append(line)
    rules += [line.replace(MODELS, ", ".join(model for _, model in names) or "none") for line in grpc.rest]
    chosen = [f"use_backend {BACKEND}{one} if {{ var({APPLICATION_VARIABLE}) -m str {one} }}" for one in prefixes]
    return indented([f"bind {host}:{grpc.port} {grpc.bind_options}", *rules, *chosen, f"default_backend {NOWHERE}"])
