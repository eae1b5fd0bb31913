"""Who and what a story is about: names, kinds, pronouns and properties that stay the same in it.

Takes the word tables and a plot's `cast:` line; gives an object that fills `{slot}` marks from
left to right, so that a character is introduced ("Pip the mouse") at its first mention only.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from backgpt.corpus.grammar import pick

Tables = Mapping[str, Sequence[str]]

_SLOT = re.compile(r"\{(\w+)(\+|(?:\.\w+))?\}")
_PRONOUNS = {
    "he": dict(he="he", him="him", his="his", himself="himself"),
    "she": dict(he="she", him="her", his="her", himself="herself"),
}
_ELDERS = {"mom": "she", "dad": "he", "grandma": "she", "grandpa": "he"}
_ALWAYS_SHE = {"old woman", "cow"}
_ALWAYS_HE = {"old man", "young man", "fireman", "postman", "bull", "ox"}
_CHARACTERS = {"any", "child", "animal", "newcomer", "small_animal", "big_animal"}


@dataclass
class Slot:
    """One bound slot: the text of `{slot}`, of `{slot+}` and of each `{slot.form}`."""

    plain: str
    detailed: str
    forms: dict[str, str] = field(default_factory=dict)
    introduction: str | None = None


class Cast:
    """The bound slots of one story; `fill` turns a template into text."""

    def __init__(self, wanted: Mapping[str, str], tables: Tables, rng: Random) -> None:
        self._tables = tables
        self._rng = rng
        self._used: set[str] = set()
        self._slots: dict[str, Slot] = {}

        # Characters come first: a helper must not be of the hero's kind.
        for name, kind in sorted(wanted.items(), key=lambda item: item[1] not in _CHARACTERS):
            self._slots[name] = self._bind(name, kind)
        elder = pick(rng, list(_ELDERS))
        forms = {**_PRONOUNS[_ELDERS[elder]], "name": elder.capitalize()}
        self._slots["elder"] = Slot(elder, elder, forms)

    def fill(self, template: str) -> str:
        """Return `template` with every slot replaced, in reading order."""
        return _SLOT.sub(self._fill_one, template)

    def _fill_one(self, match: re.Match[str]) -> str:
        key, form = match[1], match[2] or ""
        name = key[0].lower() + key[1:]

        if name in _PRONOUNS["he"]:
            text = self._slots["hero"].forms[name]
        else:
            if name not in self._slots:
                self._slots[name] = self._bind(name, name)
            text = self._mention(self._slots[name], form)
        return text[0].upper() + text[1:] if key[0].isupper() else text

    @staticmethod
    def _mention(slot: Slot, form: str) -> str:
        first, pronoun = slot.introduction, form[1:] in _PRONOUNS["he"]
        if not pronoun and form != ".home":
            slot.introduction = None
        if form in ("", ".full"):
            return first or slot.plain
        return slot.detailed if form == "+" else slot.forms[form[1:]]

    def _bind(self, name: str, kind: str) -> Slot:
        if kind in _CHARACTERS:
            return self._character(name, kind)
        noun, _, properties = self._draw(kind).partition(": ")
        if kind == "outdoor":
            return Slot(f"the {noun}", f"the {noun}", {"at": f"{properties} the {noun}"})
        if kind == "noise":
            return Slot(noun, noun, {"sound": properties})

        gender = "she" if noun in _ALWAYS_SHE else "he"
        if noun not in _ALWAYS_SHE | _ALWAYS_HE:
            gender = pick(self._rng, ["he", "she"])
        adjective = pick(self._rng, properties.split(", "))
        forms = {**_PRONOUNS[gender], "adj": adjective}
        return Slot(noun, f"{adjective} {noun}".strip(), forms)

    def _character(self, role: str, kind: str) -> Slot:
        newcomer = kind == "newcomer"
        if kind in ("any", "newcomer"):
            kind = self._child_or_animal(role)
        gender = pick(self._rng, ["he", "she"])

        if kind == "child":
            name = self._draw("boy" if gender == "he" else "girl")
            species, trait = "boy" if gender == "he" else "girl", self._draw("child_trait")
            home, introduction = self._draw("child_home"), name
            if role == "friend" and self._rng.random() < 0.5:
                introduction = f"{self._slots['hero'].forms['his']} friend {name}"
        else:
            name = self._draw("animal_name")
            species, _, traits = self._draw(kind).partition(": ")
            trait, home = pick(self._rng, traits.split(", ")), self._draw("animal_home")
            introduction = f"{name} the {species}"

        if newcomer:
            introduction = f"a {species} named {name}"
        forms = {**_PRONOUNS[gender], "name": name, "kind": species, "home": home}
        return Slot(name, f"{trait} {species}", forms, introduction)

    def _child_or_animal(self, role: str) -> str:
        hero = self._slots.get("hero")
        if hero is None:
            return "child" if self._rng.random() < 0.55 else "animal"
        if hero.forms["kind"] not in ("boy", "girl"):
            return "animal"
        return "child" if role == "friend" and self._rng.random() < 0.75 else "animal"

    def _draw(self, table: str) -> str:
        """Return an entry of `table` whose noun no other slot of this story has."""
        free = [x for x in self._tables[table] if _noun(x) not in self._used]
        entry = pick(self._rng, free)
        self._used.add(_noun(entry))
        return entry


def _noun(entry: str) -> str:
    """Return what a table entry names, so that Button the wolf cannot lose a button."""
    return entry.partition(":")[0].lower()
