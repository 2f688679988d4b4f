"""What this process may use of the machine, and which of it is too little."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deployments.doctor.cgroup import Cgroup
from deployments.doctor.finding import GIB, MIB
from deployments.doctor.machine import Capacity, cpu_flags, disk, disks, instructions, machine
from deployments.ingress.config import ConnectionLimits

HERE = Path.cwd()


def test_this_machine_has_all_lines_and_their_numbers() -> None:
    capacity = Capacity.read(Cgroup())
    findings = {one.name: one for one in machine(capacity, ConnectionLimits(max_connections=10), HERE)}
    assert list(findings)[:5] == ["system", "cores", "memory", "instructions", "open files"]
    assert findings["cores"].facts["present"] == os.cpu_count()
    assert 0 < findings["memory"].facts["available_bytes"] <= findings["memory"].facts["total_bytes"]
    total_kib = int(Path("/proc/meminfo").read_text().split()[1])
    assert findings["memory"].facts["total_bytes"] <= total_kib * 1024
    assert findings["open files"].facts["connections"] == 10


LOOK = """
import json, os, resource, sys
from pathlib import Path
from deployments.doctor.machine import *
from deployments.ingress.config import ConnectionLimits
{limit}
for one in machine(Capacity.read(Cgroup()), ConnectionLimits(max_connections=10_000), Path(".")):
    if one.name == {name!r}: print(json.dumps([one.level, one.text, dict(one.facts)]))
"""


def limited(limit: str, name: str) -> Any:
    """Level, text and facts of a finding in a process that has limited itself."""
    program = LOOK.format(limit=limit, name=name)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_allowed_cores_are_fewer_than_those_that_ray_counts() -> None:
    level, text, facts = limited("os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])", "cores")
    assert facts["usable"] <= 1
    if facts["counted_by_ray"] > 1:
        assert level == "warning"
        assert ", of which this process may use " in text


def test_few_open_files_are_fewer_connections() -> None:
    level, text, facts = limited("resource.setrlimit(resource.RLIMIT_NOFILE, (3000, 3000))", "open files")
    assert level == "warning"
    assert 0 < facts["connections"] < 3000 == facts["limit"]
    assert text == f"3,000, for {facts['connections']:,} connections at once"


def test_instruction_sets_have_the_names_that_people_use() -> None:
    found = instructions({"avx2", "avx512f", "avx512_vnni", "sse2"}, "x86_64")
    assert (found.level, found.text) == ("ok", "avx2 avx512 vnni (without bf16 amx)")
    arm = instructions({"asimddp", "i8mm"}, "aarch64")
    assert (arm.level, arm.text) == ("ok", "dotprod i8mm (without bf16 sve)")


@pytest.mark.parametrize(("flags", "missing"), [({"avx2", "avx512f"}, "int8 may saturate"), ({"sse2"}, "slower")])
def test_instruction_sets_that_are_missed_are_a_warning(flags: set[str], missing: str) -> None:
    found = instructions(flags, "x86_64")
    assert found.level == "warning"
    assert missing in found.remedy


def test_the_flags_are_those_of_the_kernel() -> None:
    assert cpu_flags() <= set(Path("/proc/cpuinfo").read_text().split())
    assert cpu_flags()


def test_places_on_one_disk_are_one_line(tmp_path: Path) -> None:
    found = list(disks({"artifacts": tmp_path / "not" / "there", "sessions": tmp_path, "memory": Path("/dev/shm")}))
    holding = {tuple(one.facts["holds"]): one for one in found}
    here = holding[f"artifacts in {tmp_path}/not/there", f"sessions in {tmp_path}"]
    assert here.facts["total_bytes"] == shutil.disk_usage(tmp_path).total
    assert ("memory in /dev/shm",) in holding


@pytest.mark.parametrize(
    ("total", "free", "level"),
    [
        (100 * GIB, 50 * GIB, "ok"),
        (100 * GIB, 4 * GIB, "warning"),
        (10 * GIB, 900 * MIB, "warning"),
        (100 * GIB, 99 * MIB, "error"),
    ],
)
def test_a_full_disk_is_told_before_ray_meets_it(total: int, free: int, level: str) -> None:
    assert disk(total, free, ["caches in /c"]).level == level


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_warning() -> None:
    found = next(iter(disks({"caches": Path("/proc/1")})))
    assert found.level == "warning"
