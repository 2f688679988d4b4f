"""Falcon's ALiBi on the plain graph, far beyond the positions that bfloat16 can tell apart."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from export.graphs.convert import convert
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.tiny_checkpoints import randomize

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter; `sextet export` keeps them quiet
HEADS, LAYERS, WIDTH = 6, 2, 96  # not a power of two: slopes of two kinds


def test_a_long_text_has_the_logits_of_pytorch_whose_bias_is_rounded(tmp_path: Path) -> None:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": 300}
    kind = {"alibi": True, "multi_query": False, "num_kv_heads": HEADS}
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon", **sizes, **kind)).eval()
    randomize(model)
    ids = np.random.default_rng(1).integers(3, 300, (2, 700))
    mask = np.ones_like(ids)
    mask[1, :350] = 0

    session = InferenceSession(convert(model, "text-generation", tmp_path)["model"], SessionConfig())
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(1) - 1, 0)}
    past = np.zeros((2, HEADS, 0, WIDTH // HEADS), np.float32)
    ours = session.run({name: feeds.get(name, past) for name in session.input_names})["logits"]

    with torch.no_grad():
        theirs = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
    np.testing.assert_allclose(ours[mask == 1], theirs[mask == 1], atol=2e-3)
