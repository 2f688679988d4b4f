"""The command line of the peers: install them, list what is there."""

import argparse
import sys

from benchmarks.peers.catalog import PEERS
from benchmarks.peers.installation import install
from benchmarks.peers.peer import PeerError
from benchmarks.peers.servers import WRITER_SERVERS
from benchmarks.peers.writers import WRITERS

ALL = (*PEERS, *WRITERS, *WRITER_SERVERS)


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
