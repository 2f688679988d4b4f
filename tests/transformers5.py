"""Checkpoints of architectures that transformers 5 alone has, and what its own models answer.

They are written and asked in the environment of the exporter transformers5, by a process that this module is, too:

python -m tests.transformers5 < requests.json > answers.json
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.inside import ROOT, installed, python_of
from tests.known_models import ANSWER, CLASSIFY, GENERATE, TAG, KnownModel

PYTHON = python_of("transformers5")
_LONG = {"max_position_embeddings": 512}
_LLAMA4 = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 32}
_LLAMA4 |= {"llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0}
ENCODERS = (
    KnownModel("EuroBERT/EuroBERT-210m", "eurobert", CLASSIFY, "bert"),
    KnownModel("alibaba-nlp-community/gte-multilingual-base", "gte", CLASSIFY, "xlm-roberta"),
    KnownModel("nomic-ai/nomic-embed-text-v1.5", "nomic_bert", TAG, "bert"),
    KnownModel("jinaai/jina-embeddings-v3-hf", "jina_embeddings_v3", ANSWER, "xlm-roberta"),
    KnownModel("dmis-lab/UltraBERT-150M", "ultrabert", ANSWER, "bert"),
)
DECODERS = (
    KnownModel("LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct", "exaone", GENERATE, "llama", _LONG),
    KnownModel("naver-hyperclovax/HyperCLOVAX-SEED-Think-14B", "hyperclovax", GENERATE, "llama",
               _LONG | {"attention_multiplier": 0.2, "logits_scaling": 3.0, "residual_multiplier": 0.5}),
    KnownModel("mistralai/Ministral-3-8B-Base-2512", "ministral3", GENERATE, "llama",
               _LONG | {"rope_parameters": _LLAMA4}),
    KnownModel("karpathy/nanochat-d32", "nanochat", GENERATE, "llama", _LONG),
    KnownModel("internlm/internlm3-8b-instruct", "internlm3", GENERATE, "llama", _LONG),
    KnownModel("facebook/cwm", "cwm", GENERATE, "llama", _LONG | {"sliding_window": 16}),
    KnownModel("inceptionai/Jais-2-8B-Chat", "jais2", GENERATE, "llama", _LONG),
    KnownModel("IQuestLab/IQuest-Coder-V1-40B-Instruct", "iquestcoder", GENERATE, "llama", _LONG),
    KnownModel("google/gemma-4-e2b-it", "gemma4_text", GENERATE, "llama",
               _LONG | {"head_dim": 16, "vocab_size_per_layer_input": 2000, "hidden_size_per_layer_input": 16},
               says="its layers have different heads", refused=True),
    KnownModel("Qwen/Qwen3.5-27B", "qwen3_5_text", GENERATE, "llama",
               _LONG | {"layer_types": ["linear_attention", "linear_attention", "full_attention"]},
               says="(linear_attention)", refused=True),
)  # fmt: skip
KNOWN_MODELS = (*ENCODERS, *DECODERS)
"""Of each kind, the architectures for the tasks here that people know."""


@dataclass(frozen=True)
class Request:
    """A checkpoint to write into `folder`, and what to ask of it; `tokenizer` is a folder with one."""

    architecture: str
    task: str
    tokenizer: str
    folder: str
    config: dict[str, Any]
    texts: Sequence[str] = ()
    new_tokens: int = 0

    @classmethod
    def of(cls, known: KnownModel, folder: Path, **asked: Any) -> "Request":
        from tests.tiny_checkpoints import tokenizer_of

        tokenizer, place = tokenizer_of(known.tokenizer), folder.with_name(f"{folder.name}-tokenizer")
        tokenizer.save_pretrained(place)
        return cls(known.architecture, known.task, str(place), str(folder), known.settings(tokenizer), **asked)


def answered(requests: Sequence[Request]) -> list[Any]:
    """Write the checkpoints, and return what transformers 5 answers to each text: logits by name, the ids that a
    decoder-only model writes, or the text that an encoder-decoder does.
    """
    process = subprocess.run(
        [str(installed("transformers5")), "-m", "tests.transformers5"],
        input=json.dumps([asdict(one) for one in requests]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    answers: list[Any] = json.loads(process.stdout.splitlines()[-1])
    return answers


def _answers(request: Request) -> Any:
    import torch
    from transformers import AutoTokenizer

    from tests.model_types import tiny_config
    from tests.tiny_checkpoints import model_class_of, randomize

    folder = Path(request.folder)
    shutil.copytree(request.tokenizer, folder, dirs_exist_ok=True)
    config = tiny_config(request.architecture, **_with_labels_by_number(request.config))
    torch.manual_seed(sum(map(ord, request.architecture)))
    auto = model_class_of(config, request.task)
    model = auto.from_config(config).eval()
    randomize(model)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)  # after the config, which decides of which class it is
    model = auto.from_pretrained(folder).eval()
    given = [tokenizer(one, return_tensors="pt") for one in request.texts]
    if not model.can_generate():
        with torch.no_grad():
            return [{name: one.tolist() for name, one in model(**texts).items()} for texts in given]
    long = {"do_sample": False, "min_new_tokens": request.new_tokens, "max_new_tokens": request.new_tokens}
    found = [model.generate(**texts, **long)[0] for texts in given]
    if config.is_encoder_decoder:
        return [tokenizer.decode(ids, skip_special_tokens=True) for ids in found]
    return [ids[texts.input_ids.shape[1] :].tolist() for ids, texts in zip(found, given, strict=True)]


def _with_labels_by_number(config: dict[str, Any]) -> dict[str, Any]:
    """JSON makes texts of numbers that are keys."""
    labels = config.get("id2label")
    return config if labels is None else config | {"id2label": {int(number): label for number, label in labels.items()}}


if __name__ == "__main__":
    print(json.dumps([_answers(Request(**one)) for one in json.load(sys.stdin)]))
