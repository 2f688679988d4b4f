"""Rewrites the HAProxy configuration that Ray Serve has written, each time before HAProxy reads it.

    python -IS rewrite.py settings.json haproxy.cfg

A script of the standard library alone, because it runs at every reload. It fails where the file is not what the pinned
version of Ray writes: a node that comes up without these changes would be open to the network, and answer wrongly.
"""

import json
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

MARK = "# rewritten by sextet\n"
PUBLIC = ("frontend http_frontend", "frontend grpc_frontend")
"""The sections whose addresses are http_options' of cluster.yaml."""
INTERNAL = ("frontend prometheus", "listen stats")
"""The sections that Ray Serve opens on every interface, without authentication."""


class RewriteError(Exception):
    """The file is not what the pinned version of Ray writes."""


@dataclass(frozen=True)
class Alias:
    """`root` and every path below it are, for clients, `below` and the paths below it of a task's application."""

    root: str
    task: str
    below: str


@dataclass(frozen=True)
class Settings:
    """What the rewritten configuration has beside what Ray Serve wrote."""

    body_s: int
    """How long a client may take to send a request."""
    late_page: str
    """File of the answer when it took longer."""
    unavailable_page: str
    """File of the answer when no replica takes the request. Ray's own is a 500 in plain text."""
    aliases: tuple[Alias, ...] = ()
    frontend: list[str] = field(default_factory=list)
    """Rules of the public frontend that come first."""

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> "Settings":
        given = json.loads(file.read_text(encoding="utf-8"))
        return cls(**given | {"aliases": tuple(Alias(**alias) for alias in given["aliases"])})

    def defaults(self) -> list[str]:
        """Lines of the section `defaults`."""
        return [
            # HAProxy can only repeat a request that it holds as a whole. It therefore waits for all of it, as far as
            # its buffer goes, before it asks a replica, and repeats it where that replica dies.
            "option http-buffer-request",
            f"timeout http-request {self.body_s}s",
            f'errorfile 408 "{self.late_page}"',
            *(f'errorfile {status} "{self.unavailable_page}"' for status in (502, 503, 504)),
            # A machine that loses power closes no connection. After 25 s without a sign of life, another one is asked.
            "option srvtcpka",
            "srvtcpka-idle 10s",
            "srvtcpka-intvl 5s",
            "srvtcpka-cnt 3",
        ]


def rewrite(text: str, settings: Settings) -> str:
    """`text` as Ray Serve wrote it, with `settings`; unchanged where it is rewritten already. Raises RewriteError."""
    if text.startswith(MARK):
        return text
    sections = _sections(text)
    if "defaults" not in sections or PUBLIC[0] not in sections:
        raise RewriteError(f"no section '{PUBLIC[0]}' and 'defaults'")
    for header in sections:
        if header in INTERNAL:
            sections[header] = [_on_loopback(line, header) for line in sections[header]]
        elif header not in PUBLIC and any(_is("bind", line) for line in sections[header]):
            raise RewriteError(f"section '{header}' listens on an address; known: {', '.join(PUBLIC + INTERNAL)}")
    prefixes = _prefixes(sections[PUBLIC[0]])
    sections["defaults"] = _defaults(sections["defaults"], settings)
    rules = [*(f"    {rule}\n" for rule in settings.frontend), *_alias_rules(prefixes, settings.aliases)]
    sections[PUBLIC[0]] = _frontend(sections[PUBLIC[0]], rules)
    if not prefixes:  # HAProxy has just started and knows no application yet: Ray would say 404 to everything
        sections["backend default_backend"] = ["    http-request deny deny_status 503\n"]
    return MARK + "".join(line for header, lines in sections.items() for line in (f"{header}\n", *lines))


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


def _on_loopback(line: str, header: str) -> str:
    if not _is("bind", line):
        return line
    if (address := re.fullmatch(r"(\s*bind )[*]?:(\d+)\s*", line)) is None:
        raise RewriteError(f"section '{header}' has '{line.strip()}'; known: bind *:PORT")
    return f"{address[1]}127.0.0.1:{address[2]}\n"


def _defaults(lines: list[str], settings: Settings) -> list[str]:
    """Ours take the place of lines of the same keyword."""
    ours = settings.defaults()
    replaced = ("errorfile", "timeout http-request", "option http-buffer-request", "option srvtcpka")
    kept = [line for line in lines if not any(_is(keywords, line) for keywords in replaced)]
    return [*(f"    {line}\n" for line in ours), *kept]


def _frontend(lines: list[str], rules: list[str]) -> list[str]:
    """`rules` come first. HAProxy runs http-request rules in their order, and chooses the backend after all of them."""
    last_bind = max((number for number, line in enumerate(lines) if _is("bind", line)), default=None)
    if last_bind is None:
        raise RewriteError(f"section '{PUBLIC[0]}' has no bind")
    return [*lines[: last_bind + 1], *rules, *lines[last_bind + 1 :]]


def _alias_rules(prefixes: dict[str, str], aliases: tuple[Alias, ...]) -> list[str]:
    """A rule for each alias of an application that is deployed; an application at the alias' own path goes first."""
    rules = []
    for alias in aliases:
        prefix = prefixes.get(alias.task, "/")
        taken = any(f"{other}/".startswith(f"{alias.root}/") for other in prefixes.values())
        if prefix != "/" and not taken and re.fullmatch(r"[\w./~-]+", prefix):
            pattern, path = f"^{alias.root}(/.*)?$", f"{prefix}{alias.below}\\1"
            rules.append(f"    http-request replace-path {pattern} {path} if {{ path_beg {alias.root} }}\n")
    return rules


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


def main(settings: str, config: str) -> None:
    file = Path(config)
    try:
        text = rewrite(file.read_text(encoding="utf-8"), Settings.read(Path(settings)))
    except RewriteError as error:
        sys.exit(f"{config}: {error}; this is not the configuration that the pinned version of Ray Serve writes")
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
