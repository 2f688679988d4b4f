"""Routes: what a task answers below its prefix, path by path; it depends on the task and on the model that is loaded.

POST /                             the Hugging Face task API
POST /v2/models/{task}/infer       the Open Inference Protocol; GET /v2... describes the model
POST /predict                      text-embeddings-inference's, of text-classification
POST /v1/chat/completions ...      OpenAI's, of text-generation; GET /v1/models names the model
POST, GET                          the predict route and the health route of a platform, where the container is for one
"""

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from starlette.requests import Request

from deployments.cluster.platform import Platform
from deployments.http.errors import RouteNotFoundError
from deployments.http.request import require_method, route_of
from deployments.protocols.huggingface import HuggingFace
from deployments.protocols.open_inference import VERSION, OpenInference, model_metadata, server_metadata
from deployments.protocols.protocol import Protocol
from pipelines.tasks.pipeline import Pipeline
from pipelines.tasks.text_classification import TextClassificationPipeline
from pipelines.tasks.text_generation import TextGenerationPipeline

READING = "GET, HEAD"


class Routes:
    """`protocols` answer what is posted to their path; `pages` are JSON that only a new model changes."""

    def __init__(self, pipeline: Pipeline[Any, Any, Any, Any], platform: Platform | None = None) -> None:
        self.task = pipeline.task
        self.native = HuggingFace(pipeline)
        self.protocols: dict[str, Protocol] = {"/": self.native}
        self.pages: dict[str, Any] = {}
        self._add_open_inference(pipeline)
        if isinstance(pipeline, TextClassificationPipeline):
            from deployments.protocols.text_embeddings_inference import Predict

            self.protocols["/predict"] = Predict(pipeline)
        if isinstance(pipeline, TextGenerationPipeline):
            self._add_openai(pipeline)
        if platform is not None:
            self._add_platform(pipeline, platform)

    def protocol(self, request: Request) -> Protocol | None:
        """What answers a POST; None where a page is. Raises RouteNotFoundError, and for a wrong method."""
        path = route_of(request)
        if (found := self.protocols.get(path)) is not None:
            require_method(request, "POST")
            return found
        if path in self.pages:
            require_method(request, READING)
            return None
        raise RouteNotFoundError(f"{request.url.path} does not exist; allowed: {', '.join(self._listed())}")

    def page(self, request: Request) -> Any:
        """The JSON of a path that `protocol` found to be a page."""
        return self.pages[route_of(request)]

    def dialect(self, request: Request) -> Protocol:
        """The protocol whose errors a client at this path understands."""
        path = route_of(request)
        if path.startswith("/v1/"):
            return self.protocols.get(path) or self.protocols.get("/v1/completions", self.native)
        return self.protocols.get(path, self.native)

    def _listed(self) -> Iterator[str]:
        for path in self.protocols:
            yield f"POST /{self.task}{path.rstrip('/')}"
        for path in self.pages:
            yield f"GET /{self.task}{path}"

    def _add_open_inference(self, pipeline: Pipeline[Any, Any, Any, Any]) -> None:
        protocol, model = OpenInference(pipeline), f"/v2/models/{self.task}"
        for base in (model, f"{model}/versions/{VERSION}"):
            self.protocols[f"{base}/infer"] = protocol
            self.pages[base] = model_metadata(self.task)
            self.pages[f"{base}/ready"] = {"name": self.task, "ready": True}
        self.pages["/v2"] = server_metadata(version("sextet"))
        self.pages["/v2/health/live"] = {"live": True}
        self.pages["/v2/health/ready"] = {"ready": True}

    def _add_platform(self, pipeline: Pipeline[Any, Any, Any, Any], platform: Platform) -> None:
        from deployments.protocols.sagemaker import Invocations
        from deployments.protocols.vertex_ai import Predictions

        protocol = Invocations if platform.name == "sagemaker" else Predictions
        self.protocols[platform.predict_route] = protocol(pipeline)
        self.pages[platform.health_route] = {"status": "ready"}

    def _add_openai(self, pipeline: TextGenerationPipeline) -> None:
        from deployments.protocols.openai.chat import ChatCompletions
        from deployments.protocols.openai.chat_template import ChatTemplate
        from deployments.protocols.openai.completions import Completions
        from deployments.protocols.openai.protocol import model_card
        from pipelines.tasks.completion import CompletionPipeline

        manifest, completion = pipeline.artifact.manifest, CompletionPipeline(pipeline)
        template = manifest.chat_template and ChatTemplate(manifest.chat_template, pipeline.generator.tokenizer)
        self.protocols["/v1/chat/completions"] = ChatCompletions(completion, template or None)
        self.protocols["/v1/completions"] = Completions(completion)
        card = model_card(manifest)
        self.pages["/v1/models"] = {"object": "list", "data": [card]}
        self.pages[f"/v1/models/{card['id']}"] = card
