"""The command line of the GPU's measurements; deploy/gpu/proof.sh runs each phase within its time.

python -m benchmarks.suites.gpu models encoders generators report --output FOLDER
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from benchmarks import Say
from benchmarks.figures.result import IN_SOURCE_TREE
from benchmarks.load.asker import HOST
from benchmarks.suites.cluster import CLASSIFY
from benchmarks.suites.gpu import encoders, generators
from benchmarks.suites.gpu.models import Models
from benchmarks.suites.gpu.phase import QUICK, Pace, Setting
from benchmarks.suites.gpu.verdict import report
from benchmarks.suites.shapes import FOLDER
from benchmarks.suites.suite import say
from deployments.cluster.ray_environment import spare_port
from pipelines.errors import SextetError


def models(setting: Setting, say: Say) -> None:
    """Make all artifacts, and the cluster.yaml that `encoders` serves, for the doctor."""
    setting.models.ensure(say)
    configuration = setting.cluster({CLASSIFY.name: setting.models.artifact(setting.models.encoder)}, setting.replicas)
    configuration["http_options"] = {"host": HOST, "port": int(spare_port())}
    (FOLDER / "cluster.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")


PHASES: Mapping[str, Callable[[Setting, Say], None]] = {
    "models": models,
    "encoders": encoders.run,
    "generators": generators.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suites.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("phases", nargs="+", choices=[*PHASES, "report"], metavar="PHASE")
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
            if phase in PHASES:
                PHASES[phase](setting, say)
        met = "report" not in args.phases or report(setting, publish=args.device != "cpu" and not args.quick)
    except SextetError as error:
        sys.exit(f"gpu: {error}")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
