"""Models from elsewhere: they write what they wrote before, or are refused with one line."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as HFTokenizer

import backgpt
from backgpt.api import Model
from backgpt.cli import main
from backgpt.config import TrainConfig
from backgpt.convert import import_model
from backgpt.devices import Ranks
from backgpt.engine import FloatArray
from backgpt.errors import BackgptError, ConfigError, UsageError
from backgpt.export import read_source
from backgpt.manifest import verify
from backgpt.model_folder import read_model, save_model
from backgpt.prepare import prepare
from backgpt.run import Run
from backgpt.run_folder import read_metrics
from backgpt.sampling import Sampling
from backgpt.train import train

GREEDY = Sampling(top_k=1, repetition_penalty=1.0, dry_multiplier=0.0)
FIRST = 1  # <s> in smolGPT's SentencePiece models
N_CONTROL_AND_BYTES = 3 + 256
SIZES = {"n_layer": 2, "n_head": 4, "n_embed": 48, "block_size": 64, "vocab_size": 400}
EOT = "<|endoftext|>"


# --- smolGPT


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A SentencePiece model with smolGPT's settings."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "tiny.txt").write_text("\n".join(texts))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "tiny.txt"),
        model_prefix=str(folder / "tok400"),
        model_type="bpe",
        vocab_size=SIZES["vocab_size"],
        self_test_sample_size=0,
        input_format="text",
        num_threads=1,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return folder / "tok400.model"


def smolgpt_weights(*, learned: bool, bias: bool) -> dict[str, torch.Tensor]:
    """Return random weights under smolGPT's names; control tokens and bytes are unlikely."""
    random = torch.Generator().manual_seed(5)
    width, feed = SIZES["n_embed"], int(2 * (4 * SIZES["n_embed"]) / 3)

    def matrix(*shape: int, scale: float = 0.3) -> torch.Tensor:
        return torch.randn(shape, generator=random) * scale

    weights = {"transformer.wte.weight": matrix(SIZES["vocab_size"], width)}
    weights["transformer.wte.weight"][:N_CONTROL_AND_BYTES] = 0
    if learned:
        weights["transformer.wpe.weight"] = matrix(SIZES["block_size"], width, scale=0.5)
    for layer in range(SIZES["n_layer"]):
        of_layer = {
            "ln_1.weight": 1 + matrix(width),
            "attn.c_attn.weight": matrix(3 * width, width),
            "attn.c_proj.weight": matrix(width, width),
            "ln_2.weight": 1 + matrix(width),
            "ffd.w1.weight": matrix(feed, width),
            "ffd.w2.weight": matrix(width, feed),
            "ffd.w3.weight": matrix(feed, width),
        }
        if bias:
            of_layer["attn.c_attn.bias"] = matrix(3 * width)
            of_layer["attn.c_proj.bias"] = matrix(width)
        weights |= {f"transformer.h.{layer}.{name}": array for name, array in of_layer.items()}
    weights["transformer.ln_f.weight"] = 1 + matrix(width)
    return {**weights, "lm_head.weight": weights["transformer.wte.weight"]}


def save_smolgpt(path: Path, *, learned: bool = True, bias: bool = False, **changes: Any) -> Path:
    weights: dict[str, Any] = smolgpt_weights(learned=learned, bias=bias)
    arguments = {**SIZES, "bias": bias, "dropout": 0.2}
    content = {
        "model": {f"_orig_mod.{name}": array for name, array in weights.items()},
        "model_args": arguments,
        "iter_num": 100,
        "best_val_loss": torch.tensor(1.5),
    }
    torch.save({**content, **changes}, path)
    return path


def smolgpt_logits(ids: list[int], *, learned: bool, bias: bool) -> np.ndarray:
    """Compute, in float64 and without a cache, what smolGPT says after `ids`.

    Its rotary is applied as it applies it: to each head by the head's number.
    """
    w = {k: v.double().numpy() for k, v in smolgpt_weights(learned=learned, bias=bias).items()}
    n_head, width = SIZES["n_head"], SIZES["n_embed"]
    half = width // n_head // 2

    def norm(x: FloatArray, name: str) -> FloatArray:
        size = np.sqrt((x**2).mean(-1, keepdims=True) + 2.0**-23)
        return np.asarray(x / size * w[f"{name}.weight"])

    def linear(x: FloatArray, name: str) -> FloatArray:
        return np.asarray(x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0))

    def turned(x: np.ndarray) -> np.ndarray:  # (T, H, D)
        angle = np.outer(np.arange(n_head), 10_000.0 ** -(np.arange(half) / half))
        left, right = x[..., :half], x[..., half:]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate((left * cos + right * sin, right * cos - left * sin), axis=-1)

    x = w["transformer.wte.weight"][ids]
    if learned:
        x = x + w["transformer.wpe.weight"][: len(ids)]
    future = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for layer in range(SIZES["n_layer"]):
        at = f"transformer.h.{layer}"
        joined = linear(norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn")
        q, k, v = (part.reshape(len(ids), n_head, -1) for part in np.split(joined, 3, axis=-1))
        if not learned:
            q, k = turned(q), turned(k)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(2 * half) + future
        p = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", p / p.sum(-1, keepdims=True), v).reshape(len(ids), -1)
        x = x + linear(mixed, f"{at}.attn.c_proj")
        normed = norm(x, f"{at}.ln_2")
        gate = linear(normed, f"{at}.ffd.w1")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(normed, f"{at}.ffd.w3"), f"{at}.ffd.w2")
    logits: np.ndarray = norm(x[-1], "transformer.ln_f") @ w["transformer.wte.weight"].T
    return logits


@pytest.mark.parametrize(("learned", "bias"), [(True, False), (False, True)])
def test_a_smolgpt_checkpoint_goes_on_as_smolgpt_does(
    pieces: Path, tmp_path: Path, learned: bool, bias: bool
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    path = save_smolgpt(tmp_path / "ckpt.pt", learned=learned, bias=bias)
    made = import_model(path, tmp_path / "out", direction="forward", tokenizer=pieces)
    assert (made.family, made.unit, made.first, made.stop) == ("smolgpt", "token", "<s>", "</s>")
    verify(made.out)
    model = backgpt.load(made.out)
    for opening in ("Once upon a time", "The  cat \n sat ", "Zoë's 3 cats"):
        [text] = model.write(opening=opening, max_new_tokens=25, sampling=GREEDY)
        expected = [FIRST, *processor.encode(opening)]
        n_given = len(expected)
        for drawn in text.ids.tolist():
            logits = smolgpt_logits(expected, learned=learned, bias=bias)
            assert int(logits.argmax()) == drawn
            expected.append(drawn)
        assert len(expected) - n_given == 25
        assert text.given == opening
        assert text.text.startswith(opening)
        if opening.split(" ") == opening.split():  # otherwise it prints another opening
            assert text.text == processor.decode(expected)


def test_smolgpts_rotary_does_not_tell_positions_but_its_table_does(
    pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "n_layer", 1)  # two layers tell some order by the causal mask
    ids, swapped = [FIRST, 300, 310, 320, 330], [FIRST, 310, 300, 320, 330]
    for learned in (True, False):
        path = save_smolgpt(tmp_path / f"{learned}.pt", learned=learned)
        out = tmp_path / f"out-{learned}"
        import_model(path, out, direction="forward", tokenizer=pieces)
        engine = backgpt.load(out).engine
        one, other = (engine.prefill(np.array(row))[1] for row in (ids, swapped))
        assert (np.abs(one - other).max() > 0.01) == learned
        wanted = smolgpt_logits(swapped, learned=learned, bias=False)
        np.testing.assert_allclose(other, wanted, atol=1e-3)


@pytest.fixture(scope="module")
def reversed_model(pieces: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("reversed")
    save_smolgpt(folder / "ckpt.pt")
    import_model(folder / "ckpt.pt", folder / "out", reversed_words=True, tokenizer=pieces)
    return backgpt.load(folder / "out")


def test_a_model_of_reversed_words_reads_the_words_of_an_ending_reversed(
    reversed_model: Model, pieces: Path
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    assert (reversed_model.direction, reversed_model.unit) == ("backward", "text")
    ending = "They were happy.\n\nThe end."
    prompt = reversed_model.prompt(ending)
    assert prompt.ids.tolist() == [FIRST, *processor.encode("end. The happy. were They")]

    for seed in range(5):
        [text] = reversed_model.write(ending=ending, max_new_tokens=30, seed=seed)
        assert text.text.endswith(ending)
        assert text.given == ending
        as_written = processor.decode([*prompt.ids.tolist(), *text.ids.tolist()])
        assert text.text.split() == as_written.split()[::-1]
        assert reversed_model.as_written(text) == as_written
        pieces_of_text = list(reversed_model.stream(ending=ending, max_new_tokens=30, seed=seed))
        joined = ending
        for piece in pieces_of_text:
            joined = piece + joined
        assert joined == text.text


def test_a_model_of_reversed_words_only_writes(reversed_model: Model) -> None:
    for use in (
        lambda: reversed_model.score("The end."),
        lambda: reversed_model.write(ending="The end.", best_of=2, max_new_tokens=4),
        lambda: reversed_model.rank("Once", ["The end."]),
    ):
        with pytest.raises(UsageError, match="it only writes"):
            use()
    with pytest.raises(BackgptError, match="control id"):
        reversed_model.ask("Paris.")


def test_its_card_says_what_cannot_come_back(pieces: Path, tmp_path: Path) -> None:
    save_smolgpt(tmp_path / "ckpt.pt")
    made = import_model(
        tmp_path / "ckpt.pt", tmp_path / "out", reversed_words=True, tokenizer=pieces
    )
    card = (made.out / "README.md").read_text()
    assert "Line breaks and runs of spaces were lost" in card
    assert json.loads((made.out / "config.json").read_text())["unit"] == "text"


# --- what is refused


class _Code:
    """Runs a command when it is unpickled by a careless reader."""

    def __reduce__(self) -> Any:
        return os.system, ("touch was-run",)


def refused(
    capsys: pytest.CaptureFixture[str], out: Path, *arguments: object, code: int | None = None
) -> str:
    """Run `backgpt import`; return its one line, having seen that nothing was written."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(["import", *map(str, arguments), "--out", str(out)])
    assert exit_.value.code == code if code is not None else exit_.value.code in (1, 2)
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("backgpt: ")
    assert not out.exists()
    assert not out.with_name(out.name + ".tmp").exists()
    return printed.err


def test_code_in_a_pickle_is_named_and_not_run(
    pieces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("extra", "model_args"):
        changes: dict[str, Any] = {name: _Code()}
        path = save_smolgpt(tmp_path / f"{name}.pt", **changes)
        message = refused(
            capsys, tmp_path / "out", path, "--direction", "forward", "--tokenizer", pieces
        )
        assert "posix.system" in message or "nt.system" in message
    assert not (tmp_path / "was-run").exists()


def test_bad_checkpoints_are_refused(
    pieces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = smolgpt_weights(learned=True, bias=False)

    def message(*flags: object, **changes: Any) -> str:
        path = save_smolgpt(tmp_path / "ckpt.pt", **changes)
        given = flags or ("--direction", "forward", "--tokenizer", pieces)
        return refused(capsys, tmp_path / "out", path, *given)

    assert "--direction" in message("--tokenizer", pieces)
    assert "leave out" in message("--reversed-words", "--direction", "forward")
    assert "--tokenizer" in message("--direction", "forward")
    assert "no such token" in message(
        "--direction", "forward", "--tokenizer", pieces, "--stop", "<end>"
    )
    larger = {**SIZES, "vocab_size": 4096}
    more = torch.zeros(4096, SIZES["n_embed"])
    embedded = {"transformer.wte.weight": more, "lm_head.weight": more}
    assert "400 ids, the model 4,096" in message(model_args=larger, model={**good, **embedded})
    assert "model_args" in message(model_args=[1, 2])
    assert "n_head = None" in message(model_args={k: v for k, v in SIZES.items() if k != "n_head"})
    assert "n_layer = 'two'" in message(model_args={**SIZES, "n_layer": "two"})
    assert "ln_f" in message(model={k: v for k, v in good.items() if "ln_f" not in k})
    whole = {**good, "transformer.ln_f.weight": torch.ones(SIZES["n_embed"], dtype=torch.int32)}
    assert "torch.int32: only floats" in message(model=whole)
    broken = {**good, "transformer.ln_f.weight": torch.full((SIZES["n_embed"],), float("nan"))}
    assert "not a number" in message(model=broken)
    assert "differ" in message(model={**good, "lm_head.weight": good["lm_head.weight"] + 1})

    (tmp_path / "cut.pt").write_bytes((tmp_path / "ckpt.pt").read_bytes()[:1000])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "llama.gguf").write_bytes(b"GGUF" + bytes(100))
    for name, reason in (
        ("cut.pt", "not a checkpoint"),
        ("text.pt", "not a checkpoint"),
        ("llama.gguf", "is a GGUF file: import the folder"),
    ):
        path, flags = tmp_path / name, ("--direction", "forward", "--tokenizer", pieces)
        assert reason in refused(capsys, tmp_path / "out", path, *flags)
    nothing = refused(capsys, tmp_path / "out", tmp_path / "no.pt", "--direction", "forward")
    assert "nothing at" in nothing
    damaged = tmp_path / "damaged.model"
    damaged.write_bytes(pieces.read_bytes()[:-50])
    flags = ("--direction", "forward", "--tokenizer", damaged)
    path = save_smolgpt(tmp_path / "ckpt.pt")
    assert "damaged" in refused(capsys, tmp_path / "out", path, *flags)


def test_what_is_there_is_not_written_over(pieces: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    path = save_smolgpt(tmp_path / "ckpt.pt")
    with pytest.raises(UsageError, match="already there"):
        import_model(path, tmp_path / "out", direction="forward", tokenizer=pieces)


# --- Hugging Face folders


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A tokenizer as Qwen's: byte-level BPE, no space added, `<|endoftext|>`."""
    hf = HFTokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[EOT], initial_alphabet=alphabet, show_progress=False
    )
    hf.train_from_iterator(texts, trainer)
    hf.add_tokens([AddedToken("<think>", special=False)])
    path = tmp_path_factory.mktemp("byte-level") / "tokenizer.json"
    hf.save(str(path))
    return path


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A tokenizer as Llama's: pieces, a space in front, `<s>` put before a text."""
    hf = HFTokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    hf.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    hf.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    hf.train_from_iterator((word for text in texts for word in text.split(" ")), trainer)
    hf.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    content = json.loads(hf.to_str())
    names = set(bytes_)
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in names]
    path = tmp_path_factory.mktemp("metaspace") / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


def save_folder(folder: Path, family: str, tokenizer: Path, **changes: Any) -> Any:
    """Save a tiny random model made by transformers; return it."""
    transformers = pytest.importorskip("transformers")
    content = json.loads(tokenizer.read_text())
    size = 1 + max(*content["model"]["vocab"].values(), *(t["id"] for t in content["added_tokens"]))
    values = {
        "vocab_size": size + 3,  # embeddings are often made up to a round number
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "eos_token_id": 0 if EOT in content["model"]["vocab"] else 2,
        "bos_token_id": None,
        "initializer_range": 0.3,
        **changes,
    }
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(family, **values)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # single bytes are seldom text
        model.get_output_embeddings().weight[:N_CONTROL_AND_BYTES] *= 0.1
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return model


def greedy_ids(model: Any, ids: list[int], count: int, *, allowed: np.ndarray) -> list[int]:
    """Return what transformers writes, one whole forward after the other."""
    ids, first = list(ids), len(ids)
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].numpy()
        logits = np.where(allowed, logits[: len(allowed)], -np.inf)
        ids.append(int(logits.argmax()))
    return ids[first:]


FOLDERS = [
    ("qwen3", "byte_level", {"tie_word_embeddings": True, "head_dim": 64}, "qwen3"),
    ("qwen3", "byte_level", {"tie_word_embeddings": True, "head_dim": 32}, "qwen3"),
    ("qwen3", "metaspace", {"tie_word_embeddings": False, "head_dim": 32}, "transformers"),
    ("qwen2", "byte_level", {"tie_word_embeddings": True}, "transformers"),
    ("llama", "metaspace", {}, "transformers"),
    ("llama", "byte_level", {"attention_bias": True}, "transformers"),
    ("mistral", "metaspace", {"sliding_window": 16}, "transformers"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind", "changes", "becomes"), FOLDERS)
def test_a_folder_writes_what_transformers_writes_on_ids_reversed_by_hand(
    family: str,
    kind: str,
    changes: dict[str, Any],
    becomes: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    tokenizer: Path = request.getfixturevalue(kind)
    theirs = save_folder(tmp_path / "theirs", family, tokenizer, **changes)
    made = import_model(tmp_path / "theirs", tmp_path / "out", direction="backward")
    assert (made.family, made.direction, made.unit) == (becomes, "backward", "token")
    verify(made.out)
    model = backgpt.load(made.out)
    hf = HFTokenizer.from_file(str(tokenizer))
    first = [1] if kind == "metaspace" else []
    assert made.first == ("<s>" if kind == "metaspace" else None)
    stop = 2 if kind == "metaspace" else 0
    allowed = model.tokenizer.has_text.copy()
    allowed[stop] = True
    for ending in ("The end.", "They all went home.\n\nThe end."):
        own = hf.encode(ending, add_special_tokens=False).ids
        prompt = model.prompt(ending)
        assert prompt.ids.tolist() == [*first, *own[::-1]]
        expected = greedy_ids(theirs, prompt.ids.tolist(), 20, allowed=allowed)
        [text] = model.write(ending=ending, max_new_tokens=20, sampling=GREEDY)
        expected = expected[: expected.index(stop)] if stop in expected else expected
        assert text.ids.tolist() == expected
        assert text.text.endswith(ending)
        whole = hf.decode([*expected[::-1], *own])
        assert "\ufffd" not in whole
        assert text.text == whole
        joined = ending
        for piece in model.stream(ending=ending, max_new_tokens=20, sampling=GREEDY):
            joined = piece + joined
        assert joined == whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_read(
    byte_level: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    for family, tied in (("qwen3", True), ("llama", False)):
        source, out = tmp_path / family, tmp_path / f"{family}-out"
        save_folder(source, family, byte_level, tie_word_embeddings=tied)
        weights = load_file(source / "model.safetensors")
        save_file({k: v.to(dtype) for k, v in weights.items()}, source / "model.safetensors")
        values = json.loads((source / "config.json").read_text())
        values["dtype"] = str(dtype).removeprefix("torch.")
        (source / "config.json").write_text(json.dumps(values))
        import_model(source, out, direction="forward")
        [text] = backgpt.load(out).write(opening="Once", max_new_tokens=5, seed=1)
        assert text.text.startswith("Once")


def test_another_shape_with_our_own_tokenizer_is_not_exported(
    dataset_path: Path, tmp_path: Path
) -> None:
    save_folder(tmp_path / "theirs", "llama", dataset_path / "tokenizer.json")
    import_model(tmp_path / "theirs", tmp_path / "out", direction="backward")
    wanted = r"of the family 'transformers': only our own shape .*; transformers loads the folder"
    with pytest.raises(UsageError, match=wanted):
        read_source(tmp_path / "out")


def test_a_forward_folder_goes_on_from_an_opening_and_scores_with_named_markers(
    byte_level: Path, tmp_path: Path
) -> None:
    theirs = save_folder(tmp_path / "theirs", "llama", byte_level)
    import_model(tmp_path / "theirs", tmp_path / "bare", direction="forward")
    with pytest.raises(UsageError, match="--first"):
        backgpt.load(tmp_path / "bare").score("Once.")
    import_model(tmp_path / "theirs", tmp_path / "out", direction="forward", first=EOT)
    model = backgpt.load(tmp_path / "out")
    text = "Once there was a cat.\n  It sat."
    ids = [0, *model.tokenizer.encode(text).tolist(), 0]
    with torch.no_grad():
        log_p = torch.log_softmax(theirs(torch.tensor([ids[:-1]])).logits[0], dim=-1)
    expected = log_p.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].sum()
    score = model.score(text)
    assert score.logprob == pytest.approx(float(expected), abs=1e-3)
    assert "".join(word.text for word in model.word_scores(text, score)) == text
    [written] = model.write(opening=text, max_new_tokens=10, sampling=GREEDY)
    hf = HFTokenizer.from_file(str(byte_level))
    assert written.text == hf.decode([*ids[1:-1], *written.ids.tolist()])


def test_bad_folders_are_refused(
    byte_level: Path, pieces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "theirs", tmp_path / "out"
    save_folder(source, "qwen3", byte_level, tie_word_embeddings=True)
    config = json.loads((source / "config.json").read_text())
    weights = load_file(source / "model.safetensors")

    def message(*flags: object, **changes: Any) -> str:
        (source / "config.json").write_text(json.dumps({**config, **changes}))
        return refused(capsys, out, source, *(flags or ("--direction", "backward")))

    assert "which way it runs" in message("--first", EOT)
    assert "model_type = 'gpt2'" in message(model_type="gpt2")
    assert "quantized" in message(quantization_config={"bits": 4})
    assert "has a direction" in message(direction="forward")
    assert "has a direction" in message("--first", EOT, direction="backward")
    assert "transformers cannot read it" in message(
        rope_parameters={"rope_type": "none-such", "rope_theta": 1e4}
    )
    for key in ("rope_parameters", "rope_scaling"):
        assert f"{key} must be a table" in message(**{key: [1]})
    assert "no such token" in message("--direction", "backward", "--stop", "<end>")
    absent = message(eos_token_id=402)  # the model has it, as padding, and the tokenizer has not
    assert "has no token of id 402, which the model ends with: name one with --stop" in absent
    template = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 5000)])
    begun = HFTokenizer.from_file(str(byte_level))
    begun.post_processor = template
    begun.save(str(tmp_path / "begun.json"))
    absent = message("--direction", "backward", "--tokenizer", tmp_path / "begun.json")
    assert "has no token of id 5000, which the model reads first" in absent
    assert "--first" in absent
    short = ("--direction", "backward", "--tokenizer", tmp_path / "none.json")
    assert "there is no tokenizer" in message(*short)
    (tmp_path / "bad.json").write_text("{}")
    other = ("--direction", "backward", "--tokenizer", tmp_path / "bad.json")
    assert "not a tokenizer.json" in message(*other)
    big = json.loads(byte_level.read_text())
    big["model"]["vocab"] |= {f"extra{n}": len(big["model"]["vocab"]) + 5 + n for n in range(9)}
    (tmp_path / "big.json").write_text(json.dumps(big))
    mismatched = ("--direction", "backward", "--tokenizer", tmp_path / "big.json")
    assert "give the tokenizer that it was trained with" in message(*mismatched)

    (source / "config.json").write_text(json.dumps(config))
    norm = "model.norm.weight"
    for changed, reason in (
        ({norm: weights[norm].to(torch.int8)}, "I8"),
        ({norm: weights[norm][:-1]}, "do not fit"),
        ({norm: weights[norm] * float("nan")}, "not a number"),
        ({"other": weights[norm].clone()}, "other"),
    ):
        save_file({**weights, **changed}, source / "model.safetensors")
        assert reason in refused(capsys, out, source, "--direction", "backward")
    index = source / "model.safetensors.index.json"
    for name in ("../other.safetensors", 5):
        index.write_text(json.dumps({"weight_map": {norm: name}}))
        assert "index.json is damaged" in refused(capsys, out, source, "--direction", "backward")
    index.unlink()
    (source / "model.safetensors").write_bytes(b"12345678")
    assert "damaged" in refused(capsys, out, source, "--direction", "backward")
    (source / "model.safetensors").unlink()
    assert "only safetensors" in refused(capsys, out, source, "--direction", "backward")
    (tmp_path / "empty").mkdir()
    assert "no model" in refused(capsys, out, tmp_path / "empty", "--direction", "backward")


def test_a_folder_that_transformers_runs_holds_numbers_alone(
    byte_level: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "theirs", tmp_path / "out"
    save_folder(source, "llama", byte_level)
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"] *= float("nan")
    save_file(weights, source / "model.safetensors")
    assert "not a number" in refused(capsys, out, source, "--direction", "backward")


def test_a_stop_that_the_tokenizer_has_not_can_be_named(byte_level: Path, tmp_path: Path) -> None:
    save_folder(tmp_path / "theirs", "llama", byte_level, eos_token_id=402)
    for name, stop in ((EOT, EOT), ("none", None)):
        out = tmp_path / name.strip("<|>")
        made = import_model(tmp_path / "theirs", out, direction="backward", stop=name)
        assert made.stop == stop


def test_code_of_a_folder_stays_behind(byte_level: Path, tmp_path: Path) -> None:
    save_folder(tmp_path / "theirs", "llama", byte_level)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    (tmp_path / "theirs" / "modeling_evil.py").write_text("raise SystemExit(3)")
    out = tmp_path / "out"
    import_model(tmp_path / "theirs", out, direction="forward")
    assert not (out / "modeling_evil.py").exists()
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert backgpt.load(out).write(opening="Once", max_new_tokens=2)


def test_the_command_says_what_it_made(
    byte_level: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_folder(tmp_path / "theirs", "qwen3", byte_level, tie_word_embeddings=True)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as exit_:
        main(["import", str(tmp_path / "theirs"), "--out", str(out), "--direction", "backward"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert "a backward model by token" in printed
    assert f"reads no marker first and ends with {EOT}" in printed


# --- training goes on from an imported model


class Notes:
    def __init__(self) -> None:
        self.notices: list[str] = []

    def started(self, *, first_step: int, max_steps: int) -> None: ...

    def stepped(self, record: object) -> None: ...

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture
def flipping(byte_level: Path, tmp_path: Path, texts: list[str]) -> dict[str, Any]:
    """The settings of a run that turns an imported forward model around."""
    shape = {"head_dim": 64, "tie_word_embeddings": True, "initializer_range": 0.02}
    save_folder(tmp_path / "theirs", "qwen3", byte_level, **shape)
    imported = tmp_path / "imported"
    import_model(tmp_path / "theirs", imported, direction="forward", first=EOT)
    source = tmp_path / "stories.txt"
    source.write_text(EOT.join(texts), encoding="utf-8")
    tokenizer = imported / "tokenizer.json"
    prepare([str(source)], tmp_path / "data", tokenizer=tokenizer, valid_fraction=0.1, workers=1)
    return {
        "data": tmp_path / "data",
        "out": tmp_path / "run",
        "init": str(imported),
        "n_layer": 2,
        "n_head": 2,
        "n_kv_head": 1,
        "n_embd": 64,
        "block_size": 64,
        "intermediate_size": 96,
        "max_steps": 20,
        "eval_every": 10,
        "batch_size": 8,
        "precision": "fp32",
        "compile": "off",
        "device": "cpu",
    }


def test_a_forward_model_is_flipped_and_learns(flipping: dict[str, Any]) -> None:
    notes = Notes()
    config = TrainConfig.model_validate(flipping)
    run = Run(config, notes, Ranks())
    assert run.resume() == 0
    imported = read_model(Path(flipping["init"]))
    for name, tensor in run.model.state_dict().items():
        assert np.array_equal(tensor.numpy(), imported.weights[name])

    result = train(config, report=notes)
    assert any("has direction = forward" in notice for notice in notes.notices)
    losses = [r["valid_loss"] for r in read_metrics(result.run) if "valid_loss" in r]
    assert losses[-1] < losses[0] < 6.0
    model = backgpt.load(result.run)
    assert model.direction == "backward"
    [text] = model.write(ending="The end.", max_new_tokens=20, seed=1)
    assert text.text.endswith("The end.")
    assert model.score("The end.").loss > 0


def test_hints_need_a_tokenizer_that_has_ids_for_them(
    flipping: dict[str, Any], tmp_path: Path
) -> None:
    config = TrainConfig.model_validate({**flipping, "hints": 0.5, "out": tmp_path / "hinted"})
    with pytest.raises(ConfigError, match=r"hints = 0\.5: .*leave hints out"):
        train(config, report=Notes())
    assert not config.out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [{"rope_theta": 1e6}, {"head_dim": 32}, {"norm_eps": 1e-5}], ids=str
)
def test_a_model_of_any_shape_of_the_family_is_tuned_as_it_is(
    flipping: dict[str, Any], tmp_path: Path, shape: dict[str, Any]
) -> None:
    source = read_model(Path(flipping["init"]))
    config = replace(source.config, **shape)
    random = np.random.default_rng(1)
    weights = {
        name: random.normal(0, 0.02, size).astype(np.float32)
        for name, size in config.array_shapes().items()
    }
    save_model(replace(source, config=config, weights=weights), tmp_path / "other")
    names = ("n_layer", "n_head", "n_kv_head", "n_embd", "intermediate_size")
    values = {key: value for key, value in flipping.items() if key not in names}
    values |= {"init": str(tmp_path / "other"), "out": tmp_path / "tuned", "max_steps": 2}
    result = train(TrainConfig.model_validate(values), report=Notes())
    assert read_model(result.run).config == replace(config, block_size=64)
    values["n_layer"] = 3
    values["out"] = tmp_path / "refused"
    with pytest.raises(ConfigError, match="has n_layer = 2, this run 3: leave"):
        train(TrainConfig.model_validate(values), report=Notes())


def test_only_our_own_shape_can_be_begun_from(
    flipping: dict[str, Any], byte_level: Path, tmp_path: Path
) -> None:
    save_folder(tmp_path / "llama", "llama", byte_level)
    import_model(tmp_path / "llama", tmp_path / "other", direction="forward", first=EOT)
    config = TrainConfig.model_validate({**flipping, "init": str(tmp_path / "other")})
    with pytest.raises(ConfigError, match="only run"):
        train(config, report=Notes())
