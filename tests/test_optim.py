"""The optimizer against torch's own, its state, and the schedule by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backgpt.config import TrainConfig
from backgpt.errors import CorruptFileError
from backgpt.model import Transformer
from backgpt.optim import (
    Optimizer,
    build_optimizer,
    clip_gradients,
    muon_update,
    orthogonalize,
    schedule,
)
from backgpt.shape import ModelConfig


def settings(**overrides: Any) -> TrainConfig:
    return TrainConfig.model_validate({"data": Path("-"), "max_steps": 1, **overrides})


def small_model() -> Transformer:
    config = ModelConfig(
        n_layer=2,
        n_head=2,
        n_kv_head=1,
        n_embd=32,
        vocab_size=40,
        block_size=16,
        intermediate_size=96,
        head_dim=16,
    )
    return Transformer(config, generator=torch.Generator().manual_seed(0))


def train(model: Transformer, optimizer: Optimizer, steps: int, seed: int = 1) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        ids = torch.randint(0, 40, (4, 13), generator=generator).sort(dim=1).values
        loss = model.loss(ids[:, :-1], ids[:, 1:]) / 48
        loss.backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step(0.7)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("size", [(24, 24), (40, 16), (16, 40)])
def test_muon_moves_matrices_as_torch_muon_does(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(size, generator=generator) for _ in range(3)]
    ours, theirs = ([torch.nn.Parameter(w.clone()) for w in starts] for _ in range(2))
    momenta = [torch.zeros(size) for _ in ours]
    reference = torch.optim.Muon(theirs, lr=0.03, weight_decay=0.2, momentum=0.95)
    for _ in range(4):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(size, generator=generator)
            other.grad = mine.grad.clone()
        with torch.no_grad():
            muon_update(list(ours), momenta, lr=0.03, weight_decay=0.2)
        reference.step()
    for mine, other, start in zip(ours, theirs, starts, strict=True):
        moved = (other - start).detach().norm()
        assert (mine - other).detach().norm() < 0.01 * moved


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn((3, 48, 20), generator=torch.Generator().manual_seed(0)).bfloat16()
    values = torch.linalg.svdvals(orthogonalize(matrices).float())
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_matrices_inside_layers_go_to_muon_and_the_rest_to_adamw() -> None:
    names = build_optimizer(small_model(), settings()).state_tensors().keys()
    assert "muon.model.layers.1.self_attn.k_proj.weight.momentum" in names
    assert "adamw.model.embed_tokens.weight.exp_avg" in names
    assert "adamw.model.layers.0.self_attn.q_norm.weight.exp_avg_sq" in names
    assert sum(name.startswith("muon.") for name in names) == 2 * 7
    with_adamw = build_optimizer(small_model(), settings(optimizer="adamw")).state_tensors()
    assert all(name.startswith("adamw.") for name in with_adamw)
    assert len(with_adamw) == 3 * len(list(small_model().parameters()))


def test_weight_decay_shrinks_matrices_and_the_embedding_but_no_norm() -> None:
    for optimizer_name in ("muon", "adamw"):
        model = small_model()
        config = settings(optimizer=optimizer_name, lr=0.1, muon_lr=0.1, weight_decay=0.5)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        build_optimizer(model, config).step(1.0)
        for name, parameter in model.named_parameters():
            factor = 1.0 if "norm" in name else 0.95
            torch.testing.assert_close(parameter, before[name] * factor, msg=name)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_training_lowers_the_loss(name: str) -> None:
    model = small_model()
    losses = train(model, build_optimizer(model, settings(optimizer=name)), 40)
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_state_round_trip_goes_on_bit_for_bit(name: str) -> None:
    model = small_model()
    optimizer = build_optimizer(model, settings(optimizer=name))
    train(model, optimizer, 3)
    state = optimizer.state_tensors()

    resumed = small_model()
    resumed.load_state_dict(model.state_dict())
    other = build_optimizer(resumed, settings(optimizer=name))
    other.load_state_tensors(state)
    assert all(torch.equal(t, state[key]) for key, t in other.state_tensors().items())

    train(model, optimizer, 3, seed=2)
    train(resumed, other, 3, seed=2)
    for (key, one), two in zip(
        model.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), key


def test_given_out_state_is_a_copy_without_shared_memory() -> None:
    model = small_model()
    optimizer = build_optimizer(model, settings())
    train(model, optimizer, 1)
    state = optimizer.state_tensors()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    train(model, optimizer, 1)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.items())
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)


def test_state_of_another_model_is_refused_by_name() -> None:
    optimizer = build_optimizer(small_model(), settings())
    state = optimizer.state_tensors()
    name = "muon.model.layers.0.mlp.up_proj.weight.momentum"
    lacking: dict[str, Tensor] = {key: t for key, t in state.items() if key != name}
    with pytest.raises(CorruptFileError, match=r"lacks 'muon\.model\.layers\.0\.mlp\.up_proj"):
        optimizer.load_state_tensors(lacking)
    with pytest.raises(CorruptFileError, match="unexpected 'other'"):
        optimizer.load_state_tensors({**state, "other": torch.zeros(1)})
    with pytest.raises(CorruptFileError, match=r"shape \(3,\), not \(96, 32\)"):
        optimizer.load_state_tensors({**state, name: torch.zeros(3)})


def test_clipping_returns_the_norm_and_limits_it() -> None:
    weights = [torch.zeros(2), torch.zeros(1)]

    def fill() -> None:
        weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])

    fill()
    assert float(clip_gradients(weights, 1.0)) == pytest.approx(5.0)
    torch.testing.assert_close(weights[0].grad, torch.tensor([0.6, 0.0]))
    fill()
    assert float(clip_gradients(weights, 0.0)) == pytest.approx(5.0)
    torch.testing.assert_close(weights[1].grad, torch.tensor([4.0]))


def test_schedule_rises_stays_and_falls_as_computed_by_hand() -> None:
    def scale(step: int) -> float:
        return schedule(step, max_steps=100, warmup_steps=4, decay_fraction=0.4, min_scale=0.1)

    assert [scale(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert scale(59) == 1.0
    assert scale(60) == 1.0
    assert scale(61) == pytest.approx(0.1 + 0.9 * 39 / 40)
    assert scale(80) == pytest.approx(0.55)
    assert scale(99) == pytest.approx(0.1 + 0.9 / 40)
    assert scale(100) == scale(150) == pytest.approx(0.1)


def test_schedule_without_warmup_or_decay_is_constant() -> None:
    values = {
        schedule(step, max_steps=10, warmup_steps=0, decay_fraction=0.0, min_scale=0.0)
        for step in range(10)
    }
    assert values == {1.0}
