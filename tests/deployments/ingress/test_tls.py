"""TLS at the real HAProxy: HTTP/2, clients' certificates, and a certificate that is renewed while it runs."""

import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.ingress.config import Address, IngressConfig, TlsConfig
from pipelines.errors import ConfigurationError
from tests.certificates import Authority
from tests.deployments.ingress.running import Running, running

TASK = "/text-classification"
PATIENCE_S = 15.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority.make(tmp_path_factory.mktemp("authority"))
    made.issue("client", "client")
    return made


@pytest.fixture
def pair(authority: Authority, tmp_path: Path) -> tuple[Path, Path]:
    """Certificate and key, in files that a test may change."""
    return renew(authority, tmp_path)


def renew(authority: Authority, folder: Path) -> tuple[Path, Path]:
    """A new certificate and its key, as an ACME client would put them there: one after the other."""
    authority.issue("site", "localhost")
    for end in ("pem", "key"):
        beside = folder / f"site.{end}.new"
        beside.write_bytes((authority.folder / f"site.{end}").read_bytes())
        beside.replace(folder / f"site.{end}")
    return folder / "site.pem", folder / "site.key"


def tls(pair: tuple[Path, Path], authority: Authority | None = None, **options: str) -> IngressConfig:
    ca = str(authority.folder / "ca.pem") if authority else None
    return IngressConfig(tls=TlsConfig(str(pair[0]), str(pair[1]), ca, **options))  # type: ignore[arg-type]


@pytest.fixture
def ingress(pair: tuple[Path, Path], tmp_path: Path) -> Iterator[Running]:
    (tmp_path / "node").mkdir()
    with running(tmp_path / "node", tls(pair)) as started:
        yield started


def connect(ingress: Running, authority: Authority, client: str | None = None, *protocols: str) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(authority.folder / "ca.pem"))
    if client:
        context.load_cert_chain(authority.folder / f"{client}.pem", authority.folder / f"{client}.key")
    context.set_alpn_protocols(protocols or ["http/1.1"])
    return context.wrap_socket(
        socket.create_connection((ingress.host, ingress.port), timeout=30), server_hostname="localhost"
    )


def status(ingress: Running, authority: Authority, client: str | None = None) -> bytes:
    """The status of an answer; empty where the connection ended without one."""
    try:
        with connect(ingress, authority, client) as connection:
            connection.sendall(b"GET %s HTTP/1.1\r\nhost: localhost\r\n\r\n" % TASK.encode())
            return connection.recv(65536)[9:12]
    except (ssl.SSLError, ConnectionResetError):
        return b""


def serial(ingress: Running, authority: Authority) -> str:
    """That of the certificate that the ingress shows."""
    with connect(ingress, authority) as connection:
        return str((connection.getpeercert() or {})["serialNumber"])


def test_it_speaks_http_2_and_1_over_tls_and_neither_without(ingress: Running, authority: Authority) -> None:
    url, ca = f"https://localhost:{ingress.port}{TASK}", str(authority.folder / "ca.pem")
    curl = ["curl", "--silent", "--cacert", ca, "--output", "/dev/null", "--write-out", "%{http_version} %{http_code}"]

    assert subprocess.run([*curl, "--http2", url], capture_output=True, text=True).stdout == "2 200"
    assert subprocess.run([*curl, "--http1.1", url], capture_output=True, text=True).stdout == "1.1 200"
    assert not ingress.raw(b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_it_refuses_old_versions(ingress: Running, authority: Authority) -> None:
    old = ["openssl", "s_client", "-connect", f"127.0.0.1:{ingress.port}", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]

    assert subprocess.run(old, stdin=subprocess.DEVNULL, capture_output=True).returncode != 0
    with connect(ingress, authority) as connection:
        assert connection.version() == "TLSv1.3"


def test_a_renewed_certificate_is_shown_without_a_restart_and_after_a_reload(
    ingress: Running, authority: Authority, pair: tuple[Path, Path]
) -> None:
    before, processes = serial(ingress, authority), [one.pid for one in ingress.processes]
    with connect(ingress, authority) as kept:
        renew(authority, pair[0].parent)
        wait_for_another(ingress, authority, before)
        kept.sendall(b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")  # a connection stays as it began

    assert [one.pid for one in ingress.processes] == processes
    renewed = serial(ingress, authority)
    ingress.reload()
    assert serial(ingress, authority) == renewed


def test_a_certificate_without_its_key_changes_nothing_until_the_key_is_there(
    ingress: Running, authority: Authority, pair: tuple[Path, Path]
) -> None:
    before = serial(ingress, authority)
    authority.issue("other", "localhost")
    pair[0].write_bytes((authority.folder / "other.pem").read_bytes())

    time.sleep(1)
    assert serial(ingress, authority) == before
    ingress.reload()
    assert serial(ingress, authority) == before
    pair[1].write_bytes((authority.folder / "other.key").read_bytes())
    wait_for_another(ingress, authority, before)


def wait_for_another(ingress: Running, authority: Authority, before: str) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while serial(ingress, authority) == before:
        assert time.monotonic() < give_up_at
        time.sleep(0.1)


def test_the_copy_of_the_private_key_is_the_owners(ingress: Running) -> None:
    assert (ingress.folder / "site.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("option", "without"), [("required", b""), ("optional", b"200")])
def test_clients_may_need_a_certificate(
    authority: Authority, pair: tuple[Path, Path], tmp_path: Path, option: str, without: bytes
) -> None:
    folder, foreign = tmp_path / "node", tmp_path / "foreign"
    folder.mkdir()
    foreign.mkdir()
    Authority.make(foreign).issue("stranger", "stranger")
    for end in ("pem", "key"):
        (authority.folder / f"stranger.{end}").write_bytes((foreign / f"stranger.{end}").read_bytes())
    with running(folder, tls(pair, authority, client_certificates=option)) as ingress:
        assert status(ingress, authority, "client") == b"200"
        assert status(ingress, authority) == without
        assert status(ingress, authority, "stranger") == b""


def test_another_authority_of_clients_holds_without_a_restart_and_half_of_one_changes_nothing(
    authority: Authority, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, foreign, ca = tmp_path / "node", tmp_path / "foreign", tmp_path / "clients.pem"
    folder.mkdir()
    foreign.mkdir()
    own = (authority.folder / "ca.pem").read_bytes()
    other = Authority.make(foreign)
    other.issue("stranger", "stranger")
    for end in ("pem", "key"):
        (authority.folder / f"stranger.{end}").write_bytes((foreign / f"stranger.{end}").read_bytes())
    ca.write_bytes(own)
    config = IngressConfig(tls=TlsConfig(str(pair[0]), str(pair[1]), str(ca)))

    def until_answered(ingress: Running, client: str) -> None:
        give_up_at = time.monotonic() + PATIENCE_S
        while status(ingress, authority, client) != b"200":
            assert time.monotonic() < give_up_at
            time.sleep(0.1)

    with running(folder, config) as ingress:
        processes = [one.pid for one in ingress.processes]
        ca.write_bytes((foreign / "ca.pem").read_bytes())
        until_answered(ingress, "stranger")
        assert status(ingress, authority, "client") == b""
        for damaged in (own[: len(own) // 2], b"", (foreign / "ca.pem").read_bytes() + own[:200]):
            ca.write_bytes(damaged)
            time.sleep(1)
            assert (status(ingress, authority, "stranger"), status(ingress, authority, "client")) == (b"200", b"")
        assert [one.pid for one in ingress.processes] == processes
        ingress.reload()
        assert (status(ingress, authority, "stranger"), status(ingress, authority, "client")) == (b"200", b"")
        ca.write_bytes(own)
        until_answered(ingress, "client")


def test_an_authority_that_is_none_is_said_before_anything_starts(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nAA", encoding="ascii")
    config = IngressConfig(tls=TlsConfig(str(pair[0]), str(pair[1]), str(tmp_path / "ca.pem")))

    with pytest.raises(ConfigurationError, match="ca.pem has no certificates of an authority in PEM"):
        config.check(Address("127.0.0.1", 8000))


def test_a_file_that_is_missing_is_said_before_anything_starts(pair: tuple[Path, Path]) -> None:
    address = Address("127.0.0.1", 8000)

    tls(pair).check(address)
    with pytest.raises(ConfigurationError, match="ingress: /nowhere cannot be read"):
        tls((pair[0], Path("/nowhere"))).check(address)
    with pytest.raises(ConfigurationError, match="site.pem is not the key of"):
        tls((pair[0], pair[0])).check(address)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com"])
def test_an_address_that_others_reach_needs_keys_or_a_waiver(host: str, tmp_path: Path) -> None:
    (tmp_path / "keys").touch()
    address = Address(host, 8000)

    with pytest.raises(ConfigurationError, match="would listen on .* without keys; set .* or say --open-to-everybody"):
        IngressConfig().check(address)
    IngressConfig(open_to_everybody=True).check(address)
    IngressConfig(keys=str(tmp_path / "keys")).check(address)
    for loopback in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        IngressConfig().check(Address(loopback, 8000))
