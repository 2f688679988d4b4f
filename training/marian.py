"""A Marian translation model from scratch: a small encoder-decoder with a vocabulary that is trained on its data."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece
from transformers import GenerationConfig, MarianConfig, MarianMTModel, MarianTokenizer

from training.recipe import MarianArgs

EOS, UNKNOWN, PAD = "</s>", "<unk>", "<pad>"


def create(args: MarianArgs, texts: Iterable[str], directory: Path) -> tuple[MarianMTModel, MarianTokenizer]:
    """An untrained model and its tokenizer, whose one vocabulary for both languages is trained on `texts`.

    Writes source.spm, target.spm and vocab.json into `directory`, or reads them if they are there: a resumed run keeps
    the ids of its pieces.
    """
    if not (directory / "vocab.json").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        _train_vocabulary(args.vocab_size, iter(texts), directory)
    tokenizer = MarianTokenizer(
        *(str(directory / name) for name in ("source.spm", "target.spm", "vocab.json")),
        source_lang=args.source_lang,
        target_lang=args.target_lang,
        model_max_length=args.max_length,
        separate_vocabs=False,
    )
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=args.d_model,
        encoder_layers=args.encoder_layers,
        decoder_layers=args.decoder_layers,
        encoder_attention_heads=args.attention_heads,
        decoder_attention_heads=args.attention_heads,
        encoder_ffn_dim=args.ffn_dim,
        decoder_ffn_dim=args.ffn_dim,
        dropout=args.dropout,
        # Embeddings of unit scale after scale_embedding. With the default of 0.02, position embeddings outweigh those
        # of tokens, and the decoder learns to ignore the encoder.
        init_std=args.d_model**-0.5,
        activation_function="swish",
        max_position_embeddings=args.max_length,
        scale_embedding=True,
        forced_eos_token_id=tokenizer.eos_token_id,
        **special,
    )
    model = MarianMTModel(config)
    model.generation_config = GenerationConfig(
        max_length=args.max_length,
        num_beams=args.num_beams,
        bad_words_ids=[[tokenizer.pad_token_id]],
        forced_eos_token_id=tokenizer.eos_token_id,
        **special,
    )
    return model, tokenizer


def _train_vocabulary(size: int, texts: Iterator[str], directory: Path) -> None:
    """Unigram pieces for both languages; ids in Marian's order: </s>, <unk>, the pieces, <pad>."""
    prefix = directory / "joint"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts,
        model_prefix=str(prefix),
        vocab_size=size,
        character_coverage=1.0,
        bos_id=-1,
        eos_id=0,
        unk_id=1,
        pad_id=-1,
        hard_vocab_limit=False,  # a tiny corpus has fewer pieces
        minloglevel=2,
    )
    model = prefix.with_suffix(".model").read_bytes()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = {pieces.id_to_piece(index): index for index in range(len(pieces))} | {PAD: len(pieces)}
    (directory / "source.spm").write_bytes(model)
    (directory / "target.spm").write_bytes(model)
    prefix.with_suffix(".model").unlink()
    prefix.with_suffix(".vocab").unlink()
    # Written last: its presence tells that the other files are complete.
    (directory / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0), encoding="utf-8")
