"""The unit of deploy/ as systemd reads it: whether a service that has ended is started again (systemd.service(5))."""

import signal
from configparser import ConfigParser

from benchmarks.figures.result import ROOT

UNIT = ROOT / "deploy" / "sextet.service"
CLEAN = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
AFTER = {
    "no": (),
    "on-success": ("success",),
    "on-failure": ("status", "signal"),
    "on-abnormal": ("signal",),
    "on-abort": ("signal",),
    "always": ("success", "status", "signal"),
}
"""By `Restart=`: the ends after which there is another start."""


def service() -> dict[str, str]:
    """The section [Service]."""
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    return dict(parser["Service"])


def is_started_again(status: int) -> bool:
    """After a launcher ended with `status`, which is negative where a signal ended it, as subprocess has it."""
    unit = service()
    if str(status) in unit.get("RestartPreventExitStatus", "").split():
        return False
    if str(status) in unit.get("RestartForceExitStatus", "").split():
        return True
    if status == 0 or -status in CLEAN:
        return "success" in AFTER[unit["Restart"]]
    return ("signal" if status < 0 else "status") in AFTER[unit["Restart"]]
