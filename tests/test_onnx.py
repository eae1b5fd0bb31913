"""The ONNX graph: same logits in ONNX Runtime, in pieces and padded, same greedy texts."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from backgpt import export_onnx
from backgpt.api import load
from backgpt.builtin import describe
from backgpt.cli import main
from backgpt.errors import CorruptFileError, MissingExtraError, UsageError
from backgpt.export import EXPORT, ONNX, export_hf, metadata_as_text, read_source
from backgpt.export_text import readme
from backgpt.manifest import files_in, verify
from backgpt.model_folder import read_model
from backgpt.tokenizer import Tokenizer
from greedy import ENDINGS, greedy
from tiny_folders import tiny_folder
from tiny_models import network_of

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Runtime:
    """ONNX Runtime with an exported graph, and what it has read of a batch."""

    def __init__(self, folder: Path, rows: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # more than there are cores would wait for each other
        self.session = onnxruntime.InferenceSession(folder / ONNX, options)
        self.forget(rows)

    def forget(self, rows: int) -> None:
        """Begin anew, with so many rows."""
        self.past = {
            given.name: np.zeros((rows, given.shape[1], 0, given.shape[3]), np.float32)
            for given in self.session.get_inputs()
            if given.name.startswith("past_key_values.")
        }
        self.mask = np.ones((rows, 0), np.int64)

    def read(self, ids: Any, mask: Any = None) -> npt.NDArray[np.float32]:
        """Return the logits (B, T, V) of `ids` (B, T); `mask` is 0 where they are padding."""
        ids = np.asarray(ids, np.int64)
        self.mask = np.hstack((self.mask, np.ones_like(ids) if mask is None else mask))
        positions = np.maximum(self.mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        given = {"input_ids": ids, "position_ids": positions, "attention_mask": self.mask}
        logits, *present = self.session.run(None, {**given, **self.past})
        self.past = dict(zip(self.past, present, strict=True))
        return logits  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def model_path(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with two queries to a key."""
    folder = tmp_path_factory.mktemp("model") / "fox"
    return tiny_folder(folder, tokenizer, n_kv_head=1, hints=True)


@pytest.fixture(scope="module")
def folder(model_path: Path) -> Path:
    """Its export, which takes ten seconds."""
    out = model_path.with_name("out")
    export_onnx.export_onnx(read_source(model_path), out)
    return out


@pytest.mark.slow
def test_the_logits_are_ours_read_at_once_in_pieces_and_padded(folder: Path) -> None:
    model = network_of(load(folder, engine="torch"))
    ids = torch.randint(16, 512, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids).numpy()
    assert np.abs(Runtime(folder, 3).read(ids) - expected).max() < 1e-4
    runtime = Runtime(folder, 3)
    pieces = [runtime.read(piece) for piece in torch.split(ids, [1, 20, 1, 18], dim=1)]
    assert np.abs(np.concatenate(pieces, axis=1) - expected).max() < 1e-4
    padded, mask = np.zeros((3, 45), np.int64), np.zeros((3, 45), np.int64)
    padded[:, 5:], mask[:, 5:] = ids, 1
    assert np.abs(Runtime(folder, 3).read(padded, mask)[:, 5:] - expected).max() < 1e-4


@pytest.mark.slow
def test_the_greedy_text_is_ours(folder: Path) -> None:
    model = load(folder, engine="torch")
    prompt = model.language.prompt("The end.", at_edge=True).ids
    engine, runtime = model.engine, Runtime(folder, 1)
    rows, ours = engine.prefill(prompt)
    theirs = runtime.read([prompt.tolist()])
    written = []
    for _ in range(60):
        best = int(ours.argmax())
        assert int(theirs[0, -1].argmax()) == best
        written.append(best)
        ours, theirs = engine.step(rows, [best]), runtime.read([[best]])
    assert len(set(written)) > 3


@pytest.mark.slow
def test_the_built_in_stories_write_the_same_in_onnx_runtime(tmp_path: Path) -> None:
    """Texts of our engine, which ONNX Runtime would have written as well at each of their ids."""
    export_onnx.export_onnx(read_source("stories"), tmp_path / "out")
    model = load(tmp_path / "out")
    ours = network_of(load(tmp_path / "out", engine="torch"))
    runtime = Runtime(tmp_path / "out", 1)
    n_ids, furthest = 0, 0.0
    for ending in ENDINGS:
        prompt = model.language.prompt(ending, at_edge=True).ids
        row = greedy(model.engine, prompt, model.language.markers[1], 200)
        ids = [[*prompt.tolist(), *row]]
        runtime.forget(1)
        found = runtime.read(ids)
        assert found[0, len(prompt) - 1 : -1].argmax(-1).tolist() == row
        with torch.no_grad():
            furthest = max(furthest, np.abs(found - ours(torch.tensor(ids)).numpy()).max())
        n_ids += len(row)
    assert furthest < 1e-4
    print(f"{len(ENDINGS)} endings, {n_ids:,} ids, logits within {furthest:.1e}")


@pytest.mark.slow
def test_the_graph_says_how_its_ids_run_and_not_where_it_was_made(folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / ONNX)
    said = session.get_modelmeta().custom_metadata_map
    assert said == metadata_as_text(read_model(folder))
    assert (said["backgpt.direction"], said["backgpt.hints"]) == ("backward", "true")
    dimensions = {given.name: given.shape for given in session.get_inputs()}
    assert dimensions["input_ids"] == dimensions["position_ids"] == ["batch", "sequence"]
    assert dimensions["attention_mask"] == ["batch", "total"]
    assert dimensions["past_key_values.0.key"] == ["batch", 1, "past", 64]
    data = (folder / ONNX).read_bytes()
    verify(folder)
    assert json.loads((folder / EXPORT).read_text())["format"] == "onnx"
    assert b".py" not in data
    assert os.fsencode(Path(export_onnx.__file__).parent) not in data


def test_the_folder_is_whole_with_what_lies_deeper_in_it(model_path: Path, tmp_path: Path) -> None:
    source, out = read_source(model_path), tmp_path / "out"
    export_hf(source, out)
    export_hf(source, out, graph=b"graph")
    assert (out / ONNX).read_bytes() == b"graph"
    verify(out)
    assert describe(out).size_bytes == sum(file.stat().st_size for file in files_in(out))
    (out / ONNX).write_bytes(b"grape")
    with pytest.raises(CorruptFileError, match=r"model\.onnx is damaged"):
        verify(out)
    (out / "onnx" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"onnx/notes\.txt, which is not of an export"):
        export_hf(source, out)


@pytest.mark.parametrize("direction", ["backward", "forward", "both"])
@pytest.mark.parametrize("unit", ["token", "word"])
def test_the_readme_shows_javascript_that_turns_ids_of_this_unit(
    tokenizer: Tokenizer, tmp_path: Path, direction: Any, unit: Any
) -> None:
    model = read_model(tiny_folder(tmp_path, tokenizer, direction=direction, unit=unit, n_layer=1))
    text = readme("fox", model, None, onnx=True)
    assert "## ONNX" in text
    assert "## ONNX" not in readme("fox", model, None)
    [script] = re.findall(r"```js\n(.*?)```", text, re.DOTALL)
    assert script.count("turned(") == (0 if direction == "forward" else 2)
    assert ("beginsWord" in script) == (unit == "word" and direction != "forward")
    assert "{{" not in script
    [first] = re.findall(r'first = idsOf\("(.*)"\)', script)
    lead = model.languages[0].prompt("a", at_edge=True)
    names = re.findall(r"<\|\w+\|>", first)
    assert [tokenizer.control_id(name) for name in names] == lead.ids[: len(names)].tolist()


def test_the_command_writes_the_folder_and_refuses_in_one_line(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("backgpt.onnx_graph.onnx_graph", lambda model, metadata: b"graph")
    assert ended(["export", str(model_path), str(out), "--to", "onnx"]) == 0
    assert re.fullmatch(
        r"written to \S+out: \d\.\d MB; its ids are in model order\n", capsys.readouterr().err
    )
    assert (out / ONNX).read_bytes() == b"graph"
    for arguments, reason in (
        (["--to", "onnx", "--dtype", "f16"], "dtype = f16"),
        (["--to", "onnx"], "2 GiB: export to gguf"),
    ):
        monkeypatch.setattr(export_onnx, "LARGEST", 100)
        assert ended(["export", str(model_path), str(tmp_path / "no"), *arguments]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert reason in printed
        assert not (tmp_path / "no").exists()


def test_without_the_library_the_extra_is_named_and_nothing_written(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "backgpt.onnx_graph", raising=False)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"backgpt\[onnx\]"):
        export_onnx.export_onnx(read_source(model_path), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def ended(arguments: list[str]) -> int:
    """Return the exit code of the command line."""
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    return int(ending.value.code or 0)
