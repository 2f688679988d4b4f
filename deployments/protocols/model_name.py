"""The name of a model in a body, of protocols whose clients send one: OpenAI's and Cohere's.

HAProxy leads a request to the model that its body names (ingress/model_rules), as far as it reads the body and knows
the name. The replica that it comes to decides about the rest.
"""

from collections.abc import Mapping

from deployments.config import DEFAULT
from deployments.http.errors import MovedError, RouteNotFoundError
from deployments.http.request import DRAWN_HEADER, OTHERS_HEADER
from deployments.protocols.protocol import Protocol
from pipelines.misfit import shown

MAX_CHARACTERS = 1024


def require_model(protocol: Protocol, path: str, name: str | None, headers: Mapping[str, str]) -> None:
    """Raise RouteNotFoundError for a model that the task does not have, where it has adapters, or the ingress says that
    it has others. Where it has one model, any name is that: clients that know no names send "dummy".

    MovedError for one that is elsewhere, at `path` below it: the ingress has sent a request there, unless the body is
    larger than what it looks at. Where it drew this model for a share, only the default knows whether there is one of
    that name.
    """
    task, listed = protocol.pipeline.task, headers.get(OTHERS_HEADER)
    named = (protocol.pipeline.artifact.name, task, *protocol.adapted)
    if (listed is None and not protocol.adapted) or name is None or name in named:
        return
    others = [] if listed is None else listed.split()
    if name in others or DRAWN_HEADER in headers:
        where = name if name in others else DEFAULT
        raise MovedError(f"the model {shown(name)} is elsewhere", f"/{task}/{where}{path}")
    raise RouteNotFoundError(f"there is no model {shown(name)}; allowed: {', '.join((*named, *others))}")
