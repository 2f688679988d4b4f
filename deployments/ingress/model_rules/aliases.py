"""Aliases: paths at the root that are other names of a task's own paths. HAProxy rewrites them (rewrite.py).

/v1/..., /predict        /<task>/v1/..., /<task>/predict   a task's `root_paths`: their clients take one URL
/v2/models/<task>/...    /<task>/v2/models/<task>/...      the Open Inference Protocol names the model in the path
/models/<task>/...       /<task>/...                       as the Hugging Face Hub names models

What Triton's clients ask about models goes to the gateway, wherever their URL leads them:

.../v2/models[/<model>]/stats, .../v2/repository/index
"""

from deployments.ingress.lines import Alias, Lines
from pipelines.tasks import TASKS


def aliases() -> tuple[Alias, ...]:
    """Those of all tasks."""
    return (
        *(Alias(path, name, path) for name, task in TASKS.items() for path in task.root_paths),
        *(Alias(f"/v2/models/{name}", name, f"/v2/models/{name}") for name in TASKS),
        *(Alias(f"/models/{name}", name, "") for name in TASKS),
    )


def of_the_gateway() -> Lines:
    """The rule for what is asked about models."""
    paths = "(repository/)?(models/(.+/)?stats|index)"
    is_one = "{ path_end /stats /v2/repository/index }"
    return Lines(frontend=(rf"http-request replace-path ^(/.*)?/v2/{paths}$ /v2/repository/\3 if {is_one}",))


def of_path(path: str) -> tuple[str, str] | None:
    """The task that `path` is an alias of, and the path at that task; None for any other path."""
    for alias in aliases():
        if path == alias.root or path.startswith(f"{alias.root}/"):
            return alias.task, f"/{alias.task}{alias.below}{path[len(alias.root) :]}"
    return None
