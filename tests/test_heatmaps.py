"""Grad-CAM against the closed form and finite differences; localisation against hand-made maps."""

import functools
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ended_run import make_workdir
from flax import linen as nn

import tiny
from mlvicx_jax import methods
from mlvicx_jax.commands import heatmaps as command
from mlvicx_jax.data import augment, pipeline
from mlvicx_jax.data.source import open_dataset
from mlvicx_jax.evaluation import grad_cam as heatmaps
from mlvicx_jax.models.resnet import LEVELS
from mlvicx_jax.run.record import Run
from mlvicx_jax_datasets import radiograph

SIZE = 80


def classifier(dtype=jnp.float32):
    """The tiny supervised network with running statistics that a training has left, not 0 and 1."""
    config = tiny.get_config('supervised')
    config.model.context = True
    method = methods.create(config)
    network = method.network.clone(encoder=method.encoder.clone(dtype=dtype))
    variables = jax.jit(method.init_network)(jax.random.key(3))
    rng = np.random.default_rng(0)
    moved = lambda x: jnp.asarray(x * rng.uniform(0.5, 1.5, x.shape) + rng.normal(0, 0.1, x.shape) ** 2)
    stats = jax.tree.map(moved, variables['batch_stats'])
    variables = jax.tree.map(lambda x: x.astype(dtype), variables | {'batch_stats': stats})
    images = jnp.asarray(rng.normal(size=(3, SIZE, SIZE, 3)), dtype)
    return network, variables, images


@functools.cache
def double():
    """Network, variables, images and the maps of two labels for each level, in float64."""
    with jax.enable_x64(True):
        network, variables, images = classifier(jnp.float64)
        found = {
            level: jax.device_get(heatmaps.grad_cam(network, variables, images, jnp.array([5, 2]), level))
            for level in ('stage4', 'stage2')
        }
        features = jax.device_get(
            jax.jit(functools.partial(network.encoder.apply, train=False))(
                {kind: tree['encoder'] for kind, tree in variables.items()}, images
            )
        )
    return network, variables, images, found, features


def enlarged(maps):
    """Bilinear with half-pixel centres and clamped borders, [.., h, w] to SIZE, as in torch."""

    def along(x, axis):
        n = x.shape[axis]
        source = np.clip((np.arange(SIZE) + 0.5) * n / SIZE - 0.5, 0, n - 1)
        low = np.floor(source).astype(int)
        part = (source - low).reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])
        return x.take(low, axis) * (1 - part) + x.take(np.minimum(low + 1, n - 1), axis) * part

    return along(along(maps, -2), -1)


def test_behind_stage4_the_map_is_the_class_activation_map():
    _, variables, _, found, features = double()
    maps, logits = found['stage4']
    kernel = np.asarray(variables['params']['classifier']['kernel'])[:, [5, 2]]
    feature = features['stage4']
    cells = feature.shape[1] * feature.shape[2]
    expected = np.einsum('bhwc,ck->bkhw', feature, kernel) / cells
    assert expected.max() > 0 > expected.min()
    np.testing.assert_allclose(maps, expected, atol=1e-9 * expected.max())
    np.testing.assert_allclose(heatmaps.heatmap(maps, SIZE), enlarged(np.maximum(expected, 0)), atol=1e-9)
    pooled = feature.mean((1, 2))
    np.testing.assert_allclose(
        logits,
        pooled @ np.asarray(variables['params']['classifier']['kernel'])
        + np.asarray(variables['params']['classifier']['bias']),
        rtol=1e-6,
    )


def test_weights_of_an_inner_level_are_those_of_finite_differences():
    """Adding e to channel c of stage2 everywhere moves a logit by e * h * w * a_c; the addition is
    made behind the context bottleneck from outside, not through the network's own perturbations."""
    network, variables, images, found, features = double()
    height, width, channels = features['stage2'].shape[1:]
    step = 1e-7  # few ReLUs change sides

    with jax.enable_x64(True):

        @jax.jit
        def logits(shift):
            def add(call, arguments, options, context):
                out = call(*arguments, **options)
                return out + shift if context.module.name == 'context_stage2' else out

            with nn.intercept_methods(add):
                return network.apply(variables, images, train=False)['logits']

        weights = np.stack(
            [np.asarray(logits(step * unit) - logits(-step * unit))[:, [5, 2]] for unit in np.eye(channels)], -1
        ) / (2 * step * height * width)  # [b, k, c]
    expected = np.einsum('bkc,bhwc->bkhw', weights, features['stage2'])
    assert expected.max() > 0 > expected.min()
    np.testing.assert_allclose(found['stage2'][0], expected, atol=1e-4 * expected.max())


def test_every_level_has_a_map_of_its_grid_in_float32():
    network, variables, images = classifier()
    for level, grid in zip(LEVELS, (40, 20, 10, 5, 3)):
        maps, logits = jax.eval_shape(
            lambda level=level: heatmaps.grad_cam(network, variables, images, jnp.array([0]), level)
        )
        assert (maps.shape, maps.dtype) == ((3, 1, grid, grid), jnp.float32)
        assert logits.shape == (3, 9)


def test_a_training_state_has_no_perturbations():
    method = methods.create(tiny.get_config('supervised'))
    image = jnp.zeros((1, SIZE, SIZE, 3))
    assert set(jax.eval_shape(lambda: method.network.init(jax.random.key(0), image, train=True))) == {
        'params',
        'batch_stats',
    }


def test_normalised_maps_end_at_one_and_an_empty_one_stays_empty():
    maps = np.array([[[0.0, 2.0], [1.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    np.testing.assert_array_equal(heatmaps.normalised(maps), [[[0, 0.5], [0.25, 1]], [[0, 0], [0, 0]]])


def test_a_box_covers_the_pixels_whose_centres_it_holds():
    mask = heatmaps.box_mask(np.array([[0.25, 0.5, 0.75, 1.0]]), 8)
    expected = np.zeros((8, 8), bool)
    expected[2:6, 4:8] = True
    np.testing.assert_array_equal(mask, expected)
    both = heatmaps.box_mask(np.array([[0.25, 0.5, 0.75, 1.0], [0, 0, 0.13, 0.13]]), 8)
    expected[0, 0] = True
    np.testing.assert_array_equal(both, expected)
    thin = heatmaps.box_mask(np.array([[0.51, 0.51, 0.52, 0.52]]), 8)
    assert thin.sum() == 1 and thin[4, 4]


def test_pointing_iou_and_energy_of_maps_made_by_hand():
    inside = np.zeros((4, 4), bool)
    inside[:2, :2] = True
    hit, miss, tie, against = np.zeros((4, 4, 4))
    hit[0, 0], hit[0, 1], hit[3, 3], hit[2, 2] = 4, 2, 3, 1  # the region: 4, 2 and 3
    miss[3, 0], miss[1, 1] = 10, 4
    tie[0, 0], tie[3, 3] = 1, 1
    hit[2, 0] = -9  # the ReLU takes it away
    against -= 2
    against[1, 0] = -1  # every place speaks against it, this one least
    expected = [[1, 2 / 5, 6 / 10], [0, 0, 4 / 14], [0.5, 1 / 5, 1 / 2], [1, 0, 0]]
    np.testing.assert_allclose(heatmaps.localise(np.stack([hit, miss, tie, against]), inside), expected)
    assert heatmaps.localise(np.zeros((4, 4)), inside).tolist() == [0.25, 0, 0]
    np.testing.assert_allclose(heatmaps.localise(hit * 1e-6, inside), expected[0])


def test_only_rounding_makes_a_tie_of_two_peaks():
    inside = np.zeros((4, 4), bool)
    inside[:2, :2] = True
    rounded, lower = np.zeros((2, 4, 4))
    rounded[0, 0] = lower[0, 0] = 1
    rounded[3, 3], lower[3, 3] = 1 - 1e-7, 1 - 1e-5
    assert heatmaps.localise(np.stack([rounded, lower]), inside)[:, 0].tolist() == [0.5, 1]


def test_chance_is_the_mean_over_all_shifts():
    image_map, inside = np.full((12, 12), 0.1), np.zeros((12, 12), bool)
    image_map[3:9, 4:6] = image_map[7:9, 4:8] = 1  # an L, as the boxes are, so that its mirror
    inside[2:8, 5:7] = inside[6:8, 5:9] = True  # image overlaps them less
    shifted = [
        heatmaps.localise(np.roll(image_map, (y, x), (0, 1)), inside) for y in range(12) for x in range(12)
    ]
    assert np.max(shifted, 0)[1] == 1
    np.testing.assert_allclose(heatmaps.chance(image_map, inside), np.mean(shifted, 0), rtol=1e-6)


def test_localisation_tells_looking_from_guessing_and_from_knowing_the_place():
    """Boxes lie in the left half. A map follows them, one shows that half, one is anywhere."""
    rng = np.random.default_rng(2)
    count, size = 60, 32
    inside, seeing, placing, guessing = np.zeros((4, count, size, size), np.float32)
    for i in range(count):
        y, x = rng.integers(0, size - 9), rng.integers(0, size // 2 - 6)
        inside[i, y : y + 6, x : x + 6] = 1
        seeing[i, y + 2 : y + 9, x + 2 : x + 5] = 1
        placing[i, rng.integers(size), rng.integers(size // 2)] = 1
        guessing[i, rng.integers(size), rng.integers(size)] = 1
    patients = np.repeat(np.arange(count // 2), 2).astype(str)
    found = {
        name: heatmaps.localisation(maps, inside > 0, patients)
        for name, maps in (('seeing', seeing), ('placing', placing), ('guessing', guessing))
    }
    for of_map in found.values():
        assert (of_map['films'], of_map['patients'], of_map['empty_maps']) == (count, count // 2, 0)
        assert of_map['pointing']['chance'] == pytest.approx(36 / size**2)
        assert of_map['energy']['chance'] == pytest.approx(36 / size**2)
    # pointing: the first map's maxima are 7 x 3 pixels, of which 4 x 3 are in the box
    seeing, placing, guessing = (found[name]['pointing'] for name in found)
    assert seeing['value'] == pytest.approx(12 / 21)
    assert seeing['above_chance_interval'][0] > 0 and seeing['above_other_films_interval'][0] > 0
    assert placing['other_films'] == pytest.approx(2 * 36 / size**2, abs=0.03)
    assert placing['above_other_films_interval'][0] < 0 < placing['above_other_films_interval'][1]
    assert guessing['above_chance_interval'][0] < 0 < guessing['above_chance_interval'][1]


def test_localisation_is_judged_by_patient():
    """Three copies of a patient's film tell as much as one; were they counted, they would tell more."""
    rng = np.random.default_rng(0)
    maps, inside = rng.random((20, 8, 8)).astype(np.float32), rng.random((20, 8, 8)) < 0.2
    once = heatmaps.localisation(maps, inside, np.arange(20))
    thrice = heatmaps.localisation(maps.repeat(3, 0), inside.repeat(3, 0), np.arange(20).repeat(3))
    for measure in heatmaps.MEASURES:
        for key in ('value_interval', 'chance_interval', 'above_chance_interval'):
            np.testing.assert_allclose(thrice[measure][key], once[measure][key], atol=1e-6)
        for key in ('other_films_interval', 'above_other_films_interval'):  # other films are drawn
            assert np.ptp(thrice[measure][key]) == pytest.approx(np.ptp(once[measure][key]), rel=0.2)


def test_fewer_than_three_patients_have_no_interval():
    maps = np.random.default_rng(0).random((4, 8, 8)).astype(np.float32)
    inside = np.zeros((4, 8, 8), bool)
    inside[:, 2:4, 2:4] = True
    found = heatmaps.localisation(maps, inside, np.array(['a', 'a', 'b', 'b']))
    assert found['energy']['value'] > 0 and np.isnan(found['energy']['value_interval']).all()
    alone = heatmaps.localisation(maps, inside, np.array(['a'] * 4))
    assert np.isnan(alone['energy']['other_films'])


@pytest.fixture(scope='module')
def data(data_dir):
    config = tiny.get_config()
    return open_dataset('phantom_cxr', data_dir, None, {'size': config.data.stored_size, **config.data.options})


def test_boxes_are_those_of_the_finding_where_its_mask_is(data):
    """The phantom's masks, bit k for label k, say where each finding is: its boxes bound them."""
    split = data.splits['train']
    boxes, seen = heatmaps.read_boxes(data, split), 0
    assert len(boxes) == len(split)
    for i, of_film in enumerate(boxes):
        mask = radiograph.decode_image(split.source[split.records[i]]['mask'], 'mask')
        for k, finding in enumerate(data.label_names[:8]):
            assert (finding in of_film) == bool(split.labels[i, k])
            if finding in of_film:
                region = mask >> k & 1 > 0
                inside = heatmaps.box_mask(of_film[finding], len(mask))
                assert (region & inside).sum() >= 0.9 * region.sum()
                assert inside.sum() <= 12 * max(region.sum(), 9)
                seen += 1
    assert seen > 10


def test_split_maps_are_grad_cam_of_the_preprocessed_films(data):
    network, variables, _ = classifier()
    split = data.splits['test'].take(np.arange(5))
    wanted = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [1, 0]], bool)
    maps, probabilities = heatmaps.split_maps(network, variables, split, [3, 7], wanted, 'stage3', SIZE, 2)
    assert [len(of_label) for of_label in maps] == [3, 2]
    stream = pipeline.eval_batches(split, 5)
    images = augment.standardise(augment.resize(next(stream)['image'], SIZE))
    stream.close()
    expected, logits = jax.device_get(
        heatmaps.grad_cam(network, variables, images, jnp.array([3, 7]), 'stage3')
    )
    for k in range(2):
        np.testing.assert_allclose(maps[k], expected[wanted[:, k], k], atol=1e-4 * expected.max() + 1e-12)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits[:, [3, 7]])), atol=1e-5)


@pytest.fixture(scope='module')
def workdirs(tmp_path_factory, data_dir, data):
    folder = tmp_path_factory.mktemp('runs')
    for seed, name in enumerate(('one', 'other')):
        (folder / name).mkdir()
        make_workdir(folder / name, 'supervised', data_dir, data.label_names, seed)
    return [folder / 'one', folder / 'other']


def test_the_command_tells_the_localisation_of_each_run_and_finding(workdirs, data, tmp_path, capsys):
    findings = ['Effusion', 'Cardiomegaly']
    assert (
        command.main(
            [
                '--workdir',
                *map(str, workdirs),
                '--level',
                'stage3',
                '--split',
                'train',
                '--findings',
                *findings,
                '--out',
                str(tmp_path / 'maps'),
                '--batch_size',
                '16',
            ]
        )
        == 0
    )
    assert 'one  Effusion' in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / 'maps').iterdir()) == ['heatmaps.json', 'heatmaps.png']
    assert min(cv2.imread(str(tmp_path / 'maps/heatmaps.png')).shape[:2]) > 600
    told = json.loads((tmp_path / 'maps/heatmaps.json').read_text())
    split = data.splits['train']
    assert (told['level'], told['split_hash']) == ('stage3', split.hash)
    assert [run['name'] for run in told['runs']] == ['one', 'other']
    boxes = heatmaps.read_boxes(data, split)
    for finding in findings:
        column = data.label_names.index(finding)
        have = np.flatnonzero(split.labels[:, column])
        assert told['films'][finding] == min(split.image_ids[have])
        for workdir, run in zip(workdirs, told['runs']):
            loaded = Run.open(workdir).network()
            (maps,), _ = heatmaps.split_maps(
                loaded.method.network,
                loaded.variables,
                split.take(have),
                [column],
                np.ones((len(have), 1), bool),
                'stage3',
                SIZE,
                16,
            )
            inside = np.stack([heatmaps.box_mask(boxes[i][finding], SIZE) for i in have])
            expected = heatmaps.localise(maps, inside).mean(0)
            found = run['localisation'][finding]
            assert found['films'] == len(have)
            for measure, value in zip(heatmaps.MEASURES, expected):
                assert found[measure]['value'] == pytest.approx(value, rel=1e-3, abs=1e-6)
    one, other = (run['localisation']['Effusion']['energy']['value'] for run in told['runs'])
    assert one != other


def test_without_boxes_there_is_a_sheet_but_no_localisation(workdirs, tmp_path, monkeypatch):
    monkeypatch.setattr(heatmaps, 'read_boxes', lambda data, split: [{}] * len(split))
    told = command.write(workdirs[:1], tmp_path, findings=['Effusion'], split='train')
    assert told['runs'][0]['localisation'] == {'Effusion': None}
    assert (tmp_path / 'heatmaps.png').exists()


def test_runs_that_can_not_be_compared_are_refused(workdirs, data_dir, data, tmp_path, capsys):
    other = make_workdir(tmp_path, 'supervised', data_dir, data.label_names, split_seed=7)
    for arguments, said in (
        (['--workdir', str(workdirs[0]), str(other), '--split', 'validation'], 'is not that of'),
        (['--workdir', str(workdirs[0]), '--findings', 'Gout'], 'Gout'),
        (['--workdir', str(tmp_path / 'nowhere')], 'config.json'),
    ):
        assert command.main([*arguments, '--out', str(tmp_path / 'maps')]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / 'maps').exists()
