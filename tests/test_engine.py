"""What every engine keeps: one by one = together, rows that come and go, what it refuses."""

import ast
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import backgpt.engine
from backgpt.engine import Engine
from backgpt.engine.torch_engine import TorchEngine
from backgpt.errors import UsageError
from backgpt.model import Transformer
from backgpt.model_folder import HUGGING_FACE_NAMES
from backgpt.shape import ModelConfig

VOCAB, BLOCK = 61, 32


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(
        n_layer=2,
        n_head=4,
        n_kv_head=2,
        n_embd=48,
        vocab_size=VOCAB,
        block_size=BLOCK,
        intermediate_size=80,
        head_dim=16,
    )
    built = Transformer(config, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2, generator=generator)
    return built


@pytest.fixture(scope="module")
def folder(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model for transformers."""
    names = {theirs: getattr(model.config, ours) for ours, theirs in HUGGING_FACE_NAMES.items()}
    fixed = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "dtype": "float32"}
    path = tmp_path_factory.mktemp("transformers")
    (path / "config.json").write_text(json.dumps({**fixed, **names, "tie_word_embeddings": True}))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(params=["torch", "native", "transformers"])
def engine(model: Transformer, request: pytest.FixtureRequest) -> Engine:
    if request.param == "torch":
        return TorchEngine(model)
    if request.param == "transformers":
        theirs = pytest.importorskip("backgpt.engine.transformers_engine", exc_type=ImportError)
        path = request.getfixturevalue("folder")
        made: Engine = theirs.TransformersEngine(path, vocab_size=VOCAB, block_size=BLOCK)
        return made
    native = pytest.importorskip("backgpt.engine.native_engine", exc_type=ImportError)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    built: Engine = native.NativeEngine(model.config, weights)
    return built


def prompt(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, length).astype(np.uint16)


def greedy(engine: Engine, prompts: list[np.ndarray], count: int) -> list[list[int]]:
    """Continue all prompts together, each step in one batch."""
    rows: list[int] = []
    chosen: list[list[int]] = []
    for given in prompts:
        (row,), logits = engine.prefill(given)
        rows.append(row)
        chosen.append([int(logits.argmax())])
    for _ in range(count - 1):
        logits = engine.step(rows, [ids[-1] for ids in chosen])
        for ids, best in zip(chosen, logits.argmax(1), strict=True):
            ids.append(int(best))
    engine.release(rows)
    return chosen


def test_rows_of_different_lengths_together_choose_what_each_chooses_alone(
    engine: Engine, model: Transformer
) -> None:
    prompts = [prompt(length, seed=length) for length in (1, 5, 9, 17)]
    together = greedy(engine, prompts, 12)
    alone = [greedy(engine, [ids], 12)[0] for ids in prompts]
    assert together == alone
    with torch.no_grad():  # and what the model chooses without a cache
        for ids, chosen in zip(prompts, alone, strict=True):
            text = [int(i) for i in ids]
            for expected in chosen:
                assert int(model(torch.tensor([text]))[0, -1].argmax()) == expected
                text.append(expected)


def test_copies_of_a_prompt_go_their_own_ways(engine: Engine, model: Transformer) -> None:
    ids = prompt(6)
    rows, logits = engine.prefill(ids, copies=3)
    assert len(set(rows)) == 3
    assert logits.shape == (VOCAB,)
    assert logits.dtype == np.float32
    stepped = engine.step(rows, [1, 2, 3])
    assert stepped.shape == (3, VOCAB)
    assert stepped.dtype == np.float32
    for row, new in enumerate((1, 2, 3)):
        text = torch.tensor([[*(int(i) for i in ids), new]])
        with torch.no_grad():
            expected = model(text)[0, -1].numpy()
        np.testing.assert_allclose(stepped[row], expected, atol=1e-4)


def test_released_rows_are_given_out_again_and_remember_nothing(engine: Engine) -> None:
    rows, _ = engine.prefill(prompt(20, seed=1), copies=2)
    kept, released = rows
    expected = engine.step([kept], [5])
    engine.release([released])
    engine.release([released])  # twice is as good as once
    (again,), logits = engine.prefill(prompt(4, seed=2))
    assert again == released
    fresh_rows, fresh = engine.prefill(prompt(4, seed=2))
    np.testing.assert_array_equal(logits, fresh)
    first, second = engine.step([again, fresh_rows[0]], [7, 7])
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert expected.shape == (1, VOCAB)


def test_rows_in_use_survive_growth(engine: Engine) -> None:
    (first,), _ = engine.prefill(prompt(10, seed=3))
    others = [engine.prefill(prompt(3, seed=n))[0][0] for n in range(9)]
    assert len({first, *others}) == 10
    grown = engine.step([first], [4])
    engine.release([first, *others])
    (alone,), _ = engine.prefill(prompt(10, seed=3))
    np.testing.assert_allclose(grown, engine.step([alone], [4]), atol=1e-5)


def test_scores_equal_the_models_log_probabilities_in_the_given_order(
    engine: Engine, model: Transformer
) -> None:
    texts = [prompt(length, seed=length) for length in (7, BLOCK + 1, 2, 1, 20, 7)]
    scores = engine.score(texts)
    assert [len(row) for row in scores] == [6, BLOCK, 1, 0, 19, 6]
    for ids, row in zip(texts, scores, strict=True):
        assert row.dtype == np.float32
        if len(ids) == 1:
            continue
        whole = torch.from_numpy(ids.astype(np.int64))
        with torch.no_grad():
            log_p = torch.log_softmax(model(whole[None, :-1])[0], dim=-1)
        expected = log_p.gather(1, whole[1:, None])[:, 0].numpy()
        np.testing.assert_allclose(row, expected, atol=1e-4)
        assert (row < 0).all()
    assert engine.score([]) == []


def test_steps_agree_with_scores(engine: Engine) -> None:
    ids = prompt(12, seed=8)
    (row,), logits = engine.prefill(ids[:1])
    total = 0.0
    for new in ids[1:]:
        wide = logits.astype(np.float64)
        total += wide[new] - np.logaddexp.reduce(wide)
        logits = engine.step([row], [int(new)])[0]
    assert total == pytest.approx(float(engine.score([ids])[0].sum()), abs=1e-3)


def test_a_full_row_is_refused_and_other_rows_go_on(engine: Engine) -> None:
    (full,), _ = engine.prefill(prompt(BLOCK))
    (other,), _ = engine.prefill(prompt(3))
    with pytest.raises(UsageError, match=f"block_size = {BLOCK}"):
        engine.step([other, full], [1, 1])
    assert engine.step([other], [1]).shape == (1, VOCAB)


def test_more_rows_than_block_size_can_be_stepped(engine: Engine) -> None:
    rows, _ = engine.prefill(prompt(2), copies=BLOCK + 5)
    assert engine.step(rows, [3] * len(rows)).shape == (BLOCK + 5, VOCAB)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros(0, dtype=np.int64), "at least one id"),
        (np.zeros((2, 3), dtype=np.int64), "1-D"),
        (np.zeros(3), "give integers"),
        (np.array([3, VOCAB]), f"id {VOCAB} is outside the vocabulary of {VOCAB}"),
        (np.array([3, -1]), "id -1 is outside"),
        (np.zeros(BLOCK + 1, dtype=np.int64), f"{BLOCK + 1} ids do not fit into {BLOCK}"),
    ],
)
def test_prefill_refuses_what_cannot_be_read(engine: Engine, ids: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        engine.prefill(ids)


def test_several_threads_read_and_score_as_one_does(engine: Engine) -> None:
    prompts = [prompt(3 + seed, seed) for seed in range(8)]
    alone = [greedy(engine, [ids], 8) for ids in prompts]
    scores = engine.score([prompts[-1]])[0]

    def work(number: int) -> bool:
        same = [greedy(engine, [prompts[number]], 8) == alone[number] for _ in range(6)]
        same += [np.allclose(engine.score([prompts[-1]])[0], scores, atol=1e-5) for _ in range(6)]
        return all(same)

    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(work, range(len(prompts)), timeout=60)) == [True] * len(prompts)


def test_step_refuses_rows_it_cannot_step(engine: Engine) -> None:
    (row,), _ = engine.prefill(prompt(3))
    with pytest.raises(UsageError, match="twice"):
        engine.step([row, row], [1, 2])
    with pytest.raises(UsageError, match="is not in use"):
        engine.step([row + 1], [1])
    with pytest.raises(UsageError, match="one id for each"):
        engine.step([row], [1, 2])
    with pytest.raises(UsageError, match="at least 1"):
        engine.prefill(prompt(3), copies=0)
    assert engine.step([], []).shape == (0, VOCAB)
    (full,), _ = engine.prefill(prompt(BLOCK))
    with pytest.raises(UsageError, match=f"row {full} is full: block_size = {BLOCK}"):
        engine.step([row, full], [1, 1])


def test_the_protocol_module_imports_no_torch() -> None:
    tree = ast.parse(Path(backgpt.engine.__file__).read_text(encoding="utf-8"))
    imported = [
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(a.name for a in node.names)]
    ]
    assert not any(name.split(".")[0] == "torch" for name in imported)
