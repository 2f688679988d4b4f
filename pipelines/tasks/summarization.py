"""Summarization: a text becomes a shorter one."""

from typing import TypedDict

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.stopping import StopCriterion
from pipelines.generation.text.sentence_end import SentenceEnd
from pipelines.schema import Text
from pipelines.tasks.task import Example, Task
from pipelines.tasks.text2text import HEAD, Text2TextParameters, Text2TextPipeline


class Summary(TypedDict):
    """One summary."""

    summary_text: str


class SummarizationPipeline(Text2TextPipeline[Text2TextParameters]):
    """An instruct model's summary ends with its first sentence, unless `min_length` or `min_new_tokens` asks for more:
    such models are seldom brief by themselves.
    """

    task = "summarization"
    parameters_type = Text2TextParameters
    answer_key = "summary_text"

    def _ends_at(self, prompt_tokens: int, config: GenerationConfig) -> StopCriterion | None:
        return SentenceEnd(self.tokenizer.decode, prompt_tokens, max(prompt_tokens, config.min_length))


TASK = Task(
    name=SummarizationPipeline.task,
    pipeline=SummarizationPipeline,
    head=HEAD,
    title={"en": "Summarization", "ko": "요약"},
    summary={"en": "Says the same in fewer words.", "ko": "같은 내용을 더 짧게 씁니다."},
    examples=(
        Example(
            "en",
            "The Suwon Hwaseong Fortress was built between 1794 and 1796 under King Jeongjo of the Joseon dynasty. Its "
            "wall is 5.7 kilometres long and has four gates. The architect Jeong Yak-yong designed a crane that lifted "
            "stones of seven tonnes. The fortress became a UNESCO World Heritage Site in 1997.",
            {"truncation": "longest_first", "generate_parameters": {"max_new_tokens": 64}},
        ),
        Example(
            "ko",
            "수원 화성은 조선 정조 때인 1794년부터 1796년 사이에 지어졌다. 성벽의 길이는 5.7킬로미터이고 네 개의 문이 "
            "있다. 정약용은 무거운 돌을 들어 올리는 거중기를 설계했다. 화성은 1997년에 유네스코 세계유산이 되었다.",
            {"truncation": "longest_first", "generate_parameters": {"max_new_tokens": 64}},
        ),
    ),
    input_type=Text,
    answer_type=list[Summary],
    columns=("source", "target"),
    in_words=lambda answer: " ".join(answer[0][SummarizationPipeline.answer_key].split()),
    generates=True,
    tensor="array_inputs",
    generate_key="generate_parameters",
    instruction="Summarize the following text in one or two short sentences.\n\n{text}",
    client="summarization",
    form=("truncation", "generate_parameters.max_new_tokens"),
)
