"""PCRL's losses in NumPy; what is restored from what; its queue, gate, codes and teacher."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from configs import pcrl_v1 as recipe
from mlvicx_jax import methods, optim
from mlvicx_jax.data import augment
from mlvicx_jax.methods import pcrl_v1

BATCH, KEY = 8, jax.random.key(7)
PAIRS = ('embedding_1', 'embedding_2'), ('mixed_1', 'mixed_2'), ('mixed_1', 'mixed_keys')


@pytest.fixture(scope='module')
def method():
    return methods.create(tiny.get_config('pcrl_v1'))


@pytest.fixture(scope='module')
def step(method):
    """One pass from the initial state: what went in, came out, and the gradient into both trees.

    One group of BatchNorm; groups and shuffled keys are `MomentumContrast`'s: test_moco_v2.py.
    """
    method = dataclasses.replace(method, norm_groups=1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 96, 96, 1), np.uint8)
    views = jax.jit(method.views)(jax.random.split(jax.random.key(1), BATCH), {'image': images})
    return tiny.one_pass(method, views, KEY)


@pytest.fixture(scope='module')
def parts(method, step):
    """Encoder with head, and decoder with last convolution, each compiled once without a mesh."""
    alone = dataclasses.replace(method, norm_groups=1, encoder=method.encoder.clone(axis_name=None))
    teacher, student = alone.key_network, alone.network

    @jax.jit
    def encode(images):
        return teacher.apply(step['variables'], images, True, mutable=['batch_stats'])

    @jax.jit
    def decode(maps):
        def picture(student, maps):
            return student.restoration(student.decoder(maps, 80, True)[-1])

        return student.apply(step['variables'], maps, method=picture, mutable=['batch_stats'])[0]

    return lambda grey: encode(np_standardise(grey))[0], decode


def np_standardise(grey):
    """By ImageNet's mean and standard deviation."""
    return np.float32((np.float64(grey) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])


def np_normalise(z):
    z = np.float64(z)
    return z / np.sqrt((z**2).sum(-1, keepdims=True))


def np_transform(code, picture):
    """Upside down, left-right, then the quarter turns: what the six entries of a code stand for."""
    if code[0]:
        picture = np.flip(picture, 0)
    if code[1]:
        picture = np.flip(picture, 1)
    return np.rot90(picture, list(code[2:]).index(1))


def np_contrasts(out, queue, temperature=0.2, images=1000, z=None):
    """Three NCE losses as the code computes them, for `images` images, and the queue after them.

    Z is an estimate of `images` times the mean of exp(s / T) in the first call.
    """
    queue, cursor, losses = np.float64(queue), 0, []
    for queries, keys in PAIRS:
        q, k = np.float64(out[queries]), np.float64(out[keys])
        scores = np.array(
            [[np.exp(a @ b / temperature)] + [np.exp(a @ c / temperature) for c in queue] for a, b in zip(q, k)]
        )
        if z is None:
            z = scores.mean() * images
        noise = len(queue) / images
        loss = 0
        for row in scores / z:
            loss -= math.log(row[0] / (row[0] + noise))
            loss -= sum(math.log(noise / (negative + noise)) for negative in row[1:])
        losses.append(loss / len(q))
        for row in k:
            queue[cursor] = row
            cursor = (cursor + 1) % len(queue)
    return losses, queue, z / images


def random_out(seed=0, width=8):
    rng = np.random.default_rng(seed)
    names = 'embedding_1', 'embedding_2', 'mixed_1', 'mixed_2', 'mixed_keys'
    out = {name: np.float32(np_normalise(rng.normal(size=(BATCH, width)) + 0.5)) for name in names}
    return out | {'restoration': np.float32(rng.uniform(size=(BATCH, 4)))}


@pytest.mark.parametrize('images', [1, 86524])
def test_loss_is_noise_contrast_and_restoration_whatever_the_number_of_images(method, step, images):
    out, state = random_out(), step['state']
    contrasts, _, _z = np_contrasts(out, state['queue']['keys'], images=images)
    loss, terms = method.loss(out, state)
    np.testing.assert_allclose([terms[f'contrast/{name}'] for name in pcrl_v1.CONTRASTS], contrasts, rtol=1e-5)
    np.testing.assert_allclose(loss, sum(contrasts) / 3 + np.float64(out['restoration']).mean(), rtol=1e-5)
    for column, name in enumerate(('plain', 'crossed', 'mixed_plain', 'mixed_crossed')):
        np.testing.assert_allclose(
            terms[f'restoration/{name}'], out['restoration'][:, column].mean(), rtol=1e-5
        )


def test_normaliser_stays_that_of_the_first_batch(method, step):
    state, params = step['state'], step['variables']['params']
    assert state['log_normaliser'] == -np.inf
    first = method.update(state, params, random_out(0), 0.1)
    _, queue, z = np_contrasts(random_out(0), state['queue']['keys'])
    np.testing.assert_allclose(np.exp(first['log_normaliser']), z, rtol=1e-5)
    second = method.update(first, params, random_out(1), 0.2)
    assert second['log_normaliser'] == first['log_normaliser']
    _, terms = method.loss(random_out(1), first)
    expected, _, _ = np_contrasts(random_out(1), queue, images=1, z=z)
    np.testing.assert_allclose(terms['contrast/clean'], expected[0], rtol=1e-5)


def test_a_step_writes_three_batches_of_keys(method, step):
    state, out = step['state'], random_out()
    new = method.update(state, step['variables']['params'], out, 0.5)
    expected = np.asarray(state['queue']['keys']).copy()
    expected[: 3 * BATCH] = np.concatenate([out[k] for _, k in PAIRS])
    np.testing.assert_array_equal(new['queue']['keys'], expected)
    assert new['queue']['cursor'] == 3 * BATCH


def test_initial_queue_is_uniform_with_unit_rows_on_average(method, step):
    wide = dataclasses.replace(method, widths=(8, 128), queue=4096)
    keys = np.asarray(wide.init_state(jax.random.key(0), step['variables'])['queue']['keys'])
    bound = 1 / math.sqrt(128 / 3)
    assert 0.999 * bound < keys.max() <= bound and -bound <= keys.min() < -0.999 * bound
    np.testing.assert_allclose((keys**2).sum(-1).mean(), 1, rtol=0.01)


def test_no_gradient_reaches_keys_queue_or_normaliser(method, step):
    state = jax.tree.map(jnp.asarray, step['state'])
    state = state | {'log_normaliser': jnp.array(0.3)}
    out = random_out()

    def loss(out, keys, log_normaliser):
        return method.loss(
            out, state | {'queue': state['queue'] | {'keys': keys}, 'log_normaliser': log_normaliser}
        )[0]

    into_out, into_keys, _ = jax.grad(loss, (0, 1, 2))(out, state['queue']['keys'], state['log_normaliser'])
    assert not np.any(into_keys)
    for name in ('embedding_2', 'mixed_2', 'mixed_keys'):
        assert not np.any(into_out[name]), name
    for name in ('embedding_1', 'mixed_1', 'restoration'):
        assert np.all(np.any(into_out[name], -1)), name
    # Nor through the normaliser where it is found: the gradient is that of a constant.
    unknown = jax.grad(loss)(out, state['queue']['keys'], jnp.array(-jnp.inf))
    found = method.contrasts(out, state | {'log_normaliser': jnp.array(-jnp.inf)})[1]
    known = jax.grad(loss)(out, state['queue']['keys'], found['log_normaliser'])
    np.testing.assert_allclose(unknown['embedding_1'], known['embedding_1'], rtol=1e-6)


def test_the_student_learns_with_its_gate_and_the_teacher_does_not(step):
    student, teacher = map(tiny.leaves, step['gradient'])
    assert not any(np.any(leaf) for leaf in teacher.values())
    kernels = {path for path in student if 'kernel' in path}
    assert all(np.any(student[path]) for path in kernels)
    for part in ('encoder', 'projector', 'gate', 'decoder', 'restoration'):
        assert any(part in path for path in kernels)


def test_teacher_is_a_copy_and_follows(method, step):
    state, params = step['state'], step['variables']['params']
    tiny.assert_close(
        state['key'],
        {
            collection: {part: tree[part] for part in ('encoder', 'projector') if part in tree}
            for collection, tree in step['variables'].items()
        },
        0,
    )
    moved = jax.tree.map(lambda x: x + 1, params)
    new = method.update(state, moved, random_out(), 0.5)
    assert new['key']['batch_stats'] is state['key']['batch_stats']
    before, after = tiny.leaves(params), tiny.leaves(new['key']['params'])
    for path in after:
        np.testing.assert_allclose(after[path], before[path] + 0.1, rtol=1e-5, atol=1e-5)


def test_pass_restores_own_and_crossed_views_clean_and_mixed(step, parts):
    """The method's steps once more, in its paper's order, from the parts of the network."""
    encode, decode = parts
    views, params = step['views'], jax.tree.map(np.float64, step['variables']['params'])
    _, partner_key, ratio_key = jax.random.split(KEY, 3)
    partners = np.asarray(jax.random.permutation(partner_key, BATCH))
    ratio, alpha_clean, alpha_mixed = (max(u, 1 - u) for u in np.float64(jax.random.uniform(ratio_key, (3,))))
    assert sorted(partners) == list(range(BATCH)) and 0.5 <= ratio <= 1

    def mix(x):
        return np.float32([ratio * x[i] + (1 - ratio) * x[partners[i]] for i in range(BATCH)])

    def gate(maps, codes):
        layer = lambda x, name: x @ params['gate'][name]['kernel'] + params['gate'][name]['bias']
        scale = 1 / (1 + np.exp(-layer(np.maximum(layer(codes, 'linear1'), 0), 'linear2')))
        return maps | {'stage4': np.float32(maps['stage4'] * scale[:, None, None, :])}

    def restored(own, other, alpha, target, other_target):
        crossed = {name: np.float32(alpha * own[name] + (1 - alpha) * other[name]) for name in own}
        target, other_target = np_standardise(target), np_standardise(other_target)
        return [
            ((np.float64(decode(maps)) - wanted) ** 2).mean((1, 2, 3))
            for maps, wanted in ((own, target), (crossed, alpha * target + (1 - alpha) * other_target))
        ]

    (q, own), (k, other) = encode(views['first']), encode(views['second'])
    targets = (
        np.array([np_transform(*pair) for pair in zip(views[f'{name}_code'], views[name])])
        for name in ('first', 'second')
    )
    errors = restored(gate(own, views['first_code']), gate(other, views['second_code']), alpha_clean, *targets)
    (mixed_q, own), (mixed_k, other) = encode(mix(views['first'])), encode(mix(views['second']))
    errors += restored(own, other, alpha_mixed, mix(views['first_target']), mix(views['second_target']))
    out = step['out']
    np.testing.assert_allclose(out['restoration'], np.stack(errors, -1), rtol=2e-3)
    for name, z in {
        'embedding_1': q,
        'embedding_2': k,
        'mixed_1': mixed_q,
        'mixed_2': mixed_k,
        'mixed_keys': mix(np.asarray(k)),
    }.items():
        np.testing.assert_allclose(out[name], np_normalise(z), rtol=2e-3, atol=2e-4, err_msg=name)


def test_a_pass_changes_statistics_alone(step):
    before, after = tiny.leaves(step['state']), tiny.leaves(step['new'])
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if 'batch_stats' in path}
    old, new = tiny.leaves(step['variables']['batch_stats']), tiny.leaves(step['stats'])
    assert all(not np.array_equal(old[path], new[path]) for path in old)


def test_gate_hears_both_codes_and_halves_the_deepest_map_without_weights(method, step, parts):
    encode, decode = parts
    network = dataclasses.replace(method, norm_groups=1, encoder=method.encoder.clone(axis_name=None)).network
    variables, views = step['variables'], step['views']
    _, own = encode(views['first'])
    _, other = encode(views['second'])

    @jax.jit
    def run(gate, codes, alpha):
        def crossed(codes):
            (_, *pictures), _ = network.apply(
                variables | {'params': variables['params'] | {'gate': gate}},
                np_standardise(views['first']),
                other,
                alpha,
                codes,
                True,
                method='restore',
                mutable=['batch_stats'],
            )
            return jnp.square(pictures[1]).sum(), pictures

        return jax.grad(crossed, has_aux=True)(codes)

    codes = [jnp.asarray(views[f'{name}_code']) for name in ('first', 'second')]
    gate = variables['params']['gate']
    gradient, (plain, crossed) = run(gate, codes, 0.7)
    assert all(np.any(g) for g in gradient) and np.abs(plain - crossed).max() > 0.01
    gradient, (plain, crossed) = run(gate, codes, 1.0)
    assert np.any(gradient[0]) and not np.any(gradient[1])
    np.testing.assert_allclose(plain, crossed, rtol=1e-3, atol=1e-4)
    _, (plain, _) = run(jax.tree.map(jnp.zeros_like, gate), codes, 0.7)
    halved = decode(own | {'stage4': 0.5 * own['stage4']})
    np.testing.assert_allclose(plain, halved, rtol=1e-3, atol=1e-3)


def test_codes_say_how_a_picture_was_transformed():
    codes = np.array(
        [[up, left, *np.eye(4)[turns]] for up in (0, 1) for left in (0, 1) for turns in range(4)], np.float32
    )
    pictures = np.random.default_rng(0).normal(size=(16, 6, 6, 2)).astype(np.float32)
    found = pcrl_v1.transform(codes, pictures)
    np.testing.assert_array_equal(found, [np_transform(*pair) for pair in zip(codes, pictures)])
    drawn = np.asarray(pcrl_v1.draw_codes(jax.random.split(KEY, 4000)))
    assert set(np.unique(drawn)) == {0, 1} and (drawn[:, 2:].sum(1) == 1).all()
    np.testing.assert_allclose(drawn.mean(0), [0.5, 0.5, 0.25, 0.25, 0.25, 0.25], atol=0.04)
    np.testing.assert_allclose(np.corrcoef(drawn[:, :3].T) - np.eye(3), 0, atol=0.06)


@pytest.mark.parametrize('aligned', [False, True])
def test_targets_of_mixtures_are_bare_crops_unless_aligned(method, aligned):
    recipes = {
        name: dataclasses.replace(r, flip=1.0, rotation=0.0, jitter_probability=0.0, blur_probability=0.0)
        for name, r in method.recipes.items()
    }
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 96, 96, 1), np.uint8)
    views = jax.jit(dataclasses.replace(method, recipes=recipes, aligned_targets=aligned).views)(
        jax.random.split(KEY, BATCH), {'image': images}
    )
    views = jax.tree.map(np.asarray, views)
    for name in ('first', 'second'):
        target, view = views[f'{name}_target'], views[name]
        expected = target if aligned else target[:, :, ::-1]
        outside = np.abs(view - expected) < 1e-5
        assert 0.8 < outside.mean() < 0.97  # three holes of a hundredth and a half of the area each
        code = views[f'{name}_code']
        np.testing.assert_array_equal(
            views[f'{name}_transformed'], [np_transform(*pair) for pair in zip(code, view)]
        )
    assert np.abs(views['first_target'] - views['second_target']).max() > 0.1
    assert np.any(views['first_code'] != views['second_code'])


def test_only_what_the_crop_shows_is_in_a_target(method):
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 96, 96, 1), np.uint8)
    keys = jax.random.split(KEY, BATCH)
    views = jax.jit(method.views)(keys, {'image': images})
    for number, name in enumerate(('first', 'second')):
        crop = dataclasses.replace(method.recipes[name], flip=0.0, rotation=0.0)
        expected = augment.geometry(augment.view_keys(keys, number), images, 80, crop)
        np.testing.assert_allclose(views[f'{name}_target'], expected, atol=1e-4)


def test_recipe_is_the_authors():
    config = recipe.get_config()
    rate = optim.schedule(config.optim, config.batch_size, 1351, 300 * 1351, config.optim.final_factor)
    np.testing.assert_allclose([rate(0), rate(150 * 1351), rate(300 * 1351)], [1e-3, 5e-4, 0], atol=1e-9)
    method = methods.create(config)
    network = method.network
    assert network.gate.widths == (256, 512) and network.projector.widths == (128, 128)
    assert network.encoder.norm_groups == network.decoder.norm_groups == 4
    for view in method.recipes.values():
        assert (view.area, view.flip, view.rotation) == ((0.2, 1.0), 0.5, 10.0)
        assert (view.jitter_probability, view.brightness, view.contrast) == (1.0, 0.4, 0.4)
        assert (view.blur_probability, view.blur_sigma) == (0.5, (0.1, 2.0))
        assert view.solarise_probability == 0
