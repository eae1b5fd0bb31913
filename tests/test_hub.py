"""Models on the hub: pushed whole, found by name wherever a model is asked for, kept for later."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("huggingface_hub", reason="the hub needs the extra hub")

from huggingface_hub import constants

import backgpt
from backgpt import hub as hub_module
from backgpt.builtin import describe, find
from backgpt.checkpoint import Checkpoint, save_checkpoint
from backgpt.cli import main
from backgpt.errors import (
    BackgptError,
    CorruptFileError,
    DataError,
    MissingExtraError,
    UsageError,
)
from backgpt.export import export_hf, read_source
from backgpt.hub import FILES, download, is_name, push
from backgpt.manifest import MANIFEST
from backgpt.model import Transformer
from backgpt.model_folder import ModelFolder, read_model, save_model
from backgpt.shape import ModelConfig
from backgpt.tokenizer import Tokenizer
from hub_stub import Hub, Repository, running_hub

SHAPE = {"n_layer": 1, "n_head": 1, "n_embd": 64, "block_size": 128, "intermediate_size": 96}


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> ModelFolder:
    config = ModelConfig(n_kv_head=1, vocab_size=tokenizer.vocab_size, **SHAPE)
    weights = Transformer(config, generator=torch.Generator().manual_seed(1)).state_dict()
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    return ModelFolder(config, "backward", "token", tokenizer, arrays)


@pytest.fixture
def folder(model: ModelFolder, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that is asked in the place of the real one, by one whom it knows."""
    with running_hub() as hub:
        at(hub.address, monkeypatch)
        for name, value in (("HF_HUB_CACHE", "cache"), ("HF_TOKEN_PATH", "token")):
            monkeypatch.setattr(constants, name, str(tmp_path / value))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.chdir(tmp_path)
        yield hub


def at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def command(*arguments: object) -> int | str | None:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


def files_of(hub: Hub, name: str = "me/story", branch: str = "main") -> dict[str, bytes]:
    return hub.repositories[name].branches[branch][-1]


def nowhere() -> str:
    """Return an address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


@pytest.mark.parametrize("name", ["me/story", "me/story.v2@main", "me/story@refs/pr/1"])
def test_an_owner_and_a_name_are_a_model_on_the_hub(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name", ["story", "./story", "../me/story", "a/b/c", "/me/story", "me/", "~/story", "me\\story"]
)
def test_what_looks_like_a_path_is_a_path(name: str) -> None:
    assert not is_name(name)


def test_a_typing_error_in_a_path_is_not_asked_for(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(DataError, match="there is no model 'runs/frist'"):
        find("runs/frist")
    with pytest.raises(DataError, match="there is no model"):
        find(Path("me/story"))
    assert hub.asked == []


def test_push_then_load_gives_the_same_weights_and_texts(
    hub: Hub, folder: Path, model: ModelFolder
) -> None:
    assert push(folder, "me/story") == f"{hub.address}/me/story"
    assert len(hub.repositories["me/story"].branches["main"]) == 2  # one commit
    read = read_model(find("me/story"))
    assert read.weights.keys() == model.weights.keys()
    for name, array in model.weights.items():
        np.testing.assert_array_equal(read.weights[name], array)
    asked = {"ending": "The end.", "max_new_tokens": 8, "seed": 1}
    here, there = (backgpt.load(path).write(**asked) for path in (folder, "me/story"))  # type: ignore[arg-type]
    assert [text.text for text in here] == [text.text for text in there]
    assert describe("me/story").n_parameters == describe(folder).n_parameters


def test_every_command_takes_a_name_on_the_hub(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("push", folder, "me/story", "--private", "--message", "The first") == 0
    assert capsys.readouterr().out == f"{hub.address}/me/story\n"
    assert hub.repositories["me/story"].private
    given = ("--ending", "The end.", "--max-new-tokens=5", "--seed=1")
    assert command("sample", "--model", "me/story", *given) == 0
    assert capsys.readouterr().out.endswith("The end.\n")
    assert command("info", "me/story") == 0
    assert "name         me/story" in capsys.readouterr().out


def test_a_checkpoint_is_pushed_without_its_optimizer(
    hub: Hub, model: ModelFolder, tmp_path: Path
) -> None:
    optimizer = {"momentum": np.zeros(3, dtype=np.float32)}
    save_checkpoint(tmp_path / "run", Checkpoint(model, 5, optimizer, {}))
    push(tmp_path / "run", "me/story")
    files = files_of(hub)
    assert sorted(files) == [
        *("README.md", "config.json", "generation_config.json", MANIFEST, "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    assert set(json.loads(files[MANIFEST])["files"]) == set(files) - {MANIFEST, "README.md"}
    assert read_model(find("me/story")).config == model.config


def test_the_card_names_the_model_and_may_be_edited_on_the_hub(hub: Hub, folder: Path) -> None:
    push(folder, "me/story")
    card = files_of(hub)["README.md"].decode()
    assert card.startswith("---\n")
    assert 'library_name: "backgpt"' in card
    assert "--model me/story --ending" in card
    assert 'backgpt.load("me/story")' in card
    files_of(hub)["README.md"] = b"Edited."
    assert read_model(find("me/story")).direction == "backward"


def test_pushing_again_replaces_the_model_and_leaves_other_files(
    hub: Hub, folder: Path, model: ModelFolder, tmp_path: Path
) -> None:
    push(folder, "me/story")
    files_of(hub)["notes.txt"] = b"Mine."
    save_model(model, tmp_path / "small", storage="int8")
    push(tmp_path / "small", "me/story")
    assert {"notes.txt", "model.int8.safetensors"} <= set(files_of(hub))
    assert "model.safetensors" not in files_of(hub)
    downloaded = find("me/story")
    assert read_model(downloaded).storage == "int8"
    assert not (downloaded / "notes.txt").exists()


def test_a_revision_is_a_branch_or_a_commit(hub: Hub, folder: Path, model: ModelFolder) -> None:
    push(folder, "me/story")
    first = hub_commit(hub)
    save_model(replace(model, direction="forward"), folder)
    assert push(folder, "me/story", branch="next") == f"{hub.address}/me/story/tree/next"
    assert read_model(find("me/story")).direction == "backward"
    assert read_model(find("me/story@next")).direction == "forward"
    assert read_model(find(f"me/story@{first}")).direction == "backward"
    with pytest.raises(DataError, match="no such revision"):
        find("me/story@nope")


def hub_commit(hub: Hub) -> str:
    from hub_stub import commit_id

    return commit_id(files_of(hub))


def test_what_was_downloaded_is_found_offline_and_without_a_network(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(folder, "me/story")
    downloaded = find("me/story")
    n_asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find("me/story") == downloaded
    with pytest.raises(
        BackgptError, match=r"me/other here.*HF_HUB_OFFLINE is set and it is not in"
    ):
        find("me/other")
    with pytest.raises(BackgptError, match="cannot push to me/story: HF_HUB_OFFLINE is set"):
        push(folder, "me/story")
    assert len(hub.asked) == n_asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    at(nowhere(), monkeypatch)
    assert find("me/story") == downloaded
    with pytest.raises(BackgptError, match="is out of reach; try again later"):
        find("me/other")
    with pytest.raises(BackgptError, match=r"cannot push to me/story: .*; try again"):
        push(folder, "me/story")


def test_only_files_of_a_model_are_downloaded(hub: Hub, folder: Path) -> None:
    push(folder, "me/story")
    bad = {
        "pytorch_model.bin": b"\x80",
        "optimizer.safetensors": b"",
        "run.py": b"",
        "a/b.json": b"",
    }
    files_of(hub).update(bad)
    assert {file.name for file in find("me/story").iterdir()} == set(files_of(hub)) - set(bad)
    assert not [pattern for pattern in FILES if pattern.endswith((".bin", ".pt", ".py", ".pkl"))]


def test_a_file_that_is_cut_short_is_found(hub: Hub, folder: Path) -> None:
    push(folder, "me/story")
    files = files_of(hub)
    files["model.safetensors"] = files["model.safetensors"][:-8]
    with pytest.raises(CorruptFileError, match=r"model\.safetensors is damaged: it differs"):
        read_model(find("me/story"))
    hub.repositories["me/other"] = Repository()
    push(folder, "me/other")
    weights = find("me/other") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors is damaged"):
        backgpt.load("me/other")


def test_what_cannot_be_seen_is_told_in_one_line(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, private, gated in (("secret", True, False), ("gated", False, True)):
        push(folder, f"me/{name}", private=private)
        hub.repositories[f"me/{name}"].gated = gated
    monkeypatch.delenv("HF_TOKEN")
    for name, words in (
        ("me/nothing", "has none of that name, or it is private"),
        ("me/secret", "log in with 'hf auth login' or set HF_TOKEN"),
        ("me/gated", f"ask for access at {hub.address}/me/gated"),
        ("me/gated@main", f"ask for access at {hub.address}/me/gated, and"),
        ("me/no--thing", "has none of that name|Cannot have -- or"),
    ):
        assert command("sample", "--model", name, "--ending", "x") in (1, 2)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("backgpt: ")
        assert err.count("\n") == 1
        assert any(one in err for one in words.split("|"))


def test_a_graph_for_others_is_pushed_and_not_downloaded(hub: Hub, folder: Path) -> None:
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    push(folder, "me/story")
    files = files_of(hub)
    assert files["onnx/model.onnx"] == b"graph"
    assert "onnx/model.onnx" not in json.loads(files[MANIFEST])["files"]
    assert not (find("me/story") / "onnx").exists()
    backgpt.load("me/story")
    (folder / "onnx" / "model.onnx").unlink()
    push(folder, "me/story")
    assert "onnx/model.onnx" not in files_of(hub)


def test_what_lies_deeper_in_the_folder_stays_here_and_there(hub: Hub, folder: Path) -> None:
    for name in ("model_old/model.safetensors", "tokenizer_old/secret.json", "onnx/a/b.onnx"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"mine")
    push(folder, "me/story")
    files = files_of(hub)
    assert not [name for name in files if "/" in name]
    files["model_old/model.safetensors"] = b"theirs"
    hub.repositories["me/deep"] = Repository(branches={"main": [files]})
    assert not [path for path in find("me/deep").iterdir() if path.is_dir()]


def test_an_export_is_named_as_on_the_hub(hub: Hub, folder: Path, tmp_path: Path) -> None:
    push(folder, "me/story")
    export_hf(read_source("me/story@main"), tmp_path / "out")
    assert "# backgpt story, for" in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_that_is_no_backgpt_model_is_refused(hub: Hub, folder: Path) -> None:
    hub.repositories["me/empty"] = Repository(branches={"main": [{"README.md": b"Nothing."}]})
    with pytest.raises(DataError, match=r"me/empty on the hub is no model .* no config\.json"):
        find("me/empty")
    config = json.loads((folder / "config.json").read_text())
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != MANIFEST}
    files["config.json"] = json.dumps({**config, "direction": None}).encode()
    hub.repositories["me/qwen"] = Repository(branches={"main": [files]})
    with pytest.raises(UsageError, match=r"direction = None is not known"):
        backgpt.load("me/qwen")


def test_what_cannot_be_pushed_is_refused_before_anything_is_sent(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("story", "me/story@next", "a/b/c"):
        with pytest.raises(UsageError, match="is no name of a repository: write owner/name"):
            push(folder, name)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"model\.safetensors is damaged"):
        push(folder, "me/story")
    with pytest.raises(DataError, match="there is no model at"):
        push(folder / "nothing", "me/story")
    assert hub.asked == []
    assert hub.repositories == {}


def test_who_may_not_push_is_told_what_to_do(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(folder, "me/story")
    with pytest.raises(UsageError, match="is there already and not private"):
        push(folder, "me/story", private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    for name in ("me/story", "me/new"):
        with pytest.raises(BackgptError, match="with the right to do this"):
            push(folder, name)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UsageError, match="only who is known to the hub can push: log in with"):
        push(folder, "me/story")
    assert len(hub.repositories["me/story"].branches["main"]) == 2


def test_without_the_library_it_says_which_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for asked in (lambda: download("me/story"), lambda: push(folder, "me/story")):
        with pytest.raises(
            MissingExtraError,
            match=r"me/story.*needs the extra 'hub', of which .* missing: ",
        ):
            asked()
    with pytest.raises(DataError, match="is no name of a model"):
        hub_module.download("nonsense")


@pytest.mark.slow
def test_the_environment_says_which_hub_and_whether_it_may_be_asked(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    push(folder, "me/story")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    program = (
        "from backgpt.cli import main\n"
        "for name in ('me/story', 'me/other'):\n"
        "    try: main(['info', name, '--json'])\n"
        "    except SystemExit as stopped: print(stopped.code)"
    )

    def info(**more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env={**environment, **more},
            cwd=tmp_path,
        )

    online, offline = info(), info(HF_HUB_OFFLINE="1")
    assert [json.loads(line) for line in online.stdout.splitlines()[1:]] == [0, 2]
    assert json.loads(online.stdout.splitlines()[0])["direction"] == "backward"
    assert f"{hub.address} has none of that name" in online.stderr
    assert offline.stdout == online.stdout.replace("\n2\n", "\n1\n")
    assert "HF_HUB_OFFLINE is set" in offline.stderr
    assert online.stderr.count("\n") == offline.stderr.count("\n") == 1
    assert list((tmp_path / "home").rglob("model.safetensors"))
