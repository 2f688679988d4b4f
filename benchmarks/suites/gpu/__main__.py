"""The command line of the GPU's measurements; deploy/gpu/proof.sh runs each phase within its time.

python -m benchmarks.suites.gpu models encoders generators report --output FOLDER
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import Say
from benchmarks.figures.result import IN_SOURCE_TREE
from benchmarks.suites.gpu import encoders, generators
from benchmarks.suites.gpu.models import Models
from benchmarks.suites.gpu.phase import QUICK, Pace, Setting
from benchmarks.suites.gpu.verdict import report
from benchmarks.suites.suite import say
from pipelines.errors import SextetError

MEASUREMENTS: Mapping[str, Callable[[Setting, Say], None]] = {
    "models": lambda setting, say: setting.models.ensure(say),
    "encoders": encoders.run,
    "generators": generators.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suites.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("phases", nargs="+", choices=[*MEASUREMENTS, "report"], metavar="PHASE")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, required=True, help="the folder of the results of all phases")
    parser.add_argument("--quick", action="store_true", help="tiny models and short windows: whether it works")
    parser.add_argument("--no-peers", action="store_true", help="leave out what it is compared with")
    args = parser.parse_args()
    if not IN_SOURCE_TREE:
        sys.exit("gpu: needs the source tree, whose cluster.yaml it serves; an installation has `sextet bench`")
    args.output.mkdir(parents=True, exist_ok=True)
    models = Models.of(args.device, quick=args.quick)
    setting = Setting(args.device, models, QUICK if args.quick else Pace(), args.output.resolve(), not args.no_peers)
    try:
        for phase in args.phases:
            if phase in MEASUREMENTS:
                MEASUREMENTS[phase](setting, say)
        met = "report" not in args.phases or report(setting, publish=args.device != "cpu" and not args.quick)
    except SextetError as error:
        sys.exit(f"gpu: {error}")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
