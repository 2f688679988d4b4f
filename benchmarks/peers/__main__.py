"""The command line of the peers: install them, list what is there.

The requirements of a peer are complete, so pip resolves nothing and brings no package that they do not name: no CUDA
for servers that run on a CPU. How an installation ended is kept beside it, and `list` shows it.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import Say
from benchmarks.peers.catalog import PEERS
from benchmarks.peers.peer import Installed, PeerError
from benchmarks.peers.writers import WRITERS


def install(peers: Sequence[Installed], say: Say) -> None:
    """Install each anew; raises PeerError at the end for those that failed."""
    failed = []
    for peer in peers:
        if peer.needs:
            say(f"{peer.name}: uses the project's own environment")
            continue
        say(f"{peer.name}: installing into {peer.environment}")
        _run([sys.executable, "-m", "venv", "--clear", str(peer.environment)])
        reason = _run([str(peer.python), "-m", "pip", "install", "--no-deps", "-r", str(peer.requirements)])
        peer.installation.write_text(f"cannot be installed: {reason}\n" if reason else "", encoding="utf-8")
        if reason:
            failed.append(f"{peer.name} ({reason})")
    if failed:
        raise PeerError(f"not installed: {'; '.join(failed)}")


def _run(command: list[str]) -> str | None:
    """The last line of what a failed command said; None for one that succeeded."""
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode == 0:
        return None
    lines = [line for line in finished.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"status {finished.returncode}"


ALL = (*PEERS, *WRITERS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Other servers of the same model.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="each peer, what it serves, and whether it can run here")
    installing = commands.add_parser("install", help="make the environments of peers under .peers/")
    installing.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    args = parser.parse_args()
    if args.command == "list":
        for peer in ALL:
            print(f"{peer.name:24}{peer.missing() or 'ready':60}{peer.serves}")
        return
    unknown = set(args.names) - {peer.name for peer in ALL}
    if unknown:
        parser.error(f"no peer is named {', '.join(sorted(unknown))}; allowed: {', '.join(one.name for one in ALL)}")
    try:
        named = [peer for peer in ALL if not args.names or peer.name in args.names]
        install([peer for peer in named if peer.installed_as is None], print)
    except PeerError as error:
        sys.exit(f"peers: {error}")


if __name__ == "__main__":
    main()
