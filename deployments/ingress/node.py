"""Node: what runs beside the HAProxy of one node, outside Ray. A script of the standard library alone.

    prepare SETTINGS CONFIG   before HAProxy reads CONFIG: rewrite it, and copy keys and certificate beside it
    watch SETTINGS CONFIG PID while it runs: what changes in the files of the operator goes to HAProxy within a second.
                              With one more argument where the process takes over from another one

HAProxy reads the copies, which are always whole: a file that is half written, or a certificate whose key has not come
yet, would otherwise end a reload. A copy that is wrong is not made; the one before stays.
"""

import os
import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from deployments.ingress.grpc.sections import with_grpc
from deployments.ingress.haproxy import command
from deployments.ingress.keys import Key, KeysError, read_keys, shared_secret, text_of, write_private
from deployments.ingress.lines import NODE, Settings
from deployments.ingress.model_rules.traffic import TrafficError, map_of, read_traffic
from deployments.ingress.refusals import read_counts
from deployments.ingress.rewrite import RewriteError, rewrite

KEYS = f"{NODE}/keys.map"
CERTIFICATE, CLIENT_CA = f"{NODE}/site.pem", f"{NODE}/clients.pem"
TRAFFIC = f"{NODE}/traffic.map"
PEERS = f"{NODE}/peers.sock"
PEER, TEACHER = "sextet", "teacher"  # names of peers: HAProxy's own, and this script's
HELLO = f"HAProxyS 2.1\n{PEER}\n{TEACHER} 1 1\n".encode()
WELCOME, TEACH_ME, ALL_TAUGHT = b"200\n", b"\0\0", b"\0\1"  # of the peers protocol
TICK_S = 0.25
LINES_AT_ONCE = 100  # that fit into one command


class Copy:
    """A file of HAProxy's that follows files of the operator's."""

    def __init__(self, sources: tuple[str, ...], target: Path, read: Callable[..., bytes]) -> None:
        self.target = target
        self._sources, self._read = tuple(map(Path, sources)), read
        self._seen: object = None
        self._trouble = ""

    def update(self) -> bool:
        """Whether the copy was made anew, because the sources have changed."""
        seen = [_stamp(file) for file in self._sources]
        if seen == self._seen:
            return False
        try:
            content = self._read(*self._sources)
        except (OSError, ValueError, KeysError, TrafficError) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                print(f"not taken over: {error}", file=sys.stderr, flush=True)
            return False
        self._seen, self._trouble = seen, ""
        if self.target.exists() and self.target.read_bytes() == content:
            return False
        write_private(self.target, content)
        return True


def copies(settings: Settings, folder: Path) -> tuple[Copy | None, Copy | None, Copy | None, Copy | None]:
    """Those of keys, certificate, the authority of clients and shares, where there are such."""
    keys = Copy((settings.keys,), _in(folder, KEYS), _keys) if settings.keys else None
    pair = Copy(settings.certificate, _in(folder, CERTIFICATE), _certificate) if settings.certificate else None
    authority = Copy((settings.client_ca,), _in(folder, CLIENT_CA), _authority) if settings.client_ca else None
    traffic = Copy((settings.traffic,), _in(folder, TRAFFIC), _traffic) if settings.traffic else None
    return keys, pair, authority, traffic


def prepare(settings_file: str, config: str) -> None:
    """Make CONFIG and the copies; ends the process with a line where CONFIG is not what Ray should have written."""
    file, settings = Path(config), Settings.read(Path(settings_file))
    keys, certificate, authority, traffic = copies(settings, file.parent)
    if traffic is not None and not traffic.update() and not traffic.target.exists():
        write_private(traffic.target, b"")
    if keys is not None and not keys.update() and not keys.target.exists():
        write_private(keys.target, b"")  # nobody is let in, rather than everybody
    for one in (certificate, authority):
        if one is not None:
            one.update()
    written = file.read_text(encoding="utf-8")
    earlier = read_counts(_admin_socket(written))  # of the process that is to be replaced
    try:
        node, secret = str(file.parent), shared_secret() or "none"
        text = rewrite(with_grpc(written, settings), settings, node, secret, earlier)
    except RewriteError as error:
        sys.exit(f"{config}: {error}; this is not the configuration that the pinned version of Ray Serve writes")
    if text != written:  # else HAProxy starts again after its end: also where the disk is full
        write_private(file, text.encode())


def watch(settings_file: str, config: str, haproxy: str, replaces: str = "") -> None:
    """Run until the process `haproxy`, which started this one, has ended: perhaps before this one looks first.

    Each HAProxy has its own: after a reload several write to the admin socket, which belongs to the newest.
    """
    file, settings = Path(config), Settings.read(Path(settings_file))
    admin = _admin_socket(file.read_text(encoding="utf-8"))
    keys, certificate, authority, traffic = copies(settings, file.parent)
    told, is_taught = "", keys is None or bool(replaces)
    while os.getppid() == int(haproxy):
        is_taught = is_taught or _teach(_in(file.parent, PEERS))
        changed = [one.update() for one in (keys, certificate, authority, traffic) if one is not None]
        answering = _pid(admin)
        if answering and (any(changed) or answering != told):
            # A process may have read the copies just before they changed.
            done = (
                (keys is None or _tell_map(admin, keys.target))
                and (certificate is None or _tell_pem(admin, "cert", certificate.target))
                and (authority is None or _tell_pem(admin, "ca-file", authority.target))
                and (traffic is None or _tell_map(admin, traffic.target))
            )
            told = answering if done else ""
        time.sleep(TICK_S)


def _teach(peers: Path) -> bool:
    """Tell HAProxy that no peer has counts for it; whether it listened.

    It would wait five seconds for some, and a process that takes over meanwhile ten: until then neither hands its own
    counts on.
    """
    said = b""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(peers))
            connection.sendall(HELLO)
            while TEACH_ME not in said and (more := connection.recv(64)):
                said += more
            connection.sendall(ALL_TAUGHT)
            connection.recv(64)  # it confirms
    except OSError:  # it does not run yet, or waits for nothing any more
        pass
    return said.startswith(WELCOME)


def _tell_map(admin: Path, copy: Path) -> bool:
    """Replace HAProxy's map by the copy, in one step."""
    version = re.search(r"New version created: (\d+)", command(admin, f"prepare map {copy}"))
    if version is None:
        return False
    written, added = copy.read_text(encoding="ascii").splitlines(keepends=True), True
    entries = [line for line in written if line.strip() and not line.startswith("#")]
    for start in range(0, len(entries), LINES_AT_ONCE):
        lines = "".join(entries[start : start + LINES_AT_ONCE])
        added = added and not command(admin, f"add map @{version[1]} {copy} <<\n{lines}").strip()
    if added and not command(admin, f"commit map @{version[1]} {copy}").strip():
        return True
    command(admin, f"clear map @{version[1]} {copy}")
    return False


def _tell_pem(admin: Path, kind: str, copy: Path) -> bool:
    """Replace HAProxy's certificate, its key and its chain (`cert`), or its authorities (`ca-file`), in one step."""
    command(admin, f"set ssl {kind} {copy} <<\n{copy.read_text(encoding='ascii').strip()}\n")
    if "Success" in command(admin, f"commit ssl {kind} {copy}"):
        return True
    command(admin, f"abort ssl {kind} {copy}")
    return False


def _keys(file: Path) -> bytes:
    keys: list[Key] = read_keys(file)
    return text_of(keys).encode()


def _traffic(file: Path) -> bytes:
    return map_of(read_traffic(file))


def _certificate(certificate: Path, key: Path) -> bytes:
    """Both in one; raises OSError where they do not belong together."""
    import ssl  # which takes longer to import than everything else here

    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    return _pem(certificate, key)


def _authority(file: Path) -> bytes:
    """The certificates of a file; raises OSError or ValueError where there is none, or half of one."""
    import ssl

    content = _pem(file)
    if content.count(b"-----BEGIN ") != content.count(b"-----END "):
        raise ValueError(f"{file} ends inside a certificate")
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=content.decode("ascii"))
    return content


def _pem(*files: Path) -> bytes:
    """All in one, without empty lines, which would end a command on the admin socket."""
    lines = [line for file in files for line in file.read_text(encoding="ascii").splitlines()]
    return "".join(f"{line}\n" for line in lines if line.strip()).encode()


def _pid(admin: Path) -> str:
    found = re.search(r"^Pid: (\d+)", command(admin, "show info"), re.MULTILINE)
    return found[1] if found else ""


def _stamp(file: Path) -> object:
    """What differs after a file was replaced, also through links."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _admin_socket(text: str) -> Path:
    """That of a configuration; a path where nothing can be for one that has none."""
    found = re.search(r"^\s*stats socket (\S+) ", text, re.MULTILINE)
    return Path(found[1] if found else os.devnull)


def _in(folder: Path, name: str) -> Path:
    return Path(name.replace(NODE, str(folder)))


def main(what: str, *arguments: str) -> None:
    run: Callable[..., None] = {"prepare": prepare, "watch": watch}[what]  # type: ignore[assignment]
    run(*arguments)
