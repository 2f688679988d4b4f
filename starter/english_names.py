"""English sentences with their names, for ner: made, because no English data with a clear licence is at hand.

Many of the sentences are Tatoeba's and name nobody, so that a capital alone is no name. In others of Tatoeba, persons
and places become other ones; the frames of ner/english.yaml have what Tatoeba lacks: organisations, dates, times and
quantities. Persons come from Faker. Some rows are then roughened as people write on the web.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from faker import Faker

WEB_SHARE = 0.35  # of the rows
LOCALES = ["en_US", "en_GB", "en_IN", "fr_FR", "es_ES", "de_DE", "it_IT"]
HANDLE = "abcdefghijklmnoprstuvwyzABCDMRST0123_"
WORDS: dict[str, list[str]] = yaml.safe_load((Path(__file__).parent / "ner" / "english.yaml").read_text("utf-8"))
SLOT = re.compile(r"\{([A-Z]+)\}")
Row = dict[str, Any]


def english_rows(sentences: Iterable[str], count: int, seed: int = 1) -> Iterator[Row]:
    """`count` rows, each a `text` of one to three sentences and its `entities` (`start`, `end`, `text`, `label`)."""
    dice = random.Random(seed)
    names = Names(dice)
    kinds = (*templates(sentences), WORDS["frames"])
    for _ in range(count):
        chosen = dice.choices(kinds, weights=(5, 3, 4), k=dice.choice((1, 1, 1, 2, 2, 3)))
        text, entities = filled(" ".join(dice.choice(kind) for kind in chosen), names)
        if dice.random() < WEB_SHARE:
            text, entities = on_the_web(text, entities, dice)
        yield {"text": text, "entities": entities}


def templates(sentences: Iterable[str]) -> tuple[list[str], list[str]]:
    """Sentences without any name, and sentences whose names have become slots; all others are left out."""
    sentences = sorted(set(sentences))
    small = Counter(word for sentence in sentences for word in re.findall(r"\b[a-z][a-z']*", sentence))
    slots = dict.fromkeys(WORDS["persons"], "{PER}") | dict.fromkeys(WORDS["places"], "{LOC}")
    timed = "|".join([*WORDS["months"], *WORDS["days"], *WORDS["numbers"], "Mr", "Mrs", "Ms", "Dr"])
    plain, named = [], []
    for sentence in sentences:
        two_capitals = re.search(r"[A-Z][\w'-]* [A-Z]", sentence.removeprefix("I "))
        if two_capitals or re.search(rf"\d|\b({timed})s?\b", sentence) or not re.search(r"[^\W\d_]", sentence):
            continue
        text = re.sub(r"\b[A-Z][a-z]+\b", lambda word: slots.get(word.group(), word.group()), sentence)
        capitals: list[str] = re.findall(r"(?<![{\w'-])[A-Z][\w'-]*", text)
        if capitals and sentence.startswith(capitals[0]) and small[capitals[0].lower()] >= 5:
            capitals = capitals[1:]  # a word like any other, at the start of the sentence
        if set(capitals) <= set(WORDS["no_names"]):
            (named if "{" in text else plain).append(text)
    return plain, named


class Names:
    """Draws what a slot stands for."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.faker = Faker(LOCALES)
        self.faker.seed_instance(dice.randrange(2**32))

    def draw(self, slot: str) -> str:
        """A name for {PER}, {LAST}, {LOC}, {ORG}, {DATE}, {TIME} or {QUANTITY}; KeyError for another slot."""
        one_of, number = self.dice.choice, self.dice.randint
        if slot == "PER":
            first, last = self.faker.first_name(), self.faker.last_name()
            return one_of((first, first, f"{first} {last}", f"{first} {last}", last))
        if slot == "LAST":
            return str(self.faker.last_name())
        if slot == "LOC":
            return one_of((one_of(WORDS["places"]), one_of(WORDS["places"]), one_of(WORDS["long_places"])))
        if slot == "ORG":
            made = SLOT.sub(lambda inner: self.draw(inner.group(1)), one_of(WORDS["organisation_frames"]))
            return one_of((one_of(WORDS["organisations"]), one_of(WORDS["organisations"]), made))
        if slot == "DATE":
            day, month, year = number(1, 28), one_of(WORDS["months"]), number(1850, 2025)
            weekday = one_of(WORDS["days"])
            return one_of((f"{month} {day}", f"{month} {year}", f"{month} {day}, {year}", str(year), weekday))
        if slot == "TIME":
            return f"{number(1, 12)}{one_of((':30', ':15', '', ':45'))}{one_of((' p.m.', ' am', ' pm'))}"
        if slot == "QUANTITY":
            how_many = one_of((str(number(2, 900)), f"{number(2, 90)} million", one_of(WORDS["numbers"])))
            counted = (f"{how_many} {one_of(WORDS['counted'])}", f"{how_many} {one_of(WORDS['counted'])}")
            return one_of((*counted, f"{number(2, 99)}%"))
        raise KeyError(slot)


def filled(template: str, names: Names) -> tuple[str, list[Row]]:
    text, entities, at = "", [], 0
    for slot in SLOT.finditer(template):
        text += template[at : slot.start()]
        name = names.draw(slot.group(1))
        if name.startswith("the "):
            text, name = f"{text}the ", name.removeprefix("the ")
        entities.append({"start": len(text), "end": len(text) + len(name), "text": name, "label": slot.group(1)})
        text, at = text + name, slot.end()
    return text + template[at:], entities


def on_the_web(text: str, entities: list[Row], dice: random.Random) -> tuple[str, list[Row]]:
    """The same, as people write there: handles, tags, links, no capitals, spaces around punctuation."""

    def dressed(form: str) -> str:
        handle = "".join(dice.choice(HANDLE) for _ in range(dice.randint(4, 11)))
        return form.format(handle=handle, tag=dice.choice(WORDS["tags"]))

    case = dice.choices((str, str.lower, str.upper), weights=(7, 2, 1))[0]
    labels = {entity["start"]: entity["label"] for entity in entities}
    cuts = sorted({0, len(text), *(end for one in entities for end in (one["start"], one["end"]))})
    built = dressed(dice.choice(WORDS["web_starts"])) if dice.random() < 0.5 else ""
    is_spaced, moved = dice.random() < 0.5, list[Row]()
    for start, end in pairwise(cuts):
        piece = case(text[start:end])
        if start in labels:
            where = {"start": len(built), "end": len(built) + len(piece)}
            moved.append({**where, "text": piece, "label": labels[start]})
        elif is_spaced:
            piece = re.sub(r"(?<=\w)([.,!?]|'\w+\b)", r" \1", piece)
            built += " " if moved and re.match(r"[.,!?']", piece) else ""
        built += piece
    return built + (dressed(dice.choice(WORDS["web_ends"])) if dice.random() < 0.5 else ""), moved
