"""What a row begins with: the direction, hints, the marker; each separate from the text."""

import numpy as np
import pytest

from backgpt.hints import Hints
from backgpt.language import Language
from backgpt.order import Direction, ModelIds
from backgpt.tokenizer import SPECIAL_TOKENS, Tokenizer


def shown(language: Language, ids: np.ndarray) -> list[str]:
    """Return ids as strings, control ids by name."""
    tokenizer = language.tokenizer
    return [
        SPECIAL_TOKENS[i] if i < len(SPECIAL_TOKENS) else tokenizer.token_bytes[i].decode()
        for i in map(int, ids)
    ]


def test_a_model_trained_both_ways_has_two_languages_its_main_one_first(
    tokenizer: Tokenizer,
) -> None:
    found = Language.all_of(tokenizer, "both", "token")
    assert [(language.direction, language.told) for language in found] == [
        *(("backward", True), ("forward", True))
    ]
    [only] = Language.all_of(tokenizer, "forward", "token")
    assert (only.direction, only.told) == ("forward", False)


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_a_prompt_is_direction_hints_marker_text(
    tokenizer: Tokenizer, direction: Direction
) -> None:
    language = Language(tokenizer, direction, "token", told=True)
    hints = Hints(opening="One day", words=("Dog", "tree"), length="short")
    prompt = language.prompt("The end.", at_edge=True, hints=hints)

    def turned(text: str) -> list[str]:
        ids = language.order.to_model(tokenizer.encode(text))
        return shown(language, ids)

    marker = "<|end|>" if direction == "backward" else "<|start|>"
    assert shown(language, prompt.ids) == [
        f"<|{direction}|>",
        *("<|hint|>", "<|length|>", *turned("short")),
        *("<|hint|>", "<|words|>", *turned("dog tree")),
        *("<|hint|>", "<|opening|>", *turned("One day")),
        *(marker, *turned("The end.")),
    ]


def test_an_opening_has_the_ids_that_the_text_begins_with(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "forward", "token")
    text = tokenizer.encode("One day, the dog ran home.")
    hint = language.hint_ids(Hints(opening="One day, the"))[2:]
    assert hint.tolist() == text[: len(hint)].tolist()


def test_names_of_control_ids_in_a_hint_stay_text(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "backward", "token")
    hint = language.hint_ids(Hints(words=("<|start|>",)))
    assert (hint[2:] >= len(SPECIAL_TOKENS)).all()
    assert tokenizer.decode(language.order.to_reading(ModelIds(hint[2:]))) == "<|start|>"


def test_without_direction_and_hints_nothing_comes_first(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "backward", "token")
    assert len(language.lead) == 0
    prompt = language.prompt("The end.", at_edge=True)
    assert prompt.ids[0] == tokenizer.end_id
    assert len(prompt.ids) == 1 + len(tokenizer.encode("The end."))
