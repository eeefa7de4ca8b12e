"""What a pretrained encoder has to beat: the right readings, the films' pixels, the paired interval."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from mlvicx_jax import methods, parallel
from mlvicx_jax.data import augment, pipeline
from mlvicx_jax.data.opening import open_data
from mlvicx_jax.evaluation import baselines, frozen

CALIBRATED, UNCALIBRATED, PIXELS = baselines.ENDINGS


@pytest.fixture(scope='module')
def run(data_dir):
    """(config, data, encoder, its initial variables, mesh) of the tiny recipe."""
    config = tiny.get_config()
    config.data.data_dir = str(data_dir)
    method = methods.create(config)
    variables = jax.jit(method.encoder.init)(jax.random.key(0), jnp.zeros((1, 80, 80, 3)))
    return config, open_data(config), method.encoder, variables, parallel.create_mesh(config.batch_size)


def pictures(split) -> np.ndarray:
    return np.stack([pipeline.decode(split, i)['image'] for i in range(len(split))])


@pytest.fixture(scope='module')
def asked(run, tmp_path_factory):
    """What is probed under each baseline's name, and the run's folder."""
    config, data, encoder, variables, mesh = run
    folder, probed = tmp_path_factory.mktemp('run'), []

    def scores(network, given, data, config, mesh, image_size, output):
        probed.append((network, given, image_size, output))
        shape = data.splits[config.eval.split].labels.shape
        return dict.fromkeys(baselines.PROBES, np.full(shape, float(len(probed) - 1)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, 'scores', scores)
        found = baselines.scores(encoder, variables, data, config, mesh, folder)
        again = baselines.scores(encoder, variables, data, config, mesh, folder)
    assert len(probed) == 3, 'a run that goes on probes its baselines again'
    for name, of in found.items():
        for probe, array in of.items():
            np.testing.assert_array_equal(again[name][probe], array)
    return {name: probed[int(of['probe'][0, 0])] for name, of in found.items()}, folder


def test_uncalibrated_is_as_initialised_and_calibrated_has_the_films_statistics(run, asked):
    config, data, _, variables, _ = run
    of, _ = asked
    assert of[UNCALIBRATED][1] is variables
    statistics = of[CALIBRATED][1]['batch_stats']
    images = augment.standardise(augment.resize(pictures(data.splits['train']), 80))
    kernel = variables['params']['conv1']['kernel']
    stem = jax.lax.conv_general_dilated(
        images, kernel, (2, 2), [(3, 3)] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    mean, std = np.mean(stem, (0, 1, 2)), np.std(stem, (0, 1, 2))
    np.testing.assert_allclose(statistics['bn1']['mean'], mean, atol=0.05 * std.max())
    assert np.abs(mean).max() > 0.2 * std.max(), 'statistics of 0 would pass'
    assert jax.tree.all(jax.tree.map(np.array_equal, of[CALIBRATED][1]['params'], variables['params'])), (
        'calibration changed a weight'
    )
    for name in (CALIBRATED, UNCALIBRATED):
        assert of[name][2:] == (config.data.image_size, config.eval.readout)


def test_each_baseline_has_its_own_ending(run, asked):
    config, data, *_ = run
    labels = data.splits['test'].labels.astype(float)
    found = {
        name: dict.fromkeys(baselines.PROBES, sign * labels)
        for name, sign in ((CALIBRATED, 1), (UNCALIBRATED, 0), (PIXELS, -1))
    }
    numbers = baselines.numbers(found, data, config)
    areas = [numbers[f'probe/auroc{ending}'] for ending in ('_init', '_init_uncalibrated', '_pixels')]
    assert areas == [1, 0.5, 0]
    assert baselines.line_to_beat(numbers) == CALIBRATED
    assert baselines.line_to_beat(numbers | {'probe/auroc_init': float('nan')}) == UNCALIBRATED


def test_damaged_scores_are_made_again(asked):
    path = asked[1] / 'baselines.npz'
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert baselines._read(path) is None
    path.write_bytes(whole)
    assert set(baselines._read(path)) == set(baselines.ENDINGS)


def test_pixels_are_the_film_made_small(run, asked):
    _, data, _, _, mesh = run
    network, variables, size, output = asked[0][PIXELS]
    split = data.splits['test']
    found = frozen.extract(network, variables, split, size, 8, mesh, output)
    small = np.asarray(augment.resize(pictures(split), 32))[..., 0].reshape(len(split), -1)
    assert found.shape == (len(split), 1024)
    # Features are standardised for the probe, so the scale is free.
    centred = [x - x.mean() for x in (found, small)]
    ratio = np.sum(centred[0] * centred[1]) / np.sum(centred[1] ** 2)
    np.testing.assert_allclose(centred[0], ratio * centred[1], atol=1e-4)


def judged(patients: int, films: int):
    """(data, config, labels): `films` equal films of each patient, two findings and No Finding."""
    rng = np.random.default_rng(0)
    labels = (rng.random((patients, 3)) < 0.3).astype(np.uint8).repeat(films, 0)
    ids = np.array([f'{i:04d}' for i in range(patients)]).repeat(films)
    split = types.SimpleNamespace(labels=labels, patient_ids=ids)
    data = types.SimpleNamespace(splits={'test': split}, label_names=('Nodule', 'Mass', 'No Finding'))
    return data, types.SimpleNamespace(eval=types.SimpleNamespace(split='test')), labels


def test_the_interval_excludes_zero_for_the_better_and_holds_it_for_equals():
    data, config, labels = judged(400, 1)
    rng = np.random.default_rng(1)
    good, other, bad = (labels + noise * rng.standard_normal(labels.shape) for noise in (1, 1, 2))
    better, equal = (baselines.gain(good, x, data, config) for x in (bad, other))
    assert 0 < better.low < better.value < better.high
    worse = baselines.gain(bad, good, data, config)
    assert worse == tuple(-x for x in (better.value, better.high, better.low))
    assert equal.low < 0 < equal.high
    assert baselines.gain(good, good, data, config) == (0, 0, 0)
    no_finding = good.copy()
    no_finding[:, 2] = rng.random(400)  # takes no part
    assert baselines.gain(no_finding, bad, data, config) == better


def test_films_of_one_patient_are_no_further_evidence():
    found = []
    for films in (1, 4):
        data, config, labels = judged(200, films)
        noise = np.random.default_rng(3).standard_normal((2, 200, 3)).repeat(films, 1)
        found.append(baselines.gain(labels + noise[0], labels + 1.5 * noise[1], data, config))
    np.testing.assert_allclose(*found, atol=1e-12)


def test_a_finding_without_scores_takes_no_part():
    data, config, labels = judged(200, 1)
    rng = np.random.default_rng(4)
    good, bad = (labels + noise * rng.standard_normal(labels.shape) for noise in (1, 2))
    good[:, 1] = bad[:, 1] = np.nan
    found = baselines.gain(good, bad, data, config)
    assert np.isfinite(found).all() and found.value > 0
