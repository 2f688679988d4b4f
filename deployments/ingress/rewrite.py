"""Rewrites the HAProxy configuration that Ray Serve has written, each time before HAProxy reads it (node.py).

The standard library alone, because it runs at every reload. It decides nothing: the other modules of this package make
the lines (lines.py), and this one puts them where they belong. It fails where the file is not what the pinned version
of Ray writes: a node that comes up without these lines would be open to the network.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from deployments.ingress.lines import (
    APPLICATION,
    BACKEND,
    BACKEND_NUMBER,
    CLOCK,
    MODEL,
    MODEL_PREFIX,
    MODELS,
    NO_LOG,
    NODE,
    OWN_BIND,
    PREFIX,
    SECRET,
    SEPARATOR,
    SERVER,
    SERVER_NUMBER,
    TASK,
    Alias,
    Settings,
)
from deployments.ingress.refusals import Counts, with_counters

MARK = "# rewritten by sextet\n"
OWN_GRPC = "frontend sextet_grpc"
"""The section that grpc/sections.py adds."""
PUBLIC = ("frontend http_frontend", "frontend grpc_frontend", OWN_GRPC)
"""The sections that clients reach."""
INTERNAL = ("frontend prometheus", "listen stats")
"""The sections that Ray Serve opens on every interface, without authentication."""
NOWHERE = "backend default_backend"
"""The section that answers what belongs to no application."""
TWO_WORDS = ("errorfile", "no", "option", "stats", "timeout")
"""Keywords whose second word says what they set."""

GATEWAY = "gateway"
"""The application at `/`, unless a platform's container has its one task there."""
LARGE = "large-"
"""Of an application's second backend: for bodies that HAProxy cannot repeat, as its buffer (64 KiB) holds them not."""
IS_LARGE = ("{ req.hdr_val(content-length) gt 32768 }", "{ req.fhdr(transfer-encoding) -m found }")
RETRIES_OF_ONE = 12
"""Of an application with one replica. When that is killed, each of its kept connections fails for itself, within
milliseconds; HAProxy closes the client's without a word once as many retries have met one. There are no other replicas
that a request could kill."""
FALLBACK_MAXCONN = 16
"""Requests that Ray Serve's fallback proxy holds at once of an application whose replicas are away. What comes after
them waits in HAProxy (`timeout queue`, limits.py). The proxy hands all that it holds to the first replica that is
there, and each costs both several times what one of HAProxy's costs: hundreds of them kept the replica from answering
health checks, so that more went the same way. An application that sleeps has no bound: its requests are what wakes
it."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class RewriteError(Exception):
    """The file is not what the pinned version of Ray writes."""


def rewrite(text: str, settings: Settings, node: str, secret: str = "none", earlier: Counts | None = None) -> str:
    """`text` as Ray Serve wrote it, with `settings`; unchanged where it is rewritten already. Raises RewriteError.

    Refusals are counted on from `earlier`, or from 0.
    """
    if text.startswith(MARK):
        return text
    sections = sections_of(text)
    for needed in ("global", "defaults", PUBLIC[0], NOWHERE):
        if needed not in sections:
            raise RewriteError(f"no section '{needed}'")
    for header in sections:
        if header in INTERNAL:
            sections[header] = [_on_loopback(line, header) for line in sections[header]]
        elif header not in PUBLIC and any(is_of("bind", line) for line in sections[header]):
            raise RewriteError(f"section '{header}' listens on an address; known: {', '.join(PUBLIC + INTERNAL)}")
    lines, prefixes = settings.lines, prefixes_of(sections[PUBLIC[0]])
    hard_stop = (f"hard-stop-after {settings.hard_stop_s}s",) if settings.hard_stop_s else ()
    sections["global"] = _replaced(_for_its_owner(sections["global"]), (*lines.process, *hard_stop))
    sections["defaults"] = _replaced(sections["defaults"], lines.defaults)
    if NO_LOG in lines.defaults:
        for header in PUBLIC:
            if header in sections:
                sections[header] = [line for line in sections[header] if not is_of("log", line)]
    ordered = sorted(prefixes, key=lambda name: [*settings.order, *prefixes].index(name))
    of_tasks = {name: prefixes[name] for name in ordered if task_of(name) in settings.order}
    named = [(name.rpartition(SEPARATOR)[2], prefix.rstrip("/")) for name, prefix in of_tasks.items()]
    named += [(name, f"{of_tasks[base]}/{name}") for name, base in settings.adapters.items() if base in of_tasks]
    rules = _of_models(lines.frontend, named)
    rules += _alias_rules(prefixes, _all_aliases(settings, prefixes))
    rules += _not_there_yet(prefixes, settings)
    rules += of_several(lines.several, prefixes)
    for name in ordered:
        if prefixes[name] != "/":
            replicas = _replicas(sections[f"backend http-{name}"], and_backup=name in settings.sleeping)
            of_application = [line.replace(SERVER, one) for one in replicas for line in lines.replica]
            of_application += lines.application
            of_application = [line.replace(APPLICATION, name).replace(TASK, task_of(name)) for line in of_application]
            rules += [line.replace(PREFIX, prefixes[name]) for line in of_application]
    rules += lines.gateway if prefixes.get(GATEWAY) == "/" else ()
    sections[PUBLIC[0]] = _frontend(sections[PUBLIC[0]], settings, indented(rules))
    if PUBLIC[1] in sections:
        at = next((number for number, line in enumerate(sections[PUBLIC[1]]) if is_of("mode http", line)), None)
        if at is None:
            raise RewriteError(f"section '{PUBLIC[1]}' has no 'mode http'")
        sections[PUBLIC[1]][at + 1 : at + 1] = indented(lines.grpc)
    sections[NOWHERE] = indented(lines.nowhere) or sections[NOWHERE]
    if not prefixes or ("/" in settings.configured.values() and "/" not in prefixes.values()):
        # HAProxy has just started and does not know them all: nothing is known to be missing.
        sections[NOWHERE] = ["    http-request deny deny_status 503\n"]
    for number, header in enumerate(f"backend http-{name}" for name in prefixes):
        sections[header] = [*indented(of_backend(lines.backend, header, number, sections[header])), *sections[header]]
    for name in prefixes:
        sections[PUBLIC[0]] = _lead_large_bodies_apart(sections[PUBLIC[0]], name)
        sections[f"backend {LARGE}{name}"] = _without_reuse(sections[f"backend http-{name}"], name)
    awake = prefixes.keys() - set(settings.sleeping)
    for header in sections:  # http-NAME, large-NAME, and grpc-NAME of grpc/sections.py
        if header.startswith("backend ") and header.partition("-")[2] in awake:
            sections[header] = _bound_fallback(sections[header])
    written = "".join(line for header, lines in sections.items() for line in (f"{header}\n", *lines))
    written += "".join(f"{section}\n" for section in lines.sections)
    written = with_counters(written, earlier or Counts.new())
    return MARK + written.replace(NODE, node).replace(CLOCK, _clock()).replace(SECRET, secret)


def sections_of(text: str) -> dict[str, list[str]]:
    """The indented lines below each line that is not indented."""
    sections: dict[str, list[str]] = {}
    for line in text.splitlines(keepends=True):
        if line[:1].isspace() and sections:
            sections[next(reversed(sections))].append(line)
        elif (header := line.strip()) in sections or not header:
            raise RewriteError(f"section '{header}' occurs twice")
        else:
            sections[header] = []
    return sections


def is_of(keywords: str, line: str) -> bool:
    return line.split()[: len(keywords.split())] == keywords.split()


def indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}\n" for line in lines]


def _on_loopback(line: str, header: str) -> str:
    if not is_of("bind", line):
        return line
    if (address := re.fullmatch(r"(\s*bind )[*]?:(\d+)\s*", line)) is None:
        raise RewriteError(f"section '{header}' has '{line.strip()}'; known: bind *:PORT")
    return f"{address[1]}127.0.0.1:{address[2]}\n"


def _for_its_owner(lines: list[str]) -> list[str]:
    """Whoever may write to the admin socket may do anything with the ingress."""
    admin = [number for number, line in enumerate(lines) if is_of("stats socket", line)]
    if len(admin) != 1 or " mode 666 " not in lines[admin[0]]:
        raise RewriteError("section 'global' has no 'stats socket PATH mode 666 ...'")
    return [line.replace(" mode 666 ", " mode 600 ") if number in admin else line for number, line in enumerate(lines)]


def _replaced(lines: list[str], ours: Sequence[str]) -> list[str]:
    """Ours take the place of lines of the same keyword; `no KEYWORD` also of those that it negates."""
    keywords = {" ".join(line.split()[: 1 + (line.split()[0] in TWO_WORDS)]) for line in ours}
    keywords |= {line.split()[1] for line in ours if is_of("no", line)}
    keywords |= {f"errorfile {line.split()[2]}" for line in ours if is_of("http-error status", line)}
    kept = [line for line in lines if not any(is_of(one, line) for one in keywords)]
    return [*indented(ours), *kept]


def _frontend(lines: list[str], settings: Settings, rules: list[str]) -> list[str]:
    """`rules` come first. HAProxy runs http-request rules in their order, and chooses the backend after all of them."""
    binds = [number for number, line in enumerate(lines) if is_of("bind", line)]
    if len(binds) != 1:
        raise RewriteError(f"section '{PUBLIC[0]}' has {len(binds)} lines 'bind'; known: one")
    address = settings.address or lines[binds[0]].split()[1]
    ours = indented([f"bind {address} {settings.bind_options}".rstrip(), OWN_BIND])
    return [*lines[: binds[0]], *ours, *rules, *lines[binds[0] + 1 :]]


def _alias_rules(prefixes: dict[str, str], aliases: tuple[Alias, ...]) -> list[str]:
    """A rule for each alias of an application that is deployed; an application at the alias' own path goes first."""
    rules = []
    for alias in aliases:
        prefix = prefixes.get(alias.task, "/")
        taken = any(f"{other}/".startswith(f"{alias.root}/") for other in prefixes.values())
        if prefix != "/" and not taken and re.fullmatch(r"[\w./~-]+", prefix):
            pattern, path = f"^{alias.root}(/.*)?$", f"{prefix}{alias.below}\\1"
            rules.append(f"http-request replace-path {pattern} {path} if {{ path_beg {alias.root} }}")
    return rules


def task_of(application: str) -> str:
    return application.partition(SEPARATOR)[0]


def _of_models(ours: Sequence[str], named: Sequence[tuple[str, str]]) -> list[str]:
    """Those that name a MODEL once for each of `named`: models and adapters with their prefixes."""
    return [
        line.replace(MODEL, name).replace(PREFIX, prefix)
        for line in ours
        for name, prefix in (named if MODEL in line else (("", ""),))
    ]


def _not_there_yet(prefixes: dict[str, str], settings: Settings) -> Iterator[str]:
    """503 where a path, or an alias, is that of an application that is configured and has no backend yet.

    The gateway, or a task at a prefix of the path, would say that there is no such path.
    """
    missing = {name: path for name, path in settings.configured.items() if name not in prefixes and path != "/"}
    aliases = [(alias.task, alias.root) for alias in settings.aliases if alias.task in missing]
    for name, root in (*missing.items(), *aliases):
        if re.fullmatch(r"[\w./~-]+", root):
            below = [one for one in prefixes.values() if one.startswith(f"{root}/")]
            others = " ".join(f"!{{ path {one} }} !{{ path_beg {one}/ }}" for one in below)
            for path in (f"{{ path {root} }}", f"{{ path_beg {root}/ }}"):
                yield from (f"{one.replace(APPLICATION, name)} if {path} {others}" for one in settings.lines.absent)


def models_of(prefixes: dict[str, str]) -> dict[str, list[str]]:
    """The names of the other models of each task that has a default and others."""
    found: dict[str, list[str]] = {}
    for application in sorted(prefixes):
        task, _, model = application.partition(SEPARATOR)
        if model and task in prefixes:
            found.setdefault(task, []).append(model)
    return found


def _all_aliases(settings: Settings, prefixes: dict[str, str]) -> tuple[Alias, ...]:
    """Those of the settings, and the paths by which other protocols name a model or an adapter."""
    adapters = [
        Alias(f"{root}/{name}", application, f"/{name}{root}/{name}" if root == "/v2/models" else f"/{name}")
        for name, application in settings.adapters.items()
        for root in ("/v2/models", "/models")
    ]
    return (*settings.aliases, *_model_aliases(prefixes), *adapters)


def _model_aliases(prefixes: dict[str, str]) -> list[Alias]:
    return [
        Alias(f"{root}/{model}", f"{task}{SEPARATOR}{model}", f"{root}/{model}" if root == "/v2/models" else "")
        for task, models in models_of(prefixes).items()
        for model in models
        for root in ("/v2/models", "/models")
    ]


def of_several(ours: Sequence[str], prefixes: dict[str, str]) -> list[str]:
    written: list[str] = []
    for task, models in models_of(prefixes).items():
        for is_of_model, block in groupby(ours, lambda line: MODEL in line or MODEL_PREFIX in line):
            repeated = list(block)
            for model in models if is_of_model else [""]:
                prefix = prefixes.get(f"{task}{SEPARATOR}{model}", "")
                for line in repeated:
                    line = line.replace(MODEL_PREFIX, prefix).replace(MODEL, model).replace(MODELS, " ".join(models))
                    written.append(line.replace(TASK, task).replace(PREFIX, prefixes[task]))
    return written


def of_backend(ours: Sequence[str], header: str, number: int, lines: list[str]) -> list[str]:
    """Our lines of a backend. Its fallback proxy is none of its servers."""
    servers = [line.split()[1] for line in lines if is_of("server", line) and "backup" not in line.split()]
    written = [f"retries {RETRIES_OF_ONE}"] if len(servers) == 1 else []
    for is_of_server, block in groupby(ours, lambda line: SERVER in line or SERVER_NUMBER in line):
        repeated = list(block)
        for index, server in enumerate(servers if is_of_server else [""]):
            written += [line.replace(SERVER, server).replace(SERVER_NUMBER, str(index)) for line in repeated]
    name = header.removeprefix("backend ")
    return [line.replace(BACKEND, name).replace(BACKEND_NUMBER, str(number)) for line in written]


def _clock() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def prefixes_of(lines: list[str]) -> dict[str, str]:
    """The path prefix of each application that has a backend."""
    prefixes = {}
    for line in lines:
        if found := re.fullmatch(r"\s*acl is_http-(\S+) path_beg (/\S*)\s*", line):
            prefixes[found[1]] = found[2].rstrip("/") or "/"
    for line in lines:
        if found := re.match(r"\s*use_backend http-(\S+?)(-via-ingress-request-router)? if ", line):
            if found[1] not in prefixes:
                raise RewriteError(f"the backend http-{found[1]} has no 'acl is_http-{found[1]} path_beg PREFIX'")
        elif is_of("use_backend", line):
            raise RewriteError(f"'{line.strip()}' is unknown; known: use_backend http-APPLICATION if ...")
    return prefixes


def _lead_large_bodies_apart(lines: list[str], name: str) -> list[str]:
    """Before each rule that leads to the application's backend, the same for large bodies and the backend of theirs."""
    led = []
    for line in lines:
        if found := re.fullmatch(rf"(\s*)use_backend http-{re.escape(name)} if (\S+)\s*", line):
            led += [f"{found[1]}use_backend {LARGE}{name} if {found[2]} {one}\n" for one in IS_LARGE]
        led.append(line)
    return led


def _without_reuse(lines: list[str], name: str) -> list[str]:
    """The lines of an application's backend for a second one, which opens a connection for each request.

    Where a replica ends while it reads a request on a connection that had another one before, HAProxy closes the
    client's connection without a word, for it to repeat the request. On a new one it says 503.
    """
    never = ["    http-reuse never\n" if is_of("http-reuse", line) else line for line in lines]
    return same_servers(never, name)


def same_servers(lines: list[str], name: str) -> list[str]:
    """The lines of an application's backend for another one: the first one's health checks tell its servers' state."""
    same = []
    for line in lines:
        if is_of("server", line):
            server, address, *options = line.split()[1:]
            state = [f"track http-{name}/{server}"] * ("check" in options) + ["backup"] * ("backup" in options)
            same.append(f"    {' '.join(['server', server, address, *state])}\n")
        elif not any(is_of(one, line) for one in ("option httpchk", "http-check", "default-server")):
            same.append(line)
    return same


def _bound_fallback(lines: list[str]) -> list[str]:
    """The lines of a backend, with a bound for its fallback proxy, which is the last word of its line."""
    return [re.sub(r"(^\s*server .* backup)$", rf"\1 maxconn {FALLBACK_MAXCONN}", line) for line in lines]


def _replicas(lines: list[str], and_backup: bool = False) -> list[str]:
    """The names of a backend's servers, without the proxy that takes requests where there is none."""
    return [line.split()[1] for line in lines if is_of("server", line) and (and_backup or "backup" not in line.split())]
