"""What a container or a systemd unit may use: the limits of this process's cgroups, version 1 and 2."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 2**60
"""Version 1 writes about 2**63 bytes where memory has no limit."""


@dataclass(frozen=True)
class Cgroup:
    """The cgroups of `membership`, in the file systems below `root`. A limit of any of their parents counts too."""

    membership: Path = Path("/proc/self/cgroup")
    root: Path = Path("/sys/fs/cgroup")

    def cpus(self) -> float | None:
        """The smallest CPU quota, in cores; None without one."""
        quotas = []
        for folder in self._folders(""):
            quota, _, period = (_read(folder / "cpu.max") or "max").partition(" ")
            if quota != "max":
                quotas.append(int(quota) / int(period or 100_000))
        for folder in self._folders("cpu"):
            microseconds = int(_read(folder / "cpu.cfs_quota_us") or -1)
            if microseconds > 0:
                quotas.append(microseconds / int(_read(folder / "cpu.cfs_period_us") or 100_000))
        return min(quotas, default=None)

    def memory(self) -> Iterator[tuple[int, int]]:
        """Each limit with what is used of it, in bytes; cached files, which the kernel gives back, are not used."""
        for controller, limit_name, used_name in (
            ("", "memory.max", "memory.current"),
            ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            for folder in self._folders(controller):
                limit = _read(folder / limit_name) or "max"
                if limit != "max" and int(limit) < _UNLIMITED:
                    yield int(limit), int(_read(folder / used_name) or 0) - _reclaimable(folder)

    def _folders(self, controller: str) -> Iterator[Path]:
        """The folders of the process's cgroup and its parents; of version 2 for the controller ''."""
        for line in (_read(self.membership) or "").splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                top = self.root / controllers if controller else self.root
                top = top if top.is_dir() else self.root / controller
                inside = Path(path.lstrip("/"))
                yield from dict.fromkeys(top / one for one in (inside, *inside.parents))


def _reclaimable(folder: Path) -> int:
    counts = dict(line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
    return int(counts.get("inactive_file") or counts.get("total_inactive_file") or 0)


def _read(file: Path) -> str | None:
    with suppress(OSError):
        return file.read_text(encoding="utf-8").strip()
    return None
