"""Generations of transformers: 4, for which Optimum's exporter is made, and 5, where new architectures appear.

One environment holds one of them: they ask for different releases of huggingface_hub. Which one this process has
decides which checkpoints it can load, and which exporter it can be (export/apart.py). Light: it imports no framework.
"""

from functools import cache
from importlib.metadata import version
from typing import get_args

from pipelines.runtime.artifact import Exporter

EXPORTERS: tuple[str, ...] = get_args(Exporter)
OPTIMUM, TRANSFORMERS5 = EXPORTERS


@cache
def exporter_here() -> str:
    """The exporter that this process can be."""
    return TRANSFORMERS5 if int(version("transformers").partition(".")[0]) >= 5 else OPTIMUM


def other_generation(model_type: str) -> str | None:
    """What a checkpoint needs whose architecture the transformers of this process does not know; None where no
    generation knows it.
    """
    if exporter_here() == OPTIMUM:
        return "transformers 5: `sextet export --exporter transformers5`" if model_type in ONLY_5.split() else None
    return "transformers 4: leave --exporter out" if model_type in ONLY_4.split() else None


ONLY_5 = """
afmoe apertus1p5_text audioflamingo3 axk1 axk2 bailing_hybrid beam cohere2_moe cohere_compass_text cwm deepseek_v32
deepseek_v4 dory dots3_note dots3_note_text esmc eurobert exaone exaone_moe flint gemma4 gemma4_assistant gemma4_text
gemma4_unified gemma4_unified_assistant gemma4_unified_text glm4_moe_lite glm_moe_dsa glmasr granite_speech_plus
granite_swa granitemoe_swa gte hrm_text hy_v3 hy_v4 hyperclovax inkling2_loop_text inkling2_text inkling_text
internlm3 iquestcoder jais2 jina_embeddings_v3 kimi_linear kolibri1 laguna lara_mini lfm2_moe lfm3 mellum
mimo_v2_flash minicpm3 minimax_m2 minimax_m3_vl_text ministral3 mistral4 modernvbert moss_transcribe_diarize
musicflamingo nanochat nemo_speechlm nemotron_h nomic_bert olmo_hybrid omniasr openai_privacy_filter qwen3_5
qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_asr qwen4_exp qwen4_exp_text sarvam_mla sarvam_moe solar_open t5gemma2
ultrabert ultravbert vibevoice_asr voxtral_realtime youtu zaya
"""
"""Architectures with a head for a task here that transformers 5.24.0 knows, and 4.57.6 does not."""
ONLY_4 = """
code_llama ernie_m gptsan-japanese mega nezha open-llama qdqbert speech_to_text_2 transfo-xl xlm-prophetnet
"""
"""And the other way round."""
