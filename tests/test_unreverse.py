"""What a foreign runtime wrote, as text: ids and token strings, whole and in pieces."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer

import backgpt
from backgpt.chat import Template
from backgpt.cli import main
from backgpt.errors import DataError, UsageError
from backgpt.hints import Hints
from backgpt.language import Language
from backgpt.messages import Message
from backgpt.order import Direction, ReadingIds, Unit
from backgpt.tokenizer import Tokenizer
from backgpt.unreverse import Unreverser, items_of, normalized, unreverser
from tiny_folders import tiny_folder

TEXTS = ["The end.", 'One day.\nTwo days.\n\n"Hi!"', "é 中 😀 e\u0301", "a  b ", "<|end|> typed"]
WAYS: list[tuple[Direction, Unit]] = [
    ("backward", "token"),
    ("backward", "word"),
    ("forward", "token"),
]


@pytest.fixture(scope="module")
def names(bare: HFTokenizer) -> dict[str, int]:
    """The id of each name, control ids included."""
    return bare.get_vocab()


def turning(
    tokenizer: Tokenizer, names: dict[str, int], direction: Any = "backward", unit: Unit = "token"
) -> Unreverser:
    return Unreverser(Language.all_of(tokenizer, direction, unit), names)


@pytest.mark.parametrize(("direction", "unit"), WAYS)
@pytest.mark.parametrize("text", TEXTS)
def test_whole_documents_come_back_from_ids_names_and_pieces(
    tokenizer: Tokenizer, names: dict[str, int], direction: Direction, unit: Unit, text: str
) -> None:
    turned = turning(tokenizer, names, direction, unit)
    [language] = turned.languages
    ids = language.order.to_model(tokenizer.mark(tokenizer.encode(text))).tolist()
    assert turned.text(ids) == text
    assert turned.text(ids[1:-1]) == text
    name_of = {id_: name for name, id_ in turned.ids.items()}
    assert turned.text([name_of[id_] for id_ in ids]) == text
    whole = all("\ufffd" not in tokenizer.name_of(id_) for id_ in ids)
    if whole and " " in text:
        assert turned.text([tokenizer.name_of(id_) for id_ in ids]) == text


@given(text=st.text(st.characters(exclude_categories=["Cs"])), share=st.floats(0, 1))
def test_what_was_written_joins_the_ending_that_was_given(
    tokenizer: Tokenizer, names: dict[str, int], text: str, share: float
) -> None:
    turned = turning(tokenizer, names)
    cut = int(share * len(text))
    written = tokenizer.encode(text[:cut].lstrip("\n"))
    ids = turned.languages[0].order.to_model(written).tolist()
    joined = turned.text(ids, given=text[cut:])
    assert joined == tokenizer.decode(
        ReadingIds(np.concatenate((written, tokenizer.encode_fragment(text[cut:]))))
    )
    assert turned.text([], given="A.\nB.") == "A.\nB."


def test_a_given_opening_stands_in_front_of_what_a_forward_model_wrote(
    tokenizer: Tokenizer, names: dict[str, int]
) -> None:
    turned = turning(tokenizer, names, "forward")
    assert turned.text(tokenizer.encode("the end.").tolist(), given="It is") == "It is the end."


@pytest.mark.parametrize("opening", ["Once", " Once", "  Once", "\nOnce", "Once "])
def test_an_opening_is_joined_as_a_forward_model_joins_it(
    tokenizer: Tokenizer, tmp_path: Path, opening: str
) -> None:
    folder = tiny_folder(tmp_path / "forward", tokenizer, direction="forward", n_layer=1)
    [text] = backgpt.load(folder).write(opening=opening, max_new_tokens=9, seed=1)
    assert unreverser(folder).text(text.ids.tolist(), given=opening) == text.text


def test_hints_direction_and_what_follows_the_stop_are_no_text(
    tokenizer: Tokenizer, names: dict[str, int]
) -> None:
    turned = turning(tokenizer, names, "both")
    hints = Hints(words=("cake",), opening="Once")
    stop, more = tokenizer.start_id, tokenizer.encode("More.").tolist()
    for language in turned.languages:  # the first id says which way, whatever is meant by default
        prompt = language.prompt("The end.", at_edge=True, hints=hints)
        ids = [*prompt.ids.tolist(), language.markers[1], *more]
        assert turned.text(ids) == "The end."
    shown = turned.text([*turned.languages[0].prompt("A.", at_edge=True).ids, stop], controls=True)
    assert shown == "<|start|>A.<|end|><|backward|>"


def test_messages_stand_on_lines_of_their_own(tokenizer: Tokenizer, names: dict[str, int]) -> None:
    turned = turning(tokenizer, names, "both")
    template = Template(turned.languages[0])
    prompt = template.before([Message("assistant", "Paris.")], context="France")
    ids = [*prompt.ids, *template.written(prompt, "Where?")]
    assert turned.text(ids) == "Where?\nParis."
    assert turned.text(ids, controls=True).startswith("<|user|>Where?<|assistant|>Paris.<|end|>")


def test_characters_cut_at_the_left_edge_are_replaced(
    tokenizer: Tokenizer, names: dict[str, int]
) -> None:
    turned = turning(tokenizer, names)
    assert turned.text(["x", "Ń", "¸", "ä"]) == "中x"  # E4 B8 AD, as names have them
    assert turned.text(["x", "Ń", "¸"]) == "\ufffd\ufffdx"


def test_strings_that_are_no_names_are_pieces_of_text(
    tokenizer: Tokenizer, names: dict[str, int]
) -> None:
    turned = turning(tokenizer, names)
    assert turned.text(["<|end|>", ".", " café", "\n", "!", " A", "<|start|>"]) == "A!\ncafé."
    by_word = turning(tokenizer, names, unit="word")
    assert by_word.text([" caf", "é", ".", " A"]) == "A café."


@pytest.mark.parametrize("items", [["\ud800"], ["a", " \udcff"], ["\ud83d", "\ude00"]])
def test_half_a_surrogate_pair_is_refused(
    tokenizer: Tokenizer, names: dict[str, int], items: list[str]
) -> None:
    with pytest.raises(DataError, match="has half of a surrogate pair"):
        turning(tokenizer, names).text(items)
    assert turning(tokenizer, names).text(items_of('["\\ud83d\\ude00", "x"]')) == "x😀"


@pytest.mark.parametrize(
    ("line", "items"),
    [
        ("3 2\t1", [3, 2, 1]),
        (" \n", []),
        ("[3, 2]", [3, 2]),
        ("[]", []),
        ('["a", "Ġb"]', ["a", "Ġb"]),
        ('{"content": "x", "tokens": [5, 6]}', [5, 6]),
    ],
)
def test_a_line_is_ids_or_strings(line: str, items: list[Any]) -> None:
    assert items_of(line) == items


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("3 x", "'x' is not an id"),
        ("3 -1", "'-1' is not an id"),
        ("[3, ", "not valid JSON"),
        ('[3, "a"]', "and nothing else"),
        ("[true]", "and nothing else"),
        ("[[1], [2]]", "and nothing else"),
        ('{"ids": [1]}', "no array 'tokens'"),
        pytest.param("9" * 5000, "9… has 5,000 digits", id="a long id"),
        pytest.param(f"[1, {'9' * 5000}]", "9… has 5,000 digits", id="a long id in JSON"),
        pytest.param("[" * 100_000, "not valid JSON", id="deep"),
    ],
)
def test_other_lines_are_refused(line: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason.replace("[", r"\[")):
        items_of(line)


def test_an_id_that_the_model_does_not_have_is_refused(
    tokenizer: Tokenizer, names: dict[str, int]
) -> None:
    with pytest.raises(DataError, match="no id 512, only 0 to 511"):
        turning(tokenizer, names).text([512])


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_normalized_text_needs_no_normalizer(
    tokenizer: Tokenizer, bare: HFTokenizer, text: str
) -> None:
    assert bare.encode(normalized(text)).ids == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("text", [*TEXTS, "", "\n", "\nA", "A\n", "\n\nA\n\n b", " A"])
def test_normalized_text_is_that_of_the_tokenizer(
    tokenizer: Tokenizer, bare: HFTokenizer, text: str
) -> None:
    assert bare.encode(normalized(text)).ids == tokenizer.encode(text).tolist()


@pytest.fixture(scope="module")
def bare(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    """The tokenizer as llama.cpp has it: without a normalizer."""
    path = tmp_path_factory.mktemp("bare") / "tokenizer.json"
    tokenizer.save(path)
    content = json.loads(path.read_text()) | {"normalizer": None}
    found = HFTokenizer.from_str(json.dumps(content))
    found.encode_special_tokens = True
    return found


def test_the_model_tells_the_order_and_a_direction_it_has_not_is_refused(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    both = tiny_folder(tmp_path / "both", tokenizer, direction="both", n_layer=1)
    ids = tokenizer.encode("One two").tolist()
    assert unreverser(both, direction="forward").text(ids) == "One two"
    assert unreverser(both).text(list(np.flip(ids).tolist())) == "One two"
    backward = tiny_folder(tmp_path / "backward", tokenizer, n_layer=1)
    with pytest.raises(UsageError, match="is a backward model: it does not run forward"):
        unreverser(backward, direction="forward")


def unreverse(*arguments: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "backgpt", "unreverse", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=False, timeout=60)


def test_the_command_is_a_filter() -> None:
    lines = ["2 29 871 295 1", "", '["<|end|>", ".", "Ġend", "ĠThe"]', '{"tokens": [29, 214, 295]}']
    done = unreverse("--json", data="\n".join(lines).encode())
    assert done.stderr == b""
    assert done.stdout.decode().split("\n") == ['"The end."', '"The end."', '"The\\n."', ""]
    done = unreverse("--given", "The end.", data=b'[".", "\xc4\xa0cat", "\xc4\xa0A"]\n')
    assert done.stdout == b"A cat. The end.\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        *(b"29\nx\n", b"29\n\xff\n", b"29\n9999\n", b"29\n[1\n", b'29\n["\\ud800"]\n'),
        pytest.param(b"29\n" + b"9" * 5000, id="long"),
        pytest.param(b"29\n" + b"[" * 9999, id="deep"),
    ],
)
def test_the_command_names_the_line_that_it_cannot_read(data: bytes) -> None:
    done = unreverse(data=data)
    assert done.returncode == 2
    assert done.stdout == b".\n"
    assert done.stderr.startswith(b"backgpt: standard input, line 2: ")
    assert done.stderr.count(b"\n") == 1


def test_the_command_shows_what_it_takes_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["unreverse", "--help"])
    assert "backgpt unreverse --given" in capsys.readouterr().out
