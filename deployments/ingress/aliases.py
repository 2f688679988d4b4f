"""Aliases: paths at the root that are other names of a task's own paths. HAProxy rewrites them (rewrite.py).

/v1/...                  /text-generation/v1/...          OpenAI's clients are given one base URL
/predict                 /text-classification/predict     as text-embeddings-inference serves it
/v2/models/<task>/...    /<task>/v2/models/<task>/...     the Open Inference Protocol names the model in the path
/models/<task>/...       /<task>/...                      as the Hugging Face Hub names models
"""

from deployments.ingress.rewrite import Alias
from pipelines.runtime.artifact import TASKS

ALIASES = (
    Alias("/v1", "text-generation", "/v1"),
    Alias("/predict", "text-classification", "/predict"),
    *(Alias(f"/v2/models/{task}", task, f"/v2/models/{task}") for task in TASKS),
    *(Alias(f"/models/{task}", task, "") for task in TASKS),
)


def of_path(path: str) -> tuple[str, str] | None:
    """The task that `path` is an alias of, and the path at that task; None for any other path."""
    for alias in ALIASES:
        if path == alias.root or path.startswith(f"{alias.root}/"):
            return alias.task, f"/{alias.task}{alias.below}{path[len(alias.root) :]}"
    return None
