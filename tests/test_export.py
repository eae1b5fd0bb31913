"""The folder for transformers: same logits, same ids, same texts; and what its README says, run."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from backgpt import model_folder
from backgpt.api import load
from backgpt.builtin import describe
from backgpt.chat import Template
from backgpt.cli import main
from backgpt.datasets.records import Conversation
from backgpt.errors import BackgptError, CorruptFileError, UsageError
from backgpt.export import EXPORT, export_hf, read_source
from backgpt.hints import Hints
from backgpt.language import Language
from backgpt.manifest import MANIFEST, verify
from backgpt.messages import Message
from backgpt.model_folder import CONFIG, TOKENIZER, WEIGHTS, read_model, save_model
from backgpt.order import ModelIds
from backgpt.tokenizer import Tokenizer
from greedy import ENDINGS, greedy
from tiny_folders import tiny_folder
from tiny_models import network_of

TEXTS = [
    "The end.",
    'One day.\nTwo days.\n\n"Hi!"',
    "é 中 😀 e\u0301",
    " two  spaces ",
    "a\n b\n",
    "<|end|> and <|user|>",
    "\t\x00\r\u2028\u2581",
]
DIRECTIONS = ("backward", "forward", "both")
QUESTION, ANSWER = Message("user", "Where?\n In France?"), Message("assistant", " In Paris.\n")
CONVERSATIONS = [
    (QUESTION, ANSWER),
    (Message("system", "Be brief."), QUESTION, ANSWER),
    (QUESTION, ANSWER, Message("user", "é?\n\nYes"), Message("assistant", "No")),
]


def exported(model: Any, out: Path) -> Path:
    export_hf(read_source(model), out)
    return out


def theirs_greedy(model: Any, prompts: list[ModelIds], most: int) -> list[list[int]]:
    """Return what transformers writes after prompts of one length, each to its stop id."""
    ids = torch.tensor(np.stack(prompts))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        out = model.generate(ids, attention_mask=mask, max_new_tokens=most, do_sample=False)
    written = (row[ids.shape[1] :].tolist() for row in out)
    stop = model.generation_config.eos_token_id
    return [row[: row.index(stop) + 1] if stop in row else row for row in written]


def python_of(folder: Path) -> list[str]:
    """Return the README's Python that is meant for transformers."""
    mine = (folder / "README.md").read_text().split("## The model")[0]
    return re.findall(r"```python\n(.*?)```", mine, re.DOTALL)


# ---- parity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_transformers_loads_it_to_the_same_logits_and_the_same_greedy_ids(
    tokenizer: Tokenizer, tmp_path: Path, storage: Any
) -> None:
    source = tiny_folder(tmp_path / "model", tokenizer, n_kv_head=1, storage=storage)
    out = exported(source, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(out)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    assert theirs.dtype == torch.float32
    ours = load(out, engine="torch")
    ids = torch.randint(16, 512, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network_of(ours)(ids)
        assert torch.allclose(theirs(ids).logits, expected, atol=1e-4)
    prompt = ours.language.prompt("The end.", at_edge=True)
    stop = ours.language.markers[1]
    written = greedy(ours.engine, prompt.ids, stop, 60)
    assert len(set(written)) > 3
    assert theirs_greedy(theirs, [prompt.ids], 60) == [written]


@pytest.mark.slow
def test_the_built_in_stories_are_the_same_in_transformers(tmp_path: Path) -> None:
    """Texts of our engine, which transformers would have written as well at each of their ids."""
    out = exported("stories", tmp_path / "out")
    theirs, model = AutoModelForCausalLM.from_pretrained(out), load(out)
    ours = network_of(load(out, engine="torch"))
    stop = model.language.markers[1]
    n_ids, furthest = 0, 0.0
    for number, ending in enumerate(ENDINGS):
        prompt = model.language.prompt(ending, at_edge=True).ids
        row = greedy(model.engine, prompt, stop, 200)
        ids = torch.tensor([[*prompt.tolist(), *row]])
        with torch.no_grad():
            found, expected = theirs(ids).logits, ours(ids)
        assert found[0, len(prompt) - 1 : -1].argmax(-1).tolist() == row
        furthest = max(furthest, (found - expected).abs().max().item())
        n_ids += len(row)
        if number % 10 == 0:
            assert theirs_greedy(theirs, [prompt], 200) == [row]
    assert furthest < 1e-4
    print(f"{len(ENDINGS)} endings, {n_ids:,} ids, logits within {furthest:.1e}")


# ---- the tokenizer ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def auto(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("auto")
    source = tiny_folder(folder / "model", tokenizer, direction="both", chat=True)
    return AutoTokenizer.from_pretrained(exported(source, folder / "out"))


@pytest.mark.parametrize("text", TEXTS)
def test_auto_tokenizer_gives_our_ids_and_text(auto: Any, tokenizer: Tokenizer, text: str) -> None:
    same_ids_and_text(auto, tokenizer, text)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_auto_tokenizer_gives_our_ids_and_text_of_anything(
    auto: Any, tokenizer: Tokenizer, text: str
) -> None:
    same_ids_and_text(auto, tokenizer, text.lstrip("\n"))


def same_ids_and_text(auto: Any, tokenizer: Tokenizer, text: str) -> None:
    ids = auto(text, split_special_tokens=True)["input_ids"]
    assert ids == tokenizer.encode(text).tolist()
    assert auto.decode(ids) == text


def test_auto_tokenizer_differs_only_where_the_readme_says(auto: Any, tokenizer: Tokenizer) -> None:
    space, *rest = auto.encode("\nThe")
    assert tokenizer.token_bytes[space] == b" "
    assert rest == tokenizer.encode("\nThe").tolist()
    assert auto.encode("<|end|>") == [tokenizer.end_id]
    assert auto.decode([tokenizer.end_id, *auto.encode("A.")], skip_special_tokens=True) == "A."
    assert auto.eos_token_id == tokenizer.start_id
    assert auto.pad_token_id == tokenizer.pad_id
    assert auto.bos_token_id is None


# ---- the chat template --------------------------------------------------------------------------


def in_words(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in messages]


@pytest.mark.parametrize("way", ["backward", "forward"])
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_chat_template_gives_the_ids_and_the_loss_mask_of_ours(
    tokenizer: Tokenizer, tmp_path: Path, way: Any, told: bool, messages: tuple[Message, ...]
) -> None:
    language = Language(tokenizer, way, "token", told=told)
    source = tiny_folder(
        tmp_path / "model", tokenizer, direction="both" if told else way, chat=True, n_layer=1
    )
    auto = AutoTokenizer.from_pretrained(exported(source, tmp_path / "out"))
    found: Any = auto.apply_chat_template(
        in_words(messages),
        return_dict=True,
        return_assistant_tokens_mask=True,
        **({"direction": way} if told else {}),
    )
    [row, *_] = Template(language).exchanges(Conversation(messages, "", "test"), most=256)
    assert row is not None
    in_model_order = slice(None, None, -1 if way == "backward" else 1)
    assert found["input_ids"][in_model_order] == [*row.given, *row.written]
    mask = found["assistant_masks"][in_model_order]
    assert mask == [0] * len(row.given) + [1] * len(row.written)


def test_the_chat_template_renders_prompts(auto: Any, tokenizer: Tokenizer) -> None:
    backward, forward = (
        Template(language) for language in Language.all_of(tokenizer, "both", "token")
    )
    options: dict[str, Any] = {"add_generation_prompt": True, "return_dict": True}
    asked = auto.apply_chat_template(in_words((ANSWER,)), **options)["input_ids"]
    assert asked[::-1] == backward.before([ANSWER]).ids.tolist()
    both = auto.apply_chat_template(in_words((QUESTION, ANSWER)), **options)["input_ids"]
    assert both[::-1] == backward.before([QUESTION, ANSWER]).ids.tolist()
    replied = auto.apply_chat_template(in_words((QUESTION,)), direction="forward", **options)
    assert replied["input_ids"] == forward.reply(QUESTION.text).ids.tolist()
    alone = auto.apply_chat_template(in_words((ANSWER,)), tokenize=False)
    assert alone == "<|start|><|assistant|>In Paris.<|end|><|backward|>"
    with pytest.raises(Exception, match="role = robot"):
        auto.apply_chat_template([{"role": "robot", "content": "Hi"}])


# ---- the README ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "unit", "hints", "chat", "blocks"),
    [
        ("backward", "token", False, False, 1),
        ("backward", "word", True, False, 2),
        ("forward", "token", True, False, 1),
        ("forward", "token", False, True, 2),
        ("both", "token", True, False, 3),
        ("both", "word", False, True, 2),
    ],
)
def test_the_readmes_python_runs_and_builds_our_prompts(
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    direction: Any,
    unit: Any,
    hints: bool,
    chat: bool,
    blocks: int,
) -> None:
    source = tiny_folder(
        tmp_path / "model",
        tokenizer,
        direction=direction,
        unit=unit,
        hints=hints,
        chat=chat,
        n_layer=1,
        block_size=64,
    )
    out = exported(source, tmp_path / "out")
    monkeypatch.chdir(out)
    torch.manual_seed(0)
    examples = python_of(out)
    assert len(examples) == blocks
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    [language, *_] = Language.all_of(tokenizer, direction, unit)
    if direction == "forward":
        assert "Once upon a time" in printed
        return
    assert "The end.\n" in printed
    asked = Hints(words=("cake", "rain"), length="short") if hints else Hints()
    for text in ("The end.", "One, two\n three. é"):
        prompt = language.prompt(text, at_edge=True, hints=asked)
        assert names["first"] + names["turned"](names["ids_of"](text)) == prompt.ids.tolist()
        turned = names["turned"](names["turned"](names["ids_of"](text)))
        assert names["tokenizer"].decode(turned) == text
    if chat:
        before = Template(language).before([Message("assistant", "Paris.")])
        assert names["turned"](names["given"]) == before.ids.tolist()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_readme_says_plainly_how_the_ids_run(
    tokenizer: Tokenizer, tmp_path: Path, direction: Any
) -> None:
    source = tiny_folder(tmp_path / "fox", tokenizer, direction=direction)
    text = (exported(source, tmp_path / "out") / "README.md").read_text()
    assert text.startswith('---\nlibrary_name: "transformers"')
    assert "# backgpt fox, for transformers" in text
    assert ("ids are in model order" in text) == (direction != "forward")
    assert ("ids are in **reading order**" in text) == (direction == "forward")


# ---- what else is in the folder -----------------------------------------------------------------


def test_every_file_says_how_the_ids_run(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", tokenizer, unit="word", hints=True, storage="int8")
    out = exported(source, tmp_path / "out")
    verify(out)
    config, said = (json.loads((out / name).read_text()) for name in (CONFIG, EXPORT))
    assert (config["direction"], config["unit"]) == ("backward", "word")
    assert config["tokenizer_sha256"] == said["backgpt.tokenizer_sha256"] == tokenizer.sha256
    assert config["markers"] == {"start": "<|start|>", "end": "<|end|>"}
    with safe_open(out / WEIGHTS, framework="np") as file:
        in_weights = file.metadata()
    assert in_weights["format"] == "pt"
    for key, value in {
        "backgpt.direction": "backward",
        "backgpt.unit": "word",
        "backgpt.start_token": "<|start|>",
        "backgpt.end_token": "<|end|>",
        "backgpt.tokenizer_sha256": tokenizer.sha256,
    }.items():
        assert said[key] == in_weights[key] == value
    assert (said["backgpt.hints"], in_weights["backgpt.hints"]) == (True, "true")


def test_backgpt_reads_an_export_as_any_model(tmp_path: Path) -> None:
    out = exported("backchat", tmp_path / "out")
    read, built_in = read_model(out), read_model(describe("backchat").folder)
    assert read.storage == "float32"
    assert (read.direction, read.chat, read.hints) == (built_in.direction, True, built_in.hints)
    for name, array in built_in.weights.items():
        assert np.array_equal(read.weights[name], array)
    assert describe(out).card == describe("backchat").card


# ---- refusals -----------------------------------------------------------------------------------


def test_an_older_export_is_replaced_and_nothing_else_is(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = tiny_folder(tmp_path / "model", tokenizer, n_layer=1)
    source, out = read_source(model), tmp_path / "deep" / "out"
    export_hf(source, out)
    export_hf(source, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt, which is not of an export"):
        export_hf(source, out)
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="not an export"):
        export_hf(source, model)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        export_hf(source, file)
    (out / MANIFEST).write_text("{")
    with pytest.raises(UsageError, match="not valid JSON"):
        export_hf(source, out)
    (tmp_path / "empty").mkdir()
    export_hf(source, tmp_path / "empty")
    (tmp_path / "empty" / "more").mkdir()
    with pytest.raises(UsageError, match="more, which is not of an export"):
        export_hf(source, tmp_path / "empty")
    (tmp_path / "empty" / "more").rmdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "link").symlink_to(model)
    with pytest.raises(UsageError, match="not an export"):
        export_hf(source, tmp_path / "links")
    assert (tmp_path / "links" / "link").is_symlink()
    verify(tmp_path / "empty")


def test_a_full_disk_leaves_nothing(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read_source(tiny_folder(tmp_path / "model", tokenizer, n_layer=1))

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    def refused(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    for fails, reason in (
        (full, r"cannot write .*out: No space left on device; make room"),
        (refused, r"cannot write .*out: Permission denied; choose another place"),
    ):
        monkeypatch.setattr(model_folder, "write_synced", fails)
        with pytest.raises(BackgptError, match=reason):
            export_hf(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_that_cannot_be_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", tokenizer, n_layer=1)
    model, name = read_model(folder), "model.layers.0.mlp.up_proj.weight"
    good = dict(model.weights)
    for change, reason in (
        ({name: np.full_like(good[name], np.nan)}, "not finite"),
        ({name: good[name][:-1]}, r"has shape \(95, 64\), not \(96, 64\)"),
        ({"lm_head.weight": good[name]}, r"lm_head\.weight is not known"),
    ):
        object.__setattr__(model, "weights", {**good, **change})
        save_model(model, folder)
        with pytest.raises(CorruptFileError, match=reason):
            read_source(folder)
    object.__setattr__(model, "weights", {n: array for n, array in good.items() if n != name})
    save_model(model, folder)
    with pytest.raises(CorruptFileError, match=r"up_proj\.weight is missing"):
        read_source(folder)


def test_a_model_with_another_tokenizer_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", tokenizer, n_layer=1)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "tokenizer_sha256": None}))
    text = (folder / TOKENIZER).read_text().replace("<|start|>", "<s>")
    (folder / TOKENIZER).write_text(text)
    (folder / MANIFEST).unlink()
    with pytest.raises(BackgptError, match="tokenizer"):
        read_source(folder)


def test_the_command_exports_and_refuses_in_one_line(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_folder(tmp_path / "model", tokenizer, n_layer=1))
    assert ended(["export", model, str(tmp_path / "out"), "--to", "hf"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"written to \S+out: \d\.\d MB; its ids are in model order\n", printed.err)
    assert (tmp_path / "out" / WEIGHTS).is_file()
    for arguments, reason in (
        ([model, str(tmp_path / "other"), "--to", "hf", "--dtype", "f16"], "dtype = f16"),
        ([model, model, "--to", "hf"], "not an export"),
        ([model, str(tmp_path / "other"), "--to", "pdf"], "pdf"),
        ([model, str(tmp_path / "other")], "--to"),
        (["nothing-here", str(tmp_path / "other"), "--to", "hf"], "no model"),
    ):
        assert ended(["export", *arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert reason in printed.err
        assert not (tmp_path / "other").exists()


def ended(arguments: list[str]) -> int:
    """Return the exit code of the command line."""
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    return int(ending.value.code or 0)
