"""The transformer against `transformers`, against itself, and its fast paths against plain ones."""

import pytest
import torch
from torch import Tensor

from backgpt import kernels
from backgpt.batches import IGNORE
from backgpt.cache import Cache
from backgpt.errors import UsageError
from backgpt.model import Transformer
from backgpt.shape import ModelConfig


def shape(**overrides: int) -> ModelConfig:
    fields = dict(
        n_layer=2,
        n_head=4,
        n_kv_head=4,
        n_embd=48,
        vocab_size=61,
        block_size=64,
        intermediate_size=80,
        head_dim=16,
    )
    return ModelConfig(**{**fields, **overrides})


def lively(config: ModelConfig, **options: float) -> Transformer:
    """A model whose weights are large enough that every part of it moves the logits."""
    model = Transformer(config, generator=torch.Generator().manual_seed(1), **options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0.0, 0.2, generator=generator)
    return model


def some_ids(rows: int, length: int, vocab_size: int = 61, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab_size, (rows, length), generator=generator)


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
def test_logits_equal_those_of_transformers_qwen3(n_kv_head: int) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = shape(n_kv_head=n_kv_head)
    theirs = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.n_embd,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_kv_head,
            head_dim=config.head_dim,
            max_position_embeddings=config.block_size,
            rms_norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,  # type: ignore[call-arg]
            tie_word_embeddings=True,
            attention_bias=False,
        )
    ).eval()
    ours = lively(config)
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    theirs.tie_weights()

    ids = some_ids(3, 50)
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.5  # the comparison says something


def test_order_of_earlier_ids_moves_the_logits() -> None:
    model = lively(shape())
    ids = some_ids(1, 20)
    shuffled = torch.cat((ids[:, :19].flip(1), ids[:, 19:]), dim=1)
    with torch.no_grad():
        difference = (model(ids)[0, -1] - model(shuffled)[0, -1]).abs().max()
    assert difference > 0.05


def test_a_later_id_never_moves_an_earlier_logit() -> None:
    model = lively(shape())
    ids = some_ids(2, 30)
    changed = ids.clone()
    changed[:, 17] = (changed[:, 17] + 1) % 61
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, :17], after[:, :17])
    assert (before[:, 17:] - after[:, 17:]).abs().max() > 0.05


def test_rotation_is_by_position_and_not_by_head() -> None:
    config = shape()
    model = Transformer(config)
    one_head = some_ids(1, 12, 7).float()[:, :, None].expand(1, 12, 16)
    x = one_head.repeat(1, 1, 4)  # four equal heads
    weight = torch.ones(4, 16)
    turned = kernels.norm_rotate(x, weight, model.cos[:12, None], model.sin[:12, None], 1e-6)
    for head in range(1, 4):
        assert torch.equal(turned[:, :, head], turned[:, :, 0])
    same = kernels.norm_rotate(
        x[:, :1].expand(1, 12, 64), weight, model.cos[:12, None], model.sin[:12, None], 1e-6
    )
    distances = (same[0, 1:, 0] - same[0, 0, 0]).norm(dim=-1)
    assert (distances > 0.1).all()  # one vector at twelve positions is twelve vectors


def test_attention_scores_depend_on_distance_only() -> None:
    model = Transformer(shape())
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn((2, 1, 1, 16), generator=generator).unbind(0)

    def score(q_at: int, k_at: int) -> Tensor:
        one = torch.ones(1, 16)
        turned = [
            kernels.norm_rotate(
                x[:, 0][:, None], one, model.cos[at, None], model.sin[at, None], 1e-6
            )
            for x, at in ((q, q_at), (k, k_at))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(9, 4), score(25, 20))
    assert (score(9, 4) - score(9, 8)).abs() > 1e-3


def test_loss_equals_naive_cross_entropy_over_unignored_targets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "LOSS_CHUNK", 7)
    model = lively(shape())
    ids, targets = some_ids(3, 20), some_ids(3, 20, seed=4)
    targets[0, 12:] = IGNORE
    targets[2, :5] = IGNORE
    log_p = torch.log_softmax(model(ids).detach().double(), dim=-1)
    naive = 0.0
    for row in range(3):
        for at in range(20):
            if targets[row, at] != IGNORE:
                naive -= float(log_p[row, at, targets[row, at]])
    assert model.loss(ids, targets).item() == pytest.approx(naive, rel=1e-5)
    losses = model.token_losses(ids, targets)
    assert losses.shape == (3, 20)
    assert losses.dtype == torch.float32
    assert losses.sum().item() == pytest.approx(naive, rel=1e-5)
    assert torch.equal(losses == 0, targets == IGNORE)
    with torch.no_grad():
        assert float(model.loss(ids, targets)) == pytest.approx(naive, rel=1e-5)


def test_loss_is_zero_with_zero_gradients_where_all_targets_are_ignored() -> None:
    model = lively(shape())
    loss = model.loss(some_ids(2, 5), torch.full((2, 5), IGNORE))
    loss.backward()
    assert loss.item() == 0.0
    assert all(float(p.grad.abs().max()) == 0.0 for p in model.parameters() if p.grad is not None)


def plain_loss(model: Transformer, ids: Tensor, targets: Tensor) -> Tensor:
    """The loss by the plain form of every kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_trains_on_cpu", lambda x: False)
        return model.token_losses(ids, targets).sum()


def gradients(model: Transformer) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
        parameter.grad = None
    return found


@pytest.mark.parametrize("n_kv_head", [4, 2])
@pytest.mark.parametrize("length", [1, 16, 50])
def test_fast_training_path_has_the_plain_values_and_gradients(
    n_kv_head: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 16)
    monkeypatch.setattr(kernels, "SCORES_LIMIT", 3 * 16 * length)  # three heads at a time
    monkeypatch.setattr(kernels, "LOSS_CHUNK", 13)
    model = lively(shape(n_kv_head=n_kv_head))
    ids, targets = some_ids(2, length), some_ids(2, length, seed=4)
    targets[1, length // 2 :] = IGNORE

    fast = model.loss(ids, targets)
    (fast / 3).backward()
    fast_gradients = gradients(model)
    plain = plain_loss(model, ids, targets)
    (plain / 3).backward()

    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    for name, expected in gradients(model).items():
        torch.testing.assert_close(fast_gradients[name], expected, rtol=1e-3, atol=1e-4, msg=name)


def test_bf16_gradients_point_where_float32_gradients_point() -> None:
    model = lively(shape())
    ids, targets = some_ids(4, 60), some_ids(4, 60, seed=4)
    model.loss(ids, targets).backward()
    exact = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(ids, targets)
    loss.backward()
    for name, gradient in gradients(model).items():
        assert gradient.dtype == torch.float32
        cosine = torch.cosine_similarity(gradient.flatten(), exact[name].flatten(), dim=0)
        assert cosine > 0.995, name


@pytest.mark.slow
def test_compiled_regions_have_the_plain_values_and_gradients() -> None:
    model = lively(shape())
    ids, targets = some_ids(2, 20), some_ids(2, 20, seed=4)
    plain = model.loss(ids, targets)
    plain.backward()
    expected = gradients(model)
    model.compile_regions()
    for rows in (2, 1):  # another batch size compiles nothing that is wrong for the first
        loss = model.loss(ids[:rows], targets[:rows])
    loss = model.loss(ids, targets)
    loss.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_loss_gradient_ignores_rows_without_a_target_where_they_are_not_filtered() -> None:
    hidden, weight = some_ids(10, 8).float() / 61, some_ids(61, 8, seed=4).float() / 61
    targets = some_ids(1, 10)[0]
    targets[[0, 4, 9]] = IGNORE
    results = []
    for function in (
        lambda *tensors: kernels._ChunkedCrossEntropy.apply(*tensors),  # type: ignore[no-untyped-call]
        lambda *tensors: kernels.plain_cross_entropy(*tensors).sum(),
    ):
        inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = function(*inputs, targets)
        loss.backward()
        results.append((loss.detach(), inputs[0].grad, inputs[1].grad))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)


def test_accumulating_rows_one_by_one_gives_the_gradients_of_the_batch() -> None:
    model = lively(shape())
    ids, targets = some_ids(4, 24), some_ids(4, 24, seed=4)
    model.loss(ids, targets).backward()
    whole = gradients(model)
    for row in range(4):
        model.loss(ids[row : row + 1], targets[row : row + 1]).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-5, msg=name)


def test_padding_never_changes_a_real_row() -> None:
    model = lively(shape())
    short, targets = some_ids(1, 9), some_ids(1, 9, seed=4)
    padded = torch.cat((short, some_ids(1, 11, seed=5)), dim=1)
    padded_targets = torch.cat((targets, torch.full((1, 11), IGNORE)), dim=1)
    model.loss(short, targets).backward()
    alone = gradients(model)
    model.loss(padded, padded_targets).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-5, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(model(padded)[:, :9], model(short), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_kv_head", [4, 2])
def test_cached_logits_equal_uncached_with_rows_at_different_lengths(n_kv_head: int) -> None:
    config = shape(n_kv_head=n_kv_head)
    model = lively(config).eval()
    ids = some_ids(2, 30)
    starts = [11, 4]
    cache = Cache(config, rows=4, device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        full = model(ids)
        for row, start in zip((2, 0), starts, strict=True):
            logits = model.extend(ids[row // 2][None, :start], cache, [row])
            torch.testing.assert_close(logits[0], full[row // 2, start - 1], rtol=1e-4, atol=1e-5)
        for steps in range(12):
            new = torch.stack([ids[1, 11 + steps], ids[0, 4 + steps]])[:, None]
            logits = model.extend(new, cache, [2, 0])
            torch.testing.assert_close(logits[0], full[1, 11 + steps], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(logits[1], full[0, 4 + steps], rtol=1e-4, atol=1e-5)
        several = model.extend(ids[1:2, 23:28], cache, [2])  # prefill in a second piece
        torch.testing.assert_close(several[0], full[1, 27], rtol=1e-4, atol=1e-5)
    assert cache.lengths == [16, 0, 28, 0]


def test_a_row_longer_than_the_block_is_refused_and_changes_nothing() -> None:
    config = shape(block_size=8)
    model = Transformer(config)
    with pytest.raises(UsageError, match="9 ids is longer than block_size = 8"):
        model(some_ids(1, 9))
    cache = Cache(config, rows=1, device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        model.extend(some_ids(1, 8), cache, [0])
        with pytest.raises(UsageError, match="9 ids"):
            model.extend(some_ids(1, 1), cache, [0])
    assert cache.lengths == [8]


def test_first_weights_follow_the_generator_and_start_near_uniform() -> None:
    config = shape()
    first, again, other = (
        Transformer(config, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    weights = [m.model.embed_tokens.weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    ids, targets = some_ids(4, 40), some_ids(4, 40, seed=4)
    assert first.loss(ids, targets).item() / 160 == pytest.approx(4.11, abs=0.15)  # ln 61


def test_dropout_acts_in_training_only() -> None:
    model = lively(shape(), dropout=0.3)
    ids = some_ids(1, 20)
    with torch.no_grad():
        assert not torch.equal(model(ids), model(ids))
        model.eval()
        assert torch.equal(model(ids), model(ids))


def test_dropout_zeroes_the_given_share_and_keeps_the_mean() -> None:
    dropped = kernels.dropout(torch.ones(1001, 333), 0.2)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.2, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.01)
    assert dropped.unique().numel() == 2
    rows = (dropped == 0).float().mean(1)
    assert float(rows.std()) == pytest.approx((0.16 / 333) ** 0.5, rel=0.2)  # independent draws


def test_dropout_of_nearly_all_is_still_a_number() -> None:
    dropped = kernels.dropout(torch.ones(1000), 0.999999)
    assert dropped.isfinite().all()
