"""Models: what the gateway answers about one model, and what the console's page of it shows.

    GET /catalog/<task>           the default model of a task
    GET /catalog/<task>/<model>   another one; an adapter is at the path of its base and its name

The artifact's card is Markdown that others wrote. It becomes HTML here: without raw HTML, without images, and with
links to http and https alone.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec
from markdown_it import MarkdownIt

from deployments.cluster.catalog import Standing
from deployments.config import model_of, route_of, task_of
from deployments.ingress.model_rules.traffic import PARTS, Split
from deployments.served import with_adapter
from pipelines.runtime.artifact import Parity

CARD_LEVEL = 2
"""Headings of a card stand so much deeper: they are parts of the page's section."""
MAX_NESTING = 20
"""Of lists and quotes: what is deeper is left out."""
KEPT = 64
"""Cards whose HTML is kept."""
_METADATA = re.compile(r"\A---\r?\n.*?^---\r?$\n?", re.DOTALL | re.MULTILINE)


class ServedModel(msgspec.Struct):
    """What a replica says of its model. `digest` is the sha256 of the manifest, `memory_bytes` is of one replica,
    `metrics` what `sextet evaluate` measured. `card` is Markdown, at most 64 KiB of `card_bytes`. An adapter has the
    id of its base as `adapter_of`, and as digest that of its weights; parity, metrics and card are the base's.
    """

    id: str
    version: str
    digest: str
    memory_bytes: int
    checkpoint: str
    revision: str | None
    base: str | None
    licence: str | None
    architecture: str
    precision: str
    device: str
    max_length: int
    labels: list[str]
    parity: Parity
    metrics: dict[str, Any]
    card: str
    card_bytes: int
    card_html: str = ""
    adapter_of: str | None = None
    rank: int | None = None


class ModelPage(msgspec.Struct):
    """One model of a task. `share` is the percentage of the requests to the task that it answers without being named;
    where `sticky`, each client always gets the same model. null: not known.
    """

    task: str
    name: str
    route: str
    ready: bool
    asleep: bool
    replicas: int
    share: float | None
    sticky: bool
    model: ServedModel | None


def model_page(
    application: str,
    standing: Standing,
    said: Mapping[str, Any] | None,
    split: Split | None,
    others: set[str],
    adapter: Mapping[str, Any] | None = None,
) -> ModelPage:
    """The page of a deployed application. `others` are the names of its task's models beside the default.

    With `adapter`, what the replica says of one of its adapters: the page of that.
    """
    if said is not None and adapter is not None:
        said = with_adapter(said, adapter)
    try:
        model = None if said is None else msgspec.convert(said, ServedModel)
    except msgspec.ValidationError:  # a replica of another release
        model = None
    if model is not None:
        model.card_html = html(model.card)
    name = adapter["name"] if adapter is not None else model_of(application) or application
    return ModelPage(
        task=task_of(application),
        name=name,
        route=route_of(application) + (f"/{name}" if adapter is not None else ""),
        ready=standing.is_ready,
        asleep=standing.asleep,
        replicas=standing.replicas,
        share=None if split is None else 0.0 if adapter is not None else _share(model_of(application), split, others),
        sticky=split is not None and split.sticky,
        model=model,
    )


def _share(name: str | None, split: Split, others: set[str]) -> float:
    """In percent. What the file gives to a model that is not deployed stays with the default."""
    given = {one: parts for one, parts in split.parts.items() if one in others}
    parts = PARTS - sum(given.values()) if name is None else given.get(name, 0)
    return 100 * parts / PARTS


@lru_cache(KEPT)
def html(card: str) -> str:
    """A card as HTML, without its metadata."""
    cards = _Cards("commonmark", {"html": False, "maxNesting": MAX_NESTING}).enable("table").disable("image")
    tokens = cards.parse(_METADATA.sub("", card))
    for opened, inside, closed in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if opened.type == "th_open" and not inside.content:  # a screen reader would announce a header without a name
            opened.tag = closed.tag = "td"
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + CARD_LEVEL)}"
        if style := token.attrs.pop("style", None):  # of a column, such as text-align:right; the page allows no styles
            token.attrSet("class", str(style).rpartition(":")[2])
        for one in token.children or ():
            if one.type == "link_open":
                one.attrSet("rel", "noopener noreferrer nofollow")
    written: str = cards.renderer.render(tokens, cards.options, {})
    return written


class _Cards(MarkdownIt):
    def validateLink(self, url: str) -> bool:  # noqa: N802
        """Paths would lead to the gateway's own pages, and other schemes run scripts or open programs."""
        return re.match(r"https?://", url, re.IGNORECASE) is not None
