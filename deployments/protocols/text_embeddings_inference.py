"""The `/predict` of text-embeddings-inference, for text-classification.

    {"inputs": text | [text, second text] | [[text] or [text, second text], ...], "raw_scores", "truncate"}

One text, or one pair, is answered by its labels, best first; a list of lists by a list of those. As there, a text that
is too long is refused unless `truncate` is true.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deployments.http.request import decode_json
from deployments.protocols.protocol import Protocol, Reply, TaskRequest, json_reply
from pipelines.errors import InputTooLongError, InvalidInputError
from pipelines.runtime.tokenizer import TextOrPair
from pipelines.schema import shown
from pipelines.tasks.text_classification import TextClassificationPipeline

_KEYS = ("inputs", "raw_scores", "truncate", "truncation_direction")
_ALLOWED = "a text, a pair of texts, or a list of lists of one or two"


class Predict(Protocol):
    """`POST /predict`."""

    pipeline: TextClassificationPipeline

    def read(self, body: bytes, headers: Mapping[str, str]) -> TaskRequest:
        given = decode_json(body)
        if not isinstance(given, Mapping):
            raise InvalidInputError(f"the body is {shown(given)}; allowed: an object with inputs")
        for name, value in given.items():
            if name not in _KEYS:
                raise InvalidInputError(f"the body has the key {shown(name)}; allowed: {', '.join(_KEYS)}")
            if name in ("raw_scores", "truncate") and value is not None and not isinstance(value, bool):
                raise InvalidInputError(f"{name} is {shown(value)}; allowed: true or false")
        direction = given.get("truncation_direction")
        if direction is not None and (not isinstance(direction, str) or direction.lower() != "right"):
            raise InvalidInputError(f"truncation_direction is {shown(direction)}; allowed: right")
        inputs = given.get("inputs")
        many = inputs if isinstance(inputs, list) and inputs and all(isinstance(one, list) for one in inputs) else []
        texts = [_text(one) for one in many] or [_text(inputs)]
        if not given.get("truncate"):
            self._require_length([self.pipeline.parse(one) for one in texts])
        parameters = {"function_to_apply": "none"} if given.get("raw_scores") else {}
        return TaskRequest(texts, bool(many), parameters)

    def write(self, request: TaskRequest, answers: Sequence[Any]) -> Reply:
        return json_reply(list(answers) if request.is_list else answers[0])

    def _require_length(self, texts: Sequence[TextOrPair]) -> None:
        """Raise InputTooLongError for the first that the model would not read to its end."""
        most = self.pipeline.tokenizer.settings.max_length
        # No token is shorter than a byte, and a handful of special ones are added.
        long = [text for text in texts if len("".join(text).encode()) + 8 > most]
        for encoding in self.pipeline.tokenizer.encode(long, offsets=False) if long else ():
            if len(encoding.ids) > most:
                raise InputTooLongError(
                    f"inputs has {len(encoding.ids)} tokens; allowed: at most {most}, or truncate: true"
                )


def _text(given: Any) -> Any:
    """One text, or a pair of them, as text-classification takes it."""
    texts = given if isinstance(given, list) else [given]
    if not 1 <= len(texts) <= 2 or not all(isinstance(text, str) and text for text in texts):
        raise InvalidInputError(f"inputs is {shown(given)}; allowed: {_ALLOWED}, none of them empty")
    return texts[0] if len(texts) == 1 else {"text": texts[0], "text_pair": texts[1]}
