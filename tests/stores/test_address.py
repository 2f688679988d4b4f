"""Addresses: a revision tells a repository from a folder, a scheme tells a URL."""

import pytest

from pipelines.errors import ConfigurationError
from stores.address import HubAddress, UrlAddress, remote

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize("name", ["models/x", "./models/x@y", "/models/x@y", "../a/b@c", "x", "a/b/c@d", "~/a/b@c"])
def test_a_path_is_a_folder(name: str) -> None:
    assert remote(name) is None


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1", "0" * 40])
def test_an_id_with_a_revision_is_a_repository_of_the_hub(revision: str) -> None:
    address = remote(f"some-one/bert.1@{revision}")

    assert address == HubAddress("some-one/bert.1", revision)
    assert str(address) == f"some-one/bert.1@{revision}"


@pytest.mark.parametrize("url", ["s3://bucket/a@b", "gs://bucket/a", "file:///srv/a", "memory://a", "abfs://c@h/a"])
def test_a_scheme_makes_a_url_and_a_digest_pins_it(url: str) -> None:
    assert remote(f"{url}/") == UrlAddress(url)
    assert remote(f"{url}@sha256:{DIGEST}") == UrlAddress(url, DIGEST)
    assert str(UrlAddress(url, DIGEST)) == f"{url}@sha256:{DIGEST}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/bert@", "someone/bert@ names no revision; allowed after the @: a commit, tag or branch"),
        ("s3://bucket/a@sha256:12", "s3://bucket/a@sha256:12: the digest is '12'; allowed: 64 hexadecimal digits"),
    ],
)
def test_a_malformed_address_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        remote(name)

    assert str(refused.value) == message
