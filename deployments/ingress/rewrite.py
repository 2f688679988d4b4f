"""Rewrites the HAProxy configuration that Ray Serve has written, each time before HAProxy reads it (node.py).

The standard library alone, because it runs at every reload. It decides nothing: the other modules of this package make
the lines (`Lines`), and this one puts them where they belong. It fails where the file is not what the pinned version of
Ray writes: a node that comes up without these lines would be open to the network.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from deployments.ingress.secret import write_private

MARK = "# rewritten by sextet\n"
PUBLIC = ("frontend http_frontend", "frontend grpc_frontend")
"""The sections that clients reach."""
INTERNAL = ("frontend prometheus", "listen stats")
"""The sections that Ray Serve opens on every interface, without authentication."""
NOWHERE = "backend default_backend"
"""The section that answers what belongs to no application."""
TWO_WORDS = ("errorfile", "no", "option", "stats", "timeout")
"""Keywords whose second word says what they set."""

NO_LOG = "no log"
"""Of `defaults`: the frontends log nothing, either. Backends log which servers come and go."""
GATEWAY = "gateway"
"""The application at `/`, unless a platform's container has its one task there."""
LARGE = "large-"
"""Of an application's second backend: for bodies that HAProxy cannot repeat, as its buffer (64 KiB) holds them not."""
IS_LARGE = ("{ req.hdr_val(content-length) gt 32768 }", "{ req.fhdr(transfer-encoding) -m found }")
NODE, APPLICATION, PREFIX = "<node>", "<application>", "<prefix>"
"""In a line: the folder of the file, which is this node's own; an application's name and path prefix."""
TASK, MODELS, MODEL, MODEL_PREFIX = "<task>", "<models>", "<model>", "<model prefix>"
"""In a line of an application: its task. In one of a task with several models: the names of those beside the default;
one of them, and its prefix.
"""
SEPARATOR = "."
"""Between the task and the name in the name of an application of another model than the default (config.py)."""
BACKEND, BACKEND_NUMBER, SERVER, SERVER_NUMBER = "<backend>", "<backend number>", "<server>", "<server number>"
"""In a line of a backend: its name; a number for the name of a variable; the same of a server."""
SECRET = "<secret>"
"""In a line: what replicas know this ingress by (secret.py)."""
CLOCK = "<clock>"
"""In a line: the boot id of this machine (deployments/http/request.py)."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


OWN_SOCKET = "own"
OWN_BIND = f"bind unix@{NODE}/ingress.sock mode 600 name {OWN_SOCKET}"
"""A socket of the HTTP frontend that only the cluster's owner can open, as the admin socket: it needs no key."""


class RewriteError(Exception):
    """The file is not what the pinned version of Ray writes."""


@dataclass(frozen=True)
class Alias:
    """`root` and every path below it are, for clients, `below` and the paths below it of a task's application."""

    root: str
    task: str
    below: str


@dataclass(frozen=True)
class Lines:
    """What one concern adds to the file. `+` puts several together, in their order.

    In `process` and `defaults` a line takes the place of Ray's lines that set the same.
    """

    process: tuple[str, ...] = ()
    """Of the section `global`."""
    defaults: tuple[str, ...] = ()
    """Of the section `defaults`: what holds for every frontend and every backend."""
    frontend: tuple[str, ...] = ()
    """Before Ray's rules of the HTTP frontend: paths are as clients sent them."""
    grpc: tuple[str, ...] = ()
    """Before Ray's rules of the gRPC frontend, where there is one."""
    application: tuple[str, ...] = ()
    """After `frontend` and the aliases, once for each application but the one at `/`: paths are the application's."""
    several: tuple[str, ...] = ()
    """After the aliases, once for each task with several models; lines in a row that name one are repeated for each."""
    replica: tuple[str, ...] = ()
    """Before an application's lines, once for each of its replicas."""
    gateway: tuple[str, ...] = ()
    """After all of these, where the gateway is at `/`."""
    backend: tuple[str, ...] = ()
    """Before Ray's lines of each backend of an application. Lines in a row that name a server are repeated for each."""
    nowhere: tuple[str, ...] = ()
    """In place of Ray's answer where no application has the path."""
    sections: tuple[str, ...] = ()
    """Sections of their own, each in one string."""

    def __add__(self, other: "Lines") -> "Lines":
        return Lines(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})


@dataclass(frozen=True)
class Settings:
    """What the rewritten configuration has beside what Ray Serve wrote."""

    lines: Lines = Lines()
    aliases: tuple[Alias, ...] = ()
    address: str = ""
    """Where the HTTP frontend listens, in place of what Ray wrote; empty for Ray's own."""
    bind_options: str = ""
    """Of the HTTP frontend's address."""
    keys: str = ""
    """The operator's file of keys."""
    certificate: tuple[str, ...] = ()
    """The operator's files of the certificate and its key."""
    traffic: str = ""
    """The operator's file of shares (traffic.py)."""
    order: tuple[str, ...] = ()
    """Applications whose lines come first, in this order."""
    sleeping: tuple[str, ...] = ()
    """Applications that may have no replica: Ray Serve's fallback proxy holds requests until there is one."""

    def write(self, file: Path) -> None:
        """For node.py to read."""
        write_private(file, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, file: Path) -> "Settings":
        given: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        lines = Lines(**{name: tuple(lines) for name, lines in given["lines"].items()})
        aliases = tuple(Alias(**alias) for alias in given["aliases"])
        lists = {name: tuple(given[name]) for name in ("order", "certificate", "sleeping")}
        return cls(**given | {"lines": lines, "aliases": aliases} | lists)


def rewrite(text: str, settings: Settings, node: str, secret: str = "none") -> str:
    """`text` as Ray Serve wrote it, with `settings`; unchanged where it is rewritten already. Raises RewriteError."""
    if text.startswith(MARK):
        return text
    sections = _sections(text)
    for needed in ("global", "defaults", PUBLIC[0], NOWHERE):
        if needed not in sections:
            raise RewriteError(f"no section '{needed}'")
    for header in sections:
        if header in INTERNAL:
            sections[header] = [_on_loopback(line, header) for line in sections[header]]
        elif header not in PUBLIC and any(_is("bind", line) for line in sections[header]):
            raise RewriteError(f"section '{header}' listens on an address; known: {', '.join(PUBLIC + INTERNAL)}")
    lines, prefixes = settings.lines, _prefixes(sections[PUBLIC[0]])
    sections["global"] = _replaced(_for_its_owner(sections["global"]), lines.process)
    sections["defaults"] = _replaced(sections["defaults"], lines.defaults)
    if NO_LOG in lines.defaults:
        for header in PUBLIC:
            if header in sections:
                sections[header] = [line for line in sections[header] if not _is("log", line)]
    rules = [*lines.frontend, *_alias_rules(prefixes, (*settings.aliases, *_model_aliases(prefixes)))]
    rules += _of_several(lines.several, prefixes)
    for name in sorted(prefixes, key=lambda name: [*settings.order, *prefixes].index(name)):
        if prefixes[name] != "/":
            replicas = _replicas(sections[f"backend http-{name}"], and_backup=name in settings.sleeping)
            of_application = [line.replace(SERVER, one) for one in replicas for line in lines.replica]
            of_application += lines.application
            task = name.partition(SEPARATOR)[0]
            of_application = [line.replace(APPLICATION, name).replace(TASK, task) for line in of_application]
            rules += [line.replace(PREFIX, prefixes[name]) for line in of_application]
    rules += lines.gateway if prefixes.get(GATEWAY) == "/" else ()
    sections[PUBLIC[0]] = _frontend(sections[PUBLIC[0]], settings, _indented(rules))
    if PUBLIC[1] in sections:
        at = next((number for number, line in enumerate(sections[PUBLIC[1]]) if _is("mode http", line)), None)
        if at is None:
            raise RewriteError(f"section '{PUBLIC[1]}' has no 'mode http'")
        sections[PUBLIC[1]][at + 1 : at + 1] = _indented(lines.grpc)
    sections[NOWHERE] = _indented(lines.nowhere) or sections[NOWHERE]
    if not prefixes:  # HAProxy has just started and knows no application yet: nothing is known to be missing
        sections[NOWHERE] = ["    http-request deny deny_status 503\n"]
    for number, header in enumerate(f"backend http-{name}" for name in prefixes):
        sections[header] = [*_indented(_of_backend(lines.backend, header, number, sections[header])), *sections[header]]
    for name in prefixes:
        sections[PUBLIC[0]] = _lead_large_bodies_apart(sections[PUBLIC[0]], name)
        sections[f"backend {LARGE}{name}"] = _without_reuse(sections[f"backend http-{name}"], name)
    written = "".join(line for header, lines in sections.items() for line in (f"{header}\n", *lines))
    written += "".join(f"{section}\n" for section in lines.sections)
    return MARK + written.replace(NODE, node).replace(CLOCK, _clock()).replace(SECRET, secret)


def _sections(text: str) -> dict[str, list[str]]:
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


def _is(keywords: str, line: str) -> bool:
    return line.split()[: len(keywords.split())] == keywords.split()


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}\n" for line in lines]


def _on_loopback(line: str, header: str) -> str:
    if not _is("bind", line):
        return line
    if (address := re.fullmatch(r"(\s*bind )[*]?:(\d+)\s*", line)) is None:
        raise RewriteError(f"section '{header}' has '{line.strip()}'; known: bind *:PORT")
    return f"{address[1]}127.0.0.1:{address[2]}\n"


def _for_its_owner(lines: list[str]) -> list[str]:
    """Whoever may write to the admin socket may do anything with the ingress."""
    admin = [number for number, line in enumerate(lines) if _is("stats socket", line)]
    if len(admin) != 1 or " mode 666 " not in lines[admin[0]]:
        raise RewriteError("section 'global' has no 'stats socket PATH mode 666 ...'")
    return [line.replace(" mode 666 ", " mode 600 ") if number in admin else line for number, line in enumerate(lines)]


def _replaced(lines: list[str], ours: Sequence[str]) -> list[str]:
    """Ours take the place of lines of the same keyword; `no KEYWORD` also of those that it negates."""
    keywords = {" ".join(line.split()[: 1 + (line.split()[0] in TWO_WORDS)]) for line in ours}
    keywords |= {line.split()[1] for line in ours if _is("no", line)}
    kept = [line for line in lines if not any(_is(one, line) for one in keywords)]
    return [*_indented(ours), *kept]


def _frontend(lines: list[str], settings: Settings, rules: list[str]) -> list[str]:
    """`rules` come first. HAProxy runs http-request rules in their order, and chooses the backend after all of them."""
    binds = [number for number, line in enumerate(lines) if _is("bind", line)]
    if len(binds) != 1:
        raise RewriteError(f"section '{PUBLIC[0]}' has {len(binds)} lines 'bind'; known: one")
    address = settings.address or lines[binds[0]].split()[1]
    ours = _indented([f"bind {address} {settings.bind_options}".rstrip(), OWN_BIND])
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


def _models(prefixes: dict[str, str]) -> dict[str, list[str]]:
    """The names of the other models of each task that has a default and others."""
    found: dict[str, list[str]] = {}
    for application in sorted(prefixes):
        task, _, model = application.partition(SEPARATOR)
        if model and task in prefixes:
            found.setdefault(task, []).append(model)
    return found


def _model_aliases(prefixes: dict[str, str]) -> list[Alias]:
    """The paths by which other protocols name a model."""
    return [
        Alias(f"{root}/{model}", f"{task}{SEPARATOR}{model}", f"{root}/{model}" if root == "/v2/models" else "")
        for task, models in _models(prefixes).items()
        for model in models
        for root in ("/v2/models", "/models")
    ]


def _of_several(ours: Sequence[str], prefixes: dict[str, str]) -> list[str]:
    written: list[str] = []
    for task, models in _models(prefixes).items():
        for is_of_model, block in groupby(ours, lambda line: MODEL in line or MODEL_PREFIX in line):
            repeated = list(block)
            for model in models if is_of_model else [""]:
                prefix = prefixes.get(f"{task}{SEPARATOR}{model}", "")
                for line in repeated:
                    line = line.replace(MODEL_PREFIX, prefix).replace(MODEL, model).replace(MODELS, " ".join(models))
                    written.append(line.replace(TASK, task).replace(PREFIX, prefixes[task]))
    return written


def _of_backend(ours: Sequence[str], header: str, number: int, lines: list[str]) -> list[str]:
    """Our lines of a backend. Its fallback proxy is none of its servers."""
    servers = [line.split()[1] for line in lines if _is("server", line) and "backup" not in line.split()]
    written: list[str] = []
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


def _prefixes(lines: list[str]) -> dict[str, str]:
    """The path prefix of each application that has a backend."""
    prefixes = {}
    for line in lines:
        if found := re.fullmatch(r"\s*acl is_http-(\S+) path_beg (/\S*)\s*", line):
            prefixes[found[1]] = found[2].rstrip("/") or "/"
    for line in lines:
        if found := re.match(r"\s*use_backend http-(\S+?)(-via-ingress-request-router)? if ", line):
            if found[1] not in prefixes:
                raise RewriteError(f"the backend http-{found[1]} has no 'acl is_http-{found[1]} path_beg PREFIX'")
        elif _is("use_backend", line):
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
    client's connection without a word, for it to repeat the request. On a new one it says 503. The servers' state is
    that of the first backend.
    """
    apart = []
    for line in lines:
        if _is("http-reuse", line):
            apart.append("    http-reuse never\n")
        elif _is("server", line):
            server, address, *options = line.split()[1:]
            state = [f"track http-{name}/{server}"] * ("check" in options) + ["backup"] * ("backup" in options)
            apart.append(f"    {' '.join(['server', server, address, *state])}\n")
        elif not any(_is(one, line) for one in ("option httpchk", "http-check", "default-server")):
            apart.append(line)
    return apart


def _replicas(lines: list[str], and_backup: bool = False) -> list[str]:
    """The names of a backend's servers, without the proxy that takes requests where there is none."""
    return [line.split()[1] for line in lines if _is("server", line) and (and_backup or "backup" not in line.split())]
