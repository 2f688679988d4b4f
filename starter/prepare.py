"""Turn the public data sets that the starter weights are trained on into the files that the recipes name.

    python starter/prepare.py DATA runs/data
    python starter/prepare.py DATA runs/data --pieces    writes starter/encoder/pieces.txt as well: another encoder, for
                                                         which every adapter has to be trained again

DATA holds one folder per data set (nsmc, sst2, klue_ner, qamr, tatoeba_eng_fra), as listed in each starter's card.
Every split is a function of the text alone (`held_out`), so it does not change with the order or size of the data.
"""

import gzip
import hashlib
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from english_names import english_rows

from checkpoints.gguf import GgufFile
from checkpoints.starters.e5 import PackedE5, tokenizer_of
from checkpoints.starters.smollm2 import packaged_file

ENTITY_TYPES = {"PS": "PER", "LC": "LOC", "OG": "ORG", "DT": "DATE", "TI": "TIME", "QT": "QUANTITY"}
SST2 = ("stsa.binary.train", "stsa.binary.dev")
ENGLISH_NER_ROWS = 9_000
QAMR_TRAIN_ROWS = 6_000
KOREAN_QUESTIONS = {  # the word for what is asked for, then ends of a question
    "PER": ("누구", "사람은?", "인물은?", "사람은 누구인가?", "사람의 이름은?"),
    "LOC": ("어디", "곳은?", "장소는?", "곳은 어디인가?", "지역은?"),
    "ORG": ("어디", "곳은?", "단체는?", "기관은 어디인가?", "회사는?"),
    "DATE": ("언제", "날은?", "때는?", "때는 언제인가?", "시기는?"),
    "TIME": ("몇 시", "시간은?", "때는?", "때는 언제인가?", "몇 시인가?"),
    "QUANTITY": ("몇", "수는?", "얼마인가?", "몇 명인가?", "얼마나 되는가?"),
}
MAX_SOURCE_WORDS = 10  # an hour of training is enough for short sentences
MAX_TRANSLATIONS = 2  # of one English sentence: "Run!" has a dozen, and a model asked for all of them learns none


def unit(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def held_out(text: str, share: float) -> bool:
    """Whether the text belongs to the validation split, a `share` (0..1) of all texts."""
    return unit(text) < share


def lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    with gzip.open(path, "rt", encoding=encoding) as file:
        for line in file:
            yield line.rstrip("\n")


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows)} rows")


SPACES = (  # what a tokenizer put in, and people do not write: " ." "do n't" "( a )"
    (re.compile(r" (?=[.,:;!?%)\]}]|'(?:s|m|d|re|ve|ll)\b|n't\b)"), ""),
    (re.compile(r"(?<=[(\[{$]) "), ""),
    (re.compile(r"\b(can|Can|gon|wan) (?=not\b|na\b)"), r"\1"),
)


def detokenized(text: str) -> str:
    """The sentence without the spaces of Penn-style tokens; quotes are paired from the left."""
    text = text.replace("``", '"').replace("''", '"').replace("-LRB-", "(").replace("-RRB-", ")")
    for pattern, replacement in SPACES:
        text = pattern.sub(replacement, text)
    parts = text.split('"')
    quoted = (part.strip() if index % 2 and index < len(parts) - 1 else part for index, part in enumerate(parts))
    return re.sub(r" +", " ", '"'.join(quoted)).strip()


def folded(text: str) -> str:
    """The words alone: what two spellings of one sentence share."""
    return re.sub(r"\W+", " ", text.lower()).strip()


def sentiment(data: Path, output: Path) -> None:
    """NSMC (Korean, 2% held out) and MR rt-polarity (English, 10% held out).

    SST-2 is only measured on: the sentences of its train and dev files that are held-out ones of MR, with SST's labels.
    """
    names = {"0": "negative", "1": "positive"}
    korean = [line.split("\t") for line in lines(data / "nsmc" / "train.tsv.gz")][1:]
    korean_rows = sorted(((text, names[label]) for _, text, label in korean), key=lambda row: unit(row[0]))
    english = {name: list(_labelled(data / "sst2" / f"{name}.gz", names)) for name in ("rt-polarity.all", *SST2)}
    unseen = {folded(text) for text, _ in english["rt-polarity.all"] if held_out(text, 0.1)}
    sst2 = {folded(text): (text, label) for name in SST2 for text, label in english[name]}
    files = {
        "train.ko": [row for row in korean_rows if not held_out(row[0], 0.02)],
        "train.en": [row for row in english["rt-polarity.all"] if folded(row[0]) not in unseen],
        "validation.ko": [row for row in korean_rows if held_out(row[0], 0.02)],
        "validation.en": [row for row in english["rt-polarity.all"] if held_out(row[0], 0.1)],
        "validation.sst2": [row for key, row in sst2.items() if key in unseen],
    }
    for name, rows in files.items():
        write(output / "sentiment" / f"{name}.jsonl", ({"text": text, "label": label} for text, label in rows))


def _labelled(path: Path, names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Sentences after the digit of their label."""
    for line in lines(path, encoding="latin-1"):
        yield detokenized(line[2:]), names[line[0]]


def entities(characters: list[str], tags: list[str]) -> list[dict[str, Any]]:
    """Character-level BIO to spans: start and end in characters, end exclusive."""
    spans: list[dict[str, Any]] = []
    for index, tag in enumerate(tags):
        if tag.startswith("B-"):
            spans.append({"start": index, "end": index + 1, "label": ENTITY_TYPES[tag[2:]]})
        elif tag.startswith("I-"):
            spans[-1]["end"] = index + 1
    return [span | {"text": "".join(characters[span["start"] : span["end"]])} for span in spans]


def klue_sentences(data: Path) -> list[dict[str, Any]]:
    """KLUE-NER dev: `text` and its `entities`."""
    rows, characters, tags = [], [], []
    for line in [*lines(data / "klue_ner" / "klue-ner-v1.1_dev.tsv.gz"), ""]:
        if line and not line.startswith("## "):
            character, tag = line.rsplit("\t", 1)
            characters.append(character)
            tags.append(tag)
        elif characters and not line:
            rows.append({"text": "".join(characters), "entities": entities(characters, tags)})
            characters, tags = [], []
    return rows


def ner(data: Path, output: Path) -> None:
    """KLUE-NER dev (Korean), 10% of the sentences held out; and sentences with names made from Tatoeba's (English)."""
    rows = klue_sentences(data)
    write(output / "ner" / "train.ko.jsonl", (row for row in rows if not held_out(row["text"], 0.1)))
    write(output / "ner" / "validation.jsonl", (row for row in rows if held_out(row["text"], 0.1)))
    sentences = (line.split("\t")[0] for line in lines(data / "tatoeba_eng_fra" / "fra.txt.gz"))
    write(output / "ner" / "train.en.jsonl", english_rows(sentences, ENGLISH_NER_ROWS))


def qa(data: Path, output: Path) -> None:
    """QAMR dev (English): 10% of the articles held out; and questions made from KLUE-NER's sentences (Korean).

    A context is one sentence, of which a quarter is the answer: up to three others around it make the model search.
    QAMR's questions are about few sentences, so that of the training ones QAMR_TRAIN_ROWS are enough.
    """
    articles: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines(data / "qamr" / "dev.jsonl.gz"):
        row = json.loads(line)
        articles[":".join(row["id"].split(":")[1:3])].append(row)
    dice = random.Random(1)
    for split, share in (("train", False), ("validation", True)):
        chosen = [row for name, rows in articles.items() if held_out(name, 0.1) is share for row in rows]
        contexts = sorted({detokenized(row["context"]) for row in chosen})
        examples = []
        for row in chosen:
            context, answer = detokenized(row["context"]), detokenized(row["answers"]["text"][0])
            starts = [match.start() for match in re.finditer(re.escape(answer), context)]
            if not starts:
                continue  # the spaces of the answer and of the context were closed differently
            start = min(starts, key=lambda start: abs(start - row["answers"]["answer_start"][0]))
            passage = among_others(dice, context, answer, start, contexts)
            examples.append({"id": row["id"], "question": detokenized(row["question"]), **passage})
        dice.shuffle(examples)
        name = "train.en" if split == "train" else "validation.en"
        write(output / "qa" / f"{name}.jsonl", examples[:QAMR_TRAIN_ROWS] if split == "train" else examples)
    sentences = [row for row in klue_sentences(data) if not held_out(row["text"], 0.1)]
    contexts = sorted({row["text"] for row in sentences})
    examples = []
    for row in sentences:
        for number, entity in enumerate(dice.sample(row["entities"], min(2, len(row["entities"])))):
            question = korean_question(dice, row["text"], entity)
            if question is not None:
                passage = among_others(dice, row["text"], entity["text"], entity["start"], contexts)
                examples.append({"id": f"klue:{len(examples)}:{number}", "question": question, **passage})
    dice.shuffle(examples)
    write(output / "qa" / "train.ko.jsonl", examples)
    write(output / "qa" / "validation.ko.jsonl", korquad(data))  # never trained on: its licence allows no derivatives


def korquad(data: Path) -> Iterator[dict[str, Any]]:
    (text,) = lines(data / "korquad_eval" / "korquad1_dev_first70.json.gz")
    for article in json.loads(text)["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = {key: [answer[key] for answer in question["answers"]] for key in ("text", "answer_start")}
                asked = {"id": question["id"], "question": question["question"]}
                yield {**asked, "context": paragraph["context"], "answers": answers}


def among_others(dice: random.Random, sentence: str, answer: str, start: int, contexts: list[str]) -> dict[str, Any]:
    """`context` and `answers`: the sentence with up to three others before and after it."""
    around = [other for other in dice.sample(contexts, dice.choice((0, 1, 1, 2, 3))) if other != sentence]
    before = around[: dice.randint(0, len(around))]
    start += sum(len(other) + 1 for other in before)
    text = " ".join([*before, sentence, *around[len(before) :]])
    return {"context": text, "answers": {"text": [answer], "answer_start": [start]}}


def korean_question(dice: random.Random, text: str, entity: dict[str, Any]) -> str | None:
    """Some of the words around the entity, and what is asked for in its place or at the end; None: too few words."""
    before, after = text[: entity["start"]], text[entity["end"] :]
    glued = "" if before.endswith(" ") or not before else before.split()[-1]
    particle, *following = after.split() if after and not after[0].isspace() else ["", *after.split()]
    preceding = before.split()[:-1] if glued else before.split()
    preceding, following = preceding[-dice.randint(2, 7) :], following[: dice.randint(2, 7)]
    kept = lambda words: [word for word in words if re.search(r"\w", word) and dice.random() > 0.15]  # noqa: E731
    left, right = kept(preceding), kept(following)
    if len(left) + len(right) < 3:
        return None
    word, *endings = KOREAN_QUESTIONS[entity["label"]]
    if dice.random() < 0.5:
        return " ".join([*left, glued + word + particle.rstrip(".,"), *right]).strip() + "?"
    return " ".join([*left, *right, dice.choice(endings)])


def translation(data: Path, output: Path) -> None:
    """Tatoeba English-French, short sentences: 2% of the English ones held out, without case and punctuation.

    A training pair whose French is a held-out reference is dropped too: "I'm tired." must not teach "I am tired."
    """
    pairs = [line.split("\t")[:2] for line in lines(data / "tatoeba_eng_fra" / "fra.txt.gz")]
    train, validation = [], {}
    for english, french in pairs:
        french = french.replace("\u202f", " ").replace("\xa0", " ").strip()
        if held_out(folded(english), 0.02):
            validation.setdefault(folded(english), (english, french))
        else:
            train.append((english, french))
    references = {folded(french) for _, french in validation.values()}
    kept: dict[str, list[str]] = defaultdict(list)
    short = lambda english: len(english.split()) <= MAX_SOURCE_WORDS  # noqa: E731
    for english, french in train:
        if short(english) and folded(french) not in references and french not in kept[english]:
            kept[english].append(french)
    as_rows = lambda pairs: ({"source": source, "target": target} for source, target in pairs)  # noqa: E731
    write(
        output / "translation/train.jsonl",
        as_rows((english, french) for english, all_french in kept.items() for french in all_french[:MAX_TRANSLATIONS]),
    )
    write(output / "translation/validation.jsonl", as_rows(pair for pair in validation.values() if short(pair[0])))


def pieces(output: Path) -> None:
    """starter/encoder/pieces.txt: what the encoder keeps of its 250,002 pieces, for English and Korean.

    Those that the prepared texts use at least twice, those that SmolLM2's English vocabulary has too, all of Hangul,
    and every single character but Chinese ones.
    """
    packed = PackedE5.find()
    tokenizer = tokenizer_of(packed, range(len(packed.pieces)))
    used: Counter[int] = Counter()
    for file in sorted(output.glob("*/*.jsonl")):
        rows = [json.loads(line) for line in file.open(encoding="utf-8")]
        texts = [row[field] for field in ("text", "source", "question", "context") for row in rows if field in row]
        used.update(chain.from_iterable(tokenizer(list(dict.fromkeys(texts)))["input_ids"]))
    tokens = GgufFile(packaged_file()).metadata["tokenizer.ggml.tokens"]
    english = {token.replace("Ġ", "▁") for token in tokens}
    kept = [
        piece
        for index, piece in enumerate(packed.pieces)
        if used[index] >= 2
        or piece in english
        or re.fullmatch(r"▁?([가-힣]*|[^\u2e80-\u2fff\u3400-\u9fff\uf900-\ufaff])", piece)
    ]
    path = Path(__file__).with_name("encoder") / "pieces.txt"
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    print(f"{path}: {len(kept)} pieces")


if __name__ == "__main__":
    for prepare in (sentiment, ner, qa, translation):
        prepare(Path(sys.argv[1]), Path(sys.argv[2]))
    if sys.argv[3:] == ["--pieces"]:
        pieces(Path(sys.argv[2]))
