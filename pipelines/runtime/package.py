"""The package of ONNX Runtime: `onnxruntime` for CPUs or `onnxruntime-gpu`, which install into one folder."""

from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pipelines.errors import ConfigurationError

PACKAGES = ("onnxruntime", "onnxruntime-gpu")
SOURCE_TREE = Path(__file__).parents[2]


def install_command(extras: str) -> str:
    """What installs Sextet with `extras`, such as `serve,gpu`: the source tree where this runs from one, else the
    package.
    """
    if (SOURCE_TREE / "pyproject.toml").is_file():
        return f"pip install -e '{SOURCE_TREE}[{extras}]'"
    return f"pip install 'sextet[{extras}]'"


def runtime_package() -> tuple[str, str]:
    """Name and version of the package that `import onnxruntime` reads, without importing it.

    Raises ConfigurationError where none is installed, and where both are: they overwrite each other's files, and
    uninstalling one takes files of the other.
    """
    spec = PathFinder.find_spec("onnxruntime")
    folder = Path(spec.origin).parent if spec and spec.origin else None  # without an __init__.py it is a mere rest
    found = {name: version for name, (version, place) in _installed().items() if folder in (None, place)}
    named = " and ".join(f"{name} {version}" for name, version in found.items())
    if len(found) > 1:
        raise ConfigurationError(f"{named} overwrite each other's files; {_remedy()}")
    if folder is None and found:
        raise ConfigurationError(
            f"{named} lacks files, as after another runtime beside it was uninstalled; {_remedy()}"
        )
    if folder is None:
        raise ConfigurationError(f"ONNX Runtime is not installed; {_either()}")
    if not found:  # built by hand, or under another name
        import onnxruntime

        return PACKAGES[0], str(onnxruntime.__version__)
    return next(iter(found.items()))


def _either() -> str:
    return f"{install_command('serve,cpu')} or, for GPUs, {install_command('serve,gpu')}"


def _remedy() -> str:
    return f"pip uninstall -y {' '.join(PACKAGES)}, then {_either()}"


def _installed() -> dict[str, tuple[str, Path]]:
    """Version and folder of each package that is on Python's path; two environments may each have one."""
    found = {}
    for name in PACKAGES:
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = (package.version, Path(str(package.locate_file("onnxruntime"))))
    return found
