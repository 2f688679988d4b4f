"""Limits of cgroups, in both versions, as the kernel writes them."""

from pathlib import Path

from deployments.doctor.cgroup import Cgroup

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n", encoding="utf-8")


def test_version_2_counts_the_limits_of_parents_too(tmp_path: Path) -> None:
    write(tmp_path, {"membership": "0::/system.slice/sextet.service"})
    unit = "fs/system.slice/sextet.service"
    write(tmp_path, {f"{unit}/cpu.max": "max 100000", "fs/system.slice/cpu.max": "150000 100000"})
    write(tmp_path, {f"{unit}/memory.max": str(4 * GIB), f"{unit}/memory.current": str(3 * GIB)})
    write(tmp_path, {f"{unit}/memory.stat": f"anon {GIB}\ninactive_file {GIB}", "fs/system.slice/memory.max": "max"})
    cgroup = Cgroup(tmp_path / "membership", tmp_path / "fs")
    assert cgroup.cpus() == 1.5
    assert list(cgroup.memory()) == [(4 * GIB, 2 * GIB)]


def test_version_1_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    write(tmp_path, {"membership": "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc"})
    write(tmp_path, {"fs/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "50000"})
    write(tmp_path, {"fs/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"})
    write(tmp_path, {"fs/cpu,cpuacct/cpu.cfs_quota_us": "-1"})
    write(tmp_path, {"fs/memory/memory.limit_in_bytes": "9223372036854771712"})
    write(tmp_path, {"fs/memory/docker/abc/memory.limit_in_bytes": str(GIB)})
    write(tmp_path, {"fs/memory/docker/abc/memory.usage_in_bytes": str(GIB // 2)})
    cgroup = Cgroup(tmp_path / "membership", tmp_path / "fs")
    assert cgroup.cpus() == 0.5
    assert list(cgroup.memory()) == [(GIB, GIB // 2)]


def test_without_cgroups_nothing_is_limited(tmp_path: Path) -> None:
    cgroup = Cgroup(tmp_path / "absent", tmp_path)
    assert cgroup.cpus() is None
    assert list(cgroup.memory()) == []
