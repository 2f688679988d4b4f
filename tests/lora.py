"""LoRA adapters of random weights on checkpoints, as PEFT saves them."""

from pathlib import Path
from typing import Any


def save_adapter(base: Path, folder: Path, seed: int = 1, **config: Any) -> Path:
    """Write an adapter that changes answers; `config` goes to PEFT's LoraConfig. Returns its folder."""
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    settings = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 4, "lora_alpha": 16} | config
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    torch.manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(folder)
    return folder


def adapted_model(base: Path, folder: Path) -> Any:
    """PEFT's own model of an adapter."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    return peft.PeftModel.from_pretrained(model, str(folder)).eval()
