"""`sextet serve`: check cluster.yaml, start Ray, deploy, wait until every task answers, serve, stop without a trace."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.request import Request

from deployments.ask import AskError, demonstrate, exchange
from deployments.cluster.local_ray import connected, environment, ray_metrics_url, started
from deployments.cluster.platform import Platform
from deployments.cluster.ports import check_port
from deployments.cluster.progress import Say, step
from deployments.cluster.ray_environment import ADDRESS_VARIABLE, tell_ingress
from deployments.cluster.signals import Signals, StopRequested
from deployments.config import (
    TaskConfig,
    deployment_of,
    located,
    model_of,
    set_drains,
    task_configs,
    task_of,
    user_configs,
)
from deployments.ingress import haproxy
from deployments.ingress.config import EVERY_NAME, Address, IngressConfig, http_options
from deployments.observability.ended_logs import remove_ended
from deployments.scaling.options import set_scaling, start_asleep
from pipelines.errors import ArtifactError, ConfigurationError, SextetError
from pipelines.generation.open import open_stack
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.probe import probe
from pipelines.runtime.providers import Device
from pipelines.runtime.session_config import SessionConfig
from pipelines.tasks import TASKS
from stores.fetch import fetch

HEARTBEAT_S = 0.2  # some hundred milliseconds later Ray aborts a process whose raylet has died
LOGS, LOGS_EVERY_S = "ray/session_latest/logs", 60.0
REACHABLE_S = 30.0  # how long HAProxy may take to learn of replicas that run


@dataclass(frozen=True)
class Launch:
    """A cluster.yaml and the options of the command line. `host` and `port` override the file's http_options.

    With `platform` the file is cut down to `task`, or to its only task, for a container of that platform.
    """

    cluster: Path
    host: str | None
    port: int | None
    say: Say
    platform: Platform | None = None
    task: str | None = None
    open_to_everybody: bool = False

    def ingress(self, content: dict[str, Any]) -> IngressConfig:
        """What guards it, for `content`; raises ConfigurationError where nothing does and others can reach it."""
        config = IngressConfig.of(located(self.cluster), self.cluster.parent)
        if self.platform is not None:  # its service is in front, authenticates, and asks under names of its own
            return replace(config, keys=None, open_to_everybody=True, hosts=(EVERY_NAME,), grpc_port=None)
        if self.open_to_everybody:
            config = replace(config, open_to_everybody=True)
        config.check(Address.of(content["http_options"]))
        config.check_shares([application["name"] for application in content["applications"]])
        return config

    def content(self) -> dict[str, Any]:
        """The file as it is now, its paths absolute; raises ConfigurationError."""
        content = located(self.cluster)
        set_scaling(content, self.cluster.resolve().parent)
        given = http_options(content)
        if self.platform is not None:
            content = self.platform.cut(content, self.task)
            given = content["http_options"]
        chosen = {key: value for key, value in (("host", self.host), ("port", self.port)) if value is not None}
        return content | {"http_options": given | chosen}


def serve(
    cluster: Path,
    host: str | None = None,
    port: int | None = None,
    address: str | None = None,
    platform: str | None = None,
    task: str | None = None,
    open_to_everybody: bool = False,
    progress: Say = print,
) -> None:
    """Serve `cluster` until SIGINT, SIGTERM or SIGHUP; at SIGUSR1, apply the file as it is then.

    With `address`, deploy onto that Ray cluster and return when it answers. `host` and `port` override the file's
    http_options. With `platform`, answer its contract for one task, on every interface. `open_to_everybody` waives keys
    where the ingress listens beyond loopback. Progress goes to `progress`;
    `ready URL`, and a question and its answer for each task, go to stdout. Raises a SextetError of one line, after
    everything that was started has ended.
    """
    if task is not None and platform is None:
        raise ConfigurationError("--task chooses what a container serves; it needs --platform")
    if platform is not None and address is not None:
        raise ConfigurationError("--platform is for a container of its own; leave --address out")
    contract = Platform.of(platform, os.environ) if platform is not None else None
    launch, signals = Launch(cluster, host, port, progress, contract, task, open_to_everybody), Signals()
    signals.install()
    try:
        if address is None:
            _serve_here(launch, signals)
        else:
            _deploy_there(launch, address)
    except (StopRequested, SystemExit):  # Ray turns a SIGTERM during its own start into SystemExit
        progress("stopped")
    except Exception:
        if not signals.stop_was_requested:
            raise
        progress("stopped")  # where a signal arrives in Ray's C++ code, Ray raises an error of its own


def _serve_here(launch: Launch, signals: Signals) -> None:
    content = launch.content()
    drain_s = set_drains(content)
    check_port(content["http_options"]["host"], content["http_options"]["port"])
    _check_devices(content, launch.say)
    _fetch_artifacts(content, launch.say)
    _tell_models_apart(content)
    ingress, address = launch.ingress(content), Address.of(content["http_options"])
    if ingress.grpc_port is not None:
        check_port(address.host, ingress.grpc_port, "grpc_port of the ingress")
    if haproxy.find_binary() is None:  # Ray Serve's Python proxy listens for gRPC on every interface
        ingress.check_grpc_options(content)
    with environment(ingress, address, launch.say, drain_s) as folder:
        from deployments.cluster.rollout import validated  # imports ray, which reads the environment

        config, reach = validated(_behind(content)), Reach(address.url(ingress), folder)
        tell_ingress(folder, content, drain_s)
        with started(folder, signals, launch.say) as ray:
            try:
                _roll_out(config, reach, launch.say, ray.raise_if_dead)
                ray.drain_s = drain_s
                launch.say(f"logs {folder / LOGS}")
                launch.say(f"metrics http://{os.environ[ADDRESS_VARIABLE]}/metrics")
                launch.say(f"Ray's own metrics {ray_metrics_url()}")
                if ingress.grpc_port is not None:
                    launch.say(f"gRPC {replace(address, port=ingress.grpc_port).text()}")
                _introduce(config, reach)
                logs, look_at = folder / LOGS, time.monotonic()
                while True:
                    ray.raise_if_dead()
                    if time.monotonic() >= look_at:
                        remove_ended(logs)
                        look_at += LOGS_EVERY_S
                    if signals.reload_was_requested():
                        ray.drain_s = max(ray.drain_s, _reload(launch, ingress, reach, ray.raise_if_dead))
                    time.sleep(HEARTBEAT_S)
            except StopRequested:
                launch.say(f"stopping: requests inside have {ray.drain_s:.0f} s; a second signal ends them")
                raise


def _deploy_there(launch: Launch, address: str) -> None:
    from deployments.cluster.rollout import validated

    content = launch.content()
    set_drains(content)
    _tell_models_apart(content)
    config, ingress = validated(content), launch.ingress(content)
    ingress.check_grpc_options(content)
    with connected(address):
        reach = Reach(Address.of(content["http_options"]).url(ingress), key=os.environ.get("SEXTET_KEY"))
        _roll_out(config, reach, launch.say, raise_if_dead=lambda: None)
        _introduce(config, reach)
    launch.say("the cluster keeps serving; `serve shutdown` takes it down")


def _reload(launch: Launch, ingress: IngressConfig, reach: "Reach", raise_if_dead: Callable[[], None]) -> float:
    """Apply the file as it is now. Where it is wrong, say why; the previous configuration goes on serving.

    Returns as long as requests may take under it at the end.
    """
    from deployments.cluster.rollout import reload_ingress, validated

    launch.say(f"reading {launch.cluster} again")
    try:
        content = launch.content()
        drain_s = set_drains(content)
        _check_devices(content, launch.say)
        _fetch_artifacts(content, launch.say)
        _tell_models_apart(content)
        if launch.ingress(content) != ingress:
            raise ConfigurationError("the ingress's settings have changed, which takes a restart of `sextet serve`")
        config = validated(_behind(content))
        if reach.folder is not None and tell_ingress(reach.folder, content, drain_s):
            reload_ingress()  # the processes that the rollout replaces are to know how long they may take
        _roll_out(config, reach, launch.say, raise_if_dead)
    except SextetError as error:
        launch.say(f"not applied: {error}")
        return 0.0
    launch.say(f"applied {launch.cluster}")
    return drain_s


@dataclass(frozen=True)
class Reach:
    """How the launcher asks the cluster: at its URL with a key, or through the sockets in the folder of its ingress."""

    url: str
    folder: Path | None = None
    key: str | None = None

    def through(self) -> Path | None:
        """The ingress's own socket, which asks for no key and no certificate."""
        return next(self.folder.rglob("ingress.sock"), None) if self.folder is not None else None

    def addresses(self, config: Any) -> dict[str, str]:
        """The URL of each task, then those of other models than the default, by application."""
        prefixes = {application.name: application.route_prefix for application in config.applications}
        names = [task for task in TASKS if task in prefixes]
        names += [name for name in prefixes if task_of(name) in TASKS and model_of(name) is not None]
        return {name: f"{self.url}{prefixes[name].rstrip('/')}" for name in names}

    def wait(self, url: str) -> None:
        """Wait until a request reaches the task's replica: a GET there is refused by the task itself."""
        give_up_at = time.monotonic() + REACHABLE_S
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        while True:
            try:
                status, _ = exchange(Request(url, headers=headers), 5.0, self.through())
            except AskError:
                status = 0
            if status == 405:
                return
            if status in (401, 403):
                raise ConfigurationError(f"{url} asks for a key; set SEXTET_KEY")
            if time.monotonic() > give_up_at:
                raise ConfigurationError(f"{url} does not reach its replica (last status {status})")
            time.sleep(0.1)


def _behind(content: dict[str, Any]) -> dict[str, Any]:
    """What Ray Serve is told: its own servers, replicas among them, listen where it thinks that the ingress does."""
    if haproxy.find_binary() is None:
        return content
    return content | {"http_options": content["http_options"] | {"host": "127.0.0.1"}}


def _roll_out(config: Any, reach: Reach, say: Say, raise_if_dead: Callable[[], None]) -> None:
    from deployments.cluster import rollout

    with step("deploying", say):
        rollout.deploy(config)
    rollout.wait(config, say, raise_if_dead)
    asleep = start_asleep(config.model_dump(exclude_unset=True))
    for name, url in reach.addresses(config).items():
        if name not in asleep:  # a request would wake it
            reach.wait(url)


def _introduce(config: Any, reach: Reach) -> None:
    """Print that the cluster is ready, and an answer of each task."""
    print(f"ready {reach.url}", flush=True)
    asleep = start_asleep(config.model_dump(exclude_unset=True))
    for task, url in reach.addresses(config).items():
        if task in asleep:
            print(f"{task}\n  asleep: its first request starts it", flush=True)
            continue
        try:
            answer = demonstrate(TASKS[task_of(task)], url, reach.key, reach.through())
        except AskError as error:  # the cluster serves nevertheless
            answer = f"no answer: {error}"
        print(f"{task}\n  {TASKS[task_of(task)].examples[0]}\n  -> {answer}", flush=True)


def _check_devices(content: dict[str, Any], say: Say) -> None:
    """Raise ConfigurationError for the first task whose device does not compute here, before anything is started."""
    devices: dict[Device, str] = {}
    for name, config in task_configs(content).items():
        devices.setdefault(config.device, name)
    for device, task in devices.items():
        if device != "cpu":
            with step(f"trying {device}", say):
                try:
                    probe(device)
                except ConfigurationError as error:
                    raise ConfigurationError(f"{task}: {error}") from None


def _fetch_artifacts(content: dict[str, Any], say: Say) -> None:
    """Fetch every artifact to this node and pin it in `content`: all replicas get the same one, also later ones.

    Raises ArtifactError or ConfigurationError for the first that cannot be fetched or that a replica would refuse.
    """
    given, tasks = user_configs(content), task_configs(content)
    errors = []
    with step(f"checking {len(tasks)} artifacts", say):
        for name, config in tasks.items():
            try:
                fetched, task = fetch(config.model, say), task_of(name)
                artifact = ModelArtifact.open(fetched.folder, task=task, allow_unverified=config.allow_unverified)
                artifact.check_device(config.device)
                if config.adapters:
                    open_stack(artifact, SessionConfig(config.device), config.adapter_folders)
                given[name]["model"] = fetched.pinned
            except ArtifactError as error:
                errors.append(error)
    if errors:
        others = f" (and {len(errors) - 1} more; `sextet export --all` makes what is missing)" if errors[1:] else ""
        raise ArtifactError(f"{errors[0]}{others}")


def _tell_models_apart(content: dict[str, Any]) -> None:
    """Have Ray Serve replace a replica whose model changes: the new one loads beside the old one, which answers.

    Ray Serve applies a change of user_config alone in the replica, and takes it out of HAProxy's list meanwhile. It
    replaces a replica where its ray_actor_options change. Some kilobytes more of reserved memory change nothing else.
    Where nodes may hold so many replicas and no more, there is no room beside the old ones: Ray Serve would wait for
    it for ever.
    """
    for task, user_config in user_configs(content).items():
        model = TaskConfig.from_user_config(user_config, task).of_model
        number = int.from_bytes(hashlib.sha256(repr(model).encode()).digest()[:2], "big")
        deployment = deployment_of(task, content)
        options = deployment.setdefault("ray_actor_options", {})
        options["memory"] = options.get("memory", 0) + number
        if "max_replicas_per_node" in deployment:
            deployment.setdefault("max_surge_percent", 0)
