"""LARS in VICReg's order against NumPy in float64, its exceptions, and the schedule."""

import math

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from mlvicx_jax import optim
from mlvicx_jax.errors import UserError

STEPS, DECAY, ETA, MOMENTUM = 40, 1e-2, 1e-3, 0.9


def config(**changes):
    return ConfigDict(
        dict(
            name='lars',
            learning_rate=1.6,
            scale_with_batch=False,
            weight_decay=DECAY,
            warmup_epochs=1.0,
            final_factor=0.001,
            vector_factor=1.0,
            constant=(),
            frozen=(),
        )
        | changes
    )


def constant(**changes):
    """An optimiser whose learning rate is 0.1 throughout."""
    settings = config(learning_rate=0.1, warmup_epochs=0.0, final_factor=1.0, **changes)
    return optim.create(settings, 64, 1, 10)


def np_learning_rate(step, peak=1.6, warmup=4, total=STEPS):
    if step < warmup:
        return peak * step / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
    return peak * (0.001 + 0.999 * cosine)


def np_lars(params, gradients):
    """VICReg's LARS: decay, adapt, accumulate, and the learning rate last."""
    params = {name: w.copy() for name, w in params.items()}
    buffer = {name: np.zeros_like(w) for name, w in params.items()}
    for step, gradient in enumerate(gradients):
        for name, w in params.items():
            d = gradient[name].copy()
            if w.ndim > 1:
                d += DECAY * w
                w_norm, d_norm = np.linalg.norm(w), np.linalg.norm(d)
                if w_norm > 0 and d_norm > 0:
                    d *= ETA * w_norm / d_norm
            buffer[name] = MOMENTUM * buffer[name] + d
            params[name] = w - np_learning_rate(step) * buffer[name]
    return params


def run(optimizer, params, gradients):
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    params = {
        'conv': rng.normal(size=(3, 3, 2, 4)),
        'dense': rng.normal(size=(5, 6)),
        'zero': np.zeros((2, 3)),
        'bias': rng.normal(size=4),
        'scale': np.ones(4),
    }
    gradients = [{name: rng.normal(size=w.shape) for name, w in params.items()} for _ in range(STEPS)]
    return params, gradients


def test_lars_is_vicregs_over_warm_up_and_cosine_and_simclrs_is_optaxs(problem):
    params, gradients = problem
    expected = np_lars(params, gradients)
    with jax.enable_x64(True):
        vicregs, simclrs = (
            run(optim.create(config(name=name), 64, 20, STEPS), params, gradients)
            for name in ('lars', 'lars_simclr')
        )
        schedule = optim.schedule(config(), 64, 20, STEPS, final_factor=0.001)
        optaxs = run(
            optax.lars(
                schedule,
                DECAY,
                optim.matrices_only,
                trust_coefficient=ETA,
                trust_ratio_mask=optim.matrices_only,
                momentum=0.9,
            ),
            params,
            gradients,
        )
    for name, w in expected.items():  # optax keeps the schedule in float32
        np.testing.assert_allclose(vicregs[name], w, rtol=1e-6, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(simclrs[name], optaxs[name], rtol=1e-6, atol=1e-9, err_msg=name)
        # the comparison can fail: the rate inside the momentum is another optimiser
        assert np.abs(simclrs[name] - w).max() > 1e-3 * np.abs(w - params[name]).max(), name


def test_biases_and_scales_get_neither_decay_nor_adaptation(problem):
    params = jax.tree.map(np.float32, problem[0])
    zeros = jax.tree.map(np.zeros_like, params)
    moved = run(constant(weight_decay=0.5), params, [zeros])
    assert {name for name in params if not np.array_equal(moved[name], params[name])} == {'conv', 'dense'}
    ones = jax.tree.map(np.ones_like, params)
    moved = run(constant(weight_decay=0.5), params, [ones])
    for name in ('bias', 'scale'):
        np.testing.assert_allclose(moved[name], params[name] - 0.1, rtol=1e-6)
    moved = run(constant(vector_factor=0.024), params, [ones])
    for name in ('bias', 'scale'):
        np.testing.assert_allclose(moved[name], params[name] - 0.0024, rtol=1e-6)


@pytest.mark.parametrize(
    'name,decayed', [('adamw', {'conv', 'dense'}), ('sgd', {'conv', 'dense', 'bias', 'scale'})]
)
def test_adamw_decays_matrices_alone_and_sgd_everything(problem, name, decayed):
    params = jax.tree.map(np.float32, problem[0])
    moved = run(constant(name=name), params, [jax.tree.map(np.zeros_like, params)])
    assert {name for name in params if not np.array_equal(moved[name], params[name])} == decayed


def test_sgd_is_torchs(problem):
    torch = pytest.importorskip('torch')
    params, gradients = problem
    tensors = {name: torch.tensor(w, requires_grad=True) for name, w in params.items()}
    theirs = torch.optim.SGD(tensors.values(), lr=0.1, momentum=0.9, weight_decay=DECAY)
    for gradient in gradients:
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[name])
        theirs.step()
    with jax.enable_x64(True):
        ours = run(constant(name='sgd'), params, gradients)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(ours[name], tensor.detach().numpy(), rtol=1e-6, err_msg=name)


def test_a_constant_part_keeps_its_rate():
    params = {
        'encoder': {'w': np.ones((2, 2), np.float32)},
        'predictor': {'w': np.ones((2, 2), np.float32), 'b': np.ones(2, np.float32)},
    }
    settings = config(name='sgd', weight_decay=0.0, warmup_epochs=0.0, constant=('predictor',))
    optimizer = optim.create(settings, 64, 1, total_steps=10)
    state, moves = optimizer.init(params), []
    for step in range(10):  # the same gradient with a sign that cancels the momentum's memory
        gradient = jax.tree.map(lambda w, step=step: np.full_like(w, 1 if step == 0 else 0.1), params)
        updates, state = optimizer.update(gradient, state, params)
        moves.append(updates)
    for name in ('w', 'b'):
        np.testing.assert_allclose([m['predictor'][name].ravel()[0] for m in moves], -1.6, rtol=1e-5)
    assert abs(moves[-1]['encoder']['w'][0, 0]) < 0.1


def test_a_constant_part_that_does_not_exist_is_a_users_mistake():
    with pytest.raises(UserError, match="'predicter'; the parts of this network are encoder"):
        constant(constant=('predicter',)).init({'encoder': {'w': np.ones((2, 2))}})


@pytest.mark.parametrize('scale,peak', [(True, 0.05), (False, 0.2)])
def test_schedule_rises_to_its_peak_and_falls_to_a_thousandth(scale, peak):
    settings = config(learning_rate=0.2, scale_with_batch=scale, warmup_epochs=2.0)
    rate = optim.schedule(settings, 64, 10, 1000, settings.final_factor)
    for step, value in {0: 0, 10: peak / 2, 20: peak, 510: peak * (0.5 + 0.5e-3), 1000: peak * 1e-3}.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-5, atol=1e-9, err_msg=str(step))
    rates = np.array([rate(step) for step in range(20, 1001, 20)])
    assert (np.diff(rates) < 0).all()


def test_warm_up_of_a_short_run_is_a_tenth_of_it():
    rate = optim.schedule(config(warmup_epochs=100.0), 64, 10, 50, 0.0)
    assert float(rate(4)) < float(rate(5)) == pytest.approx(1.6) and rate(6) < rate(5)
    assert optim.schedule(config(), 64, 10, 5, 0.0)(0) == pytest.approx(1.6)


@pytest.mark.parametrize('name', optim.NAMES)
def test_a_frozen_part_keeps_its_bits_whatever_decays(name):
    rng = np.random.default_rng(0)
    params = {part: {'w': rng.normal(size=(3, 3)).astype(np.float32)} for part in ('encoder', 'head')}
    optimizer = constant(frozen=('encoder',), name=name)
    state, moved = optimizer.init(params), params
    for _ in range(3):
        updates, state = optimizer.update(params, state, moved)
        moved = optax.apply_updates(moved, updates)
    assert np.asarray(moved['encoder']['w']).tobytes() == params['encoder']['w'].tobytes()
    assert not np.allclose(moved['head']['w'], params['head']['w'])
    with pytest.raises(UserError, match="optim.frozen names 'decoder'; the parts .* encoder, head"):
        constant(frozen=('decoder',)).init(params)
