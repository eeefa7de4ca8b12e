"""Segmentation: targets that stay with their images, the loss, frozen encoders, every image judged once."""

import contextlib
import dataclasses
import itertools
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from ml_collections import ConfigDict

import tiny
from configs import segment
from mlvicx_jax import methods, optim, parallel
from mlvicx_jax import state as states
from mlvicx_jax.data import augment, fractions, pipeline
from mlvicx_jax.data.source import open_dataset, open_folder
from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import intervals
from mlvicx_jax.evaluation.masks import dice
from mlvicx_jax.models.norm import AXIS
from mlvicx_jax.step import make_train_step
from mlvicx_jax.tasks import segment as segmentation
from mlvicx_jax_datasets.phantom_cxr import phantom_cxr_dataset_builder as phantom
from mlvicx_jax_datasets.phantom_cxr.findings import FINDINGS

NAMES = 'heart', 'Pneumothorax', 'lungs'


def tiny_config(protocol='finetune', structures=NAMES):
    """configs/segment.py on the phantom of `tiny.get_config`, with weight decay."""
    small, config = (
        tiny.get_config(),
        segment.get_config(f'dataset=phantom_cxr,structures={"+".join(structures)},protocol={protocol}'),
    )
    config.batch_size = small.batch_size
    config.model.width = small.model.width
    for field in ('options', 'stored_size', 'image_size', 'num_threads'):
        config.data[field] = small.data[field]
    config.optim.update(learning_rate=1e-2, weight_decay=0.1)
    config.eval.batch_size = 8
    return segmentation.Task.settle(config)


@pytest.fixture(scope='module')
def data(data_dir):
    return open(tiny_config(), data_dir)


def open(config, data_dir):
    return open_dataset(
        config.data.name, data_dir, None, {'size': config.data.stored_size, **config.data.options}
    ).with_target(config.data.target)


def mesh_of(count):
    return jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


# Targets


def truth_of(split, position, name):
    """The mask of one structure, from the stored record."""
    feature, bits = phantom.STRUCTURES[name]
    data = np.frombuffer(split.source[split.records[position]][feature], np.uint8)
    return (cv2.imdecode(data, cv2.IMREAD_UNCHANGED) & bits) > 0


def test_batches_hold_the_masks_of_the_images_that_they_name(data):
    for _name, split in data.splits.items():
        stream = pipeline.train_batches(split, 5, 0)
        seen = 0
        for batch in itertools.chain(itertools.islice(stream, 2), pipeline.eval_batches(split, 5)):
            target = batch['target']
            assert target.dtype == np.uint8 and target.shape == (5, 96, 96, len(NAMES))
            for i, position in enumerate(batch['record']):
                if position < 0:
                    assert not target[i].any()
                    continue
                for c, structure in enumerate(NAMES):
                    np.testing.assert_array_equal(target[i, ..., c], truth_of(split, position, structure))
                seen += 1
        stream.close()
        assert seen == 10 + len(split)


def test_a_findings_mask_is_there_where_its_label_is(data):
    split = data.splits['train']
    target = np.concatenate([batch['target'][batch['mask']] for batch in pipeline.eval_batches(split, 8)])
    label = split.labels[:, data.label_names.index('Pneumothorax')] > 0
    assert label.any() and not label.all()
    np.testing.assert_array_equal(target[..., 1].any((1, 2)), label)
    assert (target[..., 0].mean((1, 2)) > 0.02).all() and (target[..., 2].mean((1, 2)) > 0.1).all()
    assert set(data.structures) == {*FINDINGS, 'heart', 'lungs'}


def test_without_a_target_batches_and_reads_are_as_before(data, monkeypatch):
    plain = dataclasses.replace(data.splits['train'], target=())
    batch = next(pipeline.eval_batches(plain, 4, num_threads=1, prefetch=1))
    assert batch.keys() == {'image', 'labels', 'record', 'mask'}
    # That pipeline's thread may still read ahead, so only the calls for other records count.
    calls, decode = [], pipeline.radiograph.decode_image
    position = len(plain) - 1
    monkeypatch.setattr(
        pipeline.radiograph,
        'decode_image',
        lambda data, where: (plain.image_ids[position] in where and calls.append(1)) or decode(data, where),
    )
    pipeline.decode(plain, position)
    assert len(calls) == 1
    calls.clear()
    pipeline.decode(data.splits['train'], position)
    assert len(calls) == 3  # the image, `mask` and, once for heart and lungs, `anatomy`


def test_parts_of_a_split_keep_their_target(data):
    part = fractions.fraction(data.splits['train'], 0.5, seed=0)
    assert part.target == data.splits['train'].target == tuple(phantom.STRUCTURES[name] for name in NAMES)
    assert part.take(np.arange(2)).target == part.target


def test_an_unknown_structure_is_answered_with_the_known_ones(data):
    with pytest.raises(UserError, match='liver.*Pneumothorax.*lungs, heart'):
        data.with_target(('heart', 'liver'))
    with pytest.raises(UserError, match='each once'):
        data.with_target(('heart', 'heart'))
    assert data.with_target(()) is data


def test_a_set_without_masks_and_one_of_an_older_program_say_so(data, tmp_path):
    none = dataclasses.replace(data, structures={})
    with pytest.raises(UserError, match='phantom_cxr has no masks'):
        none.with_target(('heart',))
    old = tmp_path / 'old'
    old.mkdir()
    for path in data.folder.iterdir():
        (old / path.name).symlink_to(path)
    metadata = json.loads((data.folder / 'metadata.json').read_text())
    del metadata['structures']
    (old / 'metadata.json').unlink()
    (old / 'metadata.json').write_text(json.dumps(metadata))
    opened = open_folder(old)
    assert opened.splits['test'].hash == data.splits['test'].hash  # it still opens
    with pytest.raises(UserError, match='before structures had names; delete the folder'):
        opened.with_target(('heart',))


# Views and loss


def test_image_and_target_go_through_one_geometry():
    """Bright rectangles on black, whose masks are themselves: the view, cut at a half, is the mask."""
    config = tiny_config(structures=('a', 'b'))
    config.views.first.update(jitter_probability=0.0)
    method = methods.create(config)
    image = np.zeros((16, 96, 96, 1), np.uint8)
    rng = np.random.default_rng(0)
    for picture in image:
        top, left = rng.integers(5, 50, 2)
        picture[top : top + rng.integers(10, 40), left : left + rng.integers(10, 40)] = 255
    batch = {
        'image': image,
        'labels': np.zeros((16, 9), np.uint8),
        'target': np.concatenate([image // 255, 1 - image // 255], -1),
    }
    keys = jax.random.split(jax.random.key(3), 16)
    views = jax.tree.map(np.asarray, jax.jit(method.views)(keys, batch))
    assert views['target'].shape == (16, 80, 80, 2)
    np.testing.assert_array_equal(views['target'][..., 0] > 0, views['first'][..., 0] >= 0.5)
    assert (views['target'].sum(-1) == 1).mean() > 0.999  # the second mask is the first's inverse
    whole = cv2.resize(image[0, ..., 0], (80, 80)) >= 128
    assert (views['target'][0, ..., 0] != whole).mean() > 0.01  # and the geometry did something

    config.views.first.update(jitter_probability=1.0, brightness=0.9)
    bright = jax.tree.map(np.asarray, jax.jit(methods.create(config).views)(keys, batch))
    np.testing.assert_array_equal(bright['target'], views['target'])  # photometry is the image's
    assert np.abs(bright['first'] - views['first']).max() > 0.2


def test_another_number_of_structures_is_named():
    method = methods.create(tiny_config())
    batch = {'image': np.zeros((4, 96, 96, 1), np.uint8), 'labels': np.zeros((4, 9), np.uint8)}
    keys = jax.random.split(jax.random.key(0), 4)
    with pytest.raises(UserError, match='structures is 3, but config.data.target names 0'):
        method.views(keys, batch)
    with pytest.raises(UserError, match='structures is 3, but config.data.target names 1'):
        method.views(keys, batch | {'target': np.zeros((4, 96, 96, 1), np.uint8)})


class Logits:
    """Stands in for a network that gives the logits that it was made with."""

    def __init__(self, logits):
        self.logits = logits

    def apply(self, variables, images, train, mutable):
        return {'logits': self.logits, 'pooled': images.mean((1, 2))}, {'batch_stats': {}}


def test_loss_follows_the_formula(monkeypatch):
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(5, 6, 7, 3))
    truth = rng.integers(2, size=(5, 6, 7, 3))
    truth[1:4, ..., 0] = 0  # some images without the first structure
    truth[..., 2] = 0  # a structure that none of the batch shows
    dice, entropy = [], 0.0
    for c in range(3):
        both = predicted = true = 0.0
        for x, t in zip(logits[..., c].ravel(), truth[..., c].ravel()):
            p = 1 / (1 + np.exp(-x))
            both, predicted, true = both + p * t, predicted + p, true + t
            entropy -= np.log(p if t else 1 - p)
        dice.append(1 - 2 * both / (predicted + true) if true else 0.0)
    entropy /= truth.size

    method = methods.create(tiny_config())
    monkeypatch.setattr(methods.segmentation.Method, 'network', Logits(jnp.float32(logits)))
    views = {'first': jnp.zeros((5, 6, 7, 1)), 'target': jnp.float32(truth)}
    out, _, _ = method.forward({'batch_stats': {}}, {}, views, None)
    assert all(len(x) == 5 and x.ndim == 2 for x in out.values())  # only numbers of images travel
    loss, terms = method.loss(out, {})
    np.testing.assert_allclose(terms['dice'], np.mean(dice), rtol=1e-5)
    np.testing.assert_allclose(terms['cross_entropy'], entropy, rtol=1e-5)
    np.testing.assert_allclose(loss, np.mean(dice) + entropy, rtol=1e-5)


def test_loss_of_extreme_logits_and_empty_masks_is_finite(monkeypatch):
    method = methods.create(tiny_config(structures=('heart',)))
    truth = jnp.zeros((2, 4, 4, 1)).at[0, :2].set(1)

    @jax.grad
    def gradient(logits, truth):
        monkeypatch.setattr(methods.segmentation.Method, 'network', Logits(logits))
        views = {'first': jnp.zeros((2, 4, 4, 1)), 'target': truth}
        return method.loss(method.forward({'batch_stats': {}}, {}, views, None)[0], {})[0]

    for scale, t in itertools.product((-1e4, 1e4), (truth, 0 * truth)):
        assert np.isfinite(gradient(jnp.full((2, 4, 4, 1), scale), t)).all()
    assert (gradient(jnp.zeros((2, 4, 4, 1)), 0 * truth) > 0).all()  # emptiness is still learnt


# Training


def train(config, split, devices=1, steps=3):
    """States before and after, and the last metrics."""
    method = methods.create(config)
    if jax.config.jax_enable_x64:
        method = dataclasses.replace(method, encoder=method.encoder.clone(dtype=jnp.float64))
    mesh = mesh_of(devices)
    optimizer = optim.create(config.optim, config.batch_size, 1, steps)
    state = states.create(method, optimizer, config.seed, parallel.replicated(mesh))
    if jax.config.jax_enable_x64:
        state = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state)
    first = jax.tree.map(np.asarray, state)
    train_step = make_train_step(method, optimizer, mesh, config.seed, steps)
    with contextlib.closing(pipeline.train_batches(split, config.batch_size, config.seed)) as stream:
        for batch in itertools.islice(stream, steps):
            batch.pop('record')
            state, metrics, _ = train_step(state, parallel.to_global(batch, mesh))
    return method, mesh, first, jax.tree.map(np.asarray, state), jax.device_get(metrics)


@pytest.fixture(scope='module')
def runs(data):
    """Protocol -> a few steps of it on one device."""
    return {protocol: train(tiny_config(protocol), data.splits['train']) for protocol in ('frozen', 'finetune')}


def moved(before, after):
    before, after = tiny.leaves(before), tiny.leaves(after)
    return {path: before[path].tobytes() != after[path].tobytes() for path in after}


def test_frozen_means_frozen(runs):
    """Weight decay and BatchNorm's statistics included; all of the decoder learns."""
    _, _, before, after, metrics = runs['frozen']
    assert metrics['skipped'] == 0
    for part in ('params', 'batch_stats'):
        was, now = getattr(before, part), getattr(after, part)
        encoder = moved(was['encoder'], now['encoder'])
        assert len(encoder) > 30 and not any(encoder.values())
        rest = moved(
            {k: v for k, v in was.items() if k != 'encoder'}, {k: v for k, v in now.items() if k != 'encoder'}
        )
        assert len(rest) >= 20 and all(rest.values())


def test_finetuning_moves_all_of_the_encoder(runs):
    _, _, before, after, metrics = runs['finetune']
    assert metrics['skipped'] == 0
    for part in ('params', 'batch_stats'):
        encoder = moved(getattr(before, part)['encoder'], getattr(after, part)['encoder'])
        assert len(encoder) > 30 and all(encoder.values())


def test_frozen_features_are_those_of_evaluation(runs):
    """In training mode too the decoder sees what the evaluation will show it."""
    method, _, _, after, _ = runs['frozen']
    variables = {'params': after.params, 'batch_stats': after.batch_stats}
    image = augment.standardise(jnp.asarray(np.random.default_rng(0).random((4, 80, 80, 1))))
    network = method.network.clone(
        encoder=method.encoder.clone(axis_name=None), decoder=method.network.decoder.clone(axis_name=None)
    )
    trained, _ = jax.jit(lambda: network.apply(variables, image, True, mutable=['batch_stats']))()
    evaluated = jax.jit(lambda: network.apply(variables, image, False))()
    np.testing.assert_allclose(trained['pooled'], evaluated['pooled'], rtol=1e-5)
    assert np.abs(trained['logits'] - evaluated['logits']).max() > 1e-4  # the decoder's own BatchNorm


def test_one_device_is_four(data):
    config = tiny_config('frozen')  # the encoder's own part is test_methods.py's
    config.optim.learning_rate = 1e-3
    with jax.enable_x64(True):
        _, _, _, one, metrics_1 = train(config, data.splits['train'], 1, steps=2)
        _, _, _, four, metrics_4 = train(config, data.splits['train'], 4, steps=2)
    tiny.assert_close(four, one, 1e-4)
    for name, value in metrics_1.items():
        np.testing.assert_allclose(metrics_4[name], value, rtol=1e-4, err_msg=name)


# Evaluation


@pytest.fixture(scope='module')
def evaluated(runs, data, tmp_path_factory):
    method, mesh, _, state, _ = runs['finetune']
    # After three steps nearly all pixels are one class: the biases are moved, so that a third is set.
    batch = next(pipeline.eval_batches(data.splits['test'], 8))
    logits = jax.jit(
        lambda image: method.network.apply(
            {'params': state.params, 'batch_stats': state.batch_stats},
            augment.standardise(augment.resize(image, 80)),
            train=False,
        )['logits']
    )(batch['image'])
    head = state.params['segmentation']
    head = head | {'bias': head['bias'] - np.quantile(logits, 0.67, (0, 1, 2)).astype(np.float32)}
    state = state.replace(params=state.params | {'segmentation': head})
    workdir = tmp_path_factory.mktemp('segment')
    evaluation = segmentation.Task(tiny_config(), workdir, method, data, mesh)
    numbers = evaluation.at(state, 3)
    return evaluation, state, numbers, evaluation.results(state, numbers, {}), workdir


def test_every_image_is_judged_once_at_its_stored_size(evaluated, data):
    """Against the network image by image, OpenCV's resizing and the metrics' own definitions."""
    evaluation, state, _, _, workdir = evaluated
    split = data.splits['test']
    assert len(split) % 8  # the last batch is not full
    saved = np.load(workdir / 'predictions.npz')
    assert saved['structures'].tolist() == list(NAMES)
    np.testing.assert_array_equal(saved['test_image_ids'], split.image_ids)
    np.testing.assert_array_equal(saved['test_patient_ids'], split.patient_ids)
    assert len(np.unique(saved['test_dice'])) > 15 and saved['test_dice'][:, (0, 2)].mean() > 0.05
    network = evaluation._network
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    apply = jax.jit(
        lambda image: network.apply(variables, augment.standardise(augment.resize(image, 80)), train=False)[
            'logits'
        ]
    )
    for position in range(len(split)):
        image = pipeline.decode(split, position)['image']
        probability = 1 / (1 + np.exp(-np.float64(apply(image[None])[0])))
        large = cv2.resize(probability, (96, 96), interpolation=cv2.INTER_LINEAR)
        for c, name in enumerate(NAMES):
            truth, cover = truth_of(split, position, name), large[..., c] >= 0.5
            both, union = (truth & cover).sum(), (truth | cover).sum()
            expected = (1, 1) if not union else (2 * both / (truth.sum() + cover.sum()), both / union)
            found = saved['test_dice'][position, c], saved['test_iou'][position, c]
            np.testing.assert_allclose(found, expected, atol=2e-3)
            assert saved['test_has'][position, c] == truth.any()


def test_judging_does_not_depend_on_the_batch(evaluated, data):
    evaluation, state, _, _, _ = evaluated
    values, has = evaluation.judge(state, data.splits['test'])
    other = ConfigDict(evaluation._config.to_dict())
    other.eval.batch_size = 5
    again = segmentation.Task(other, evaluation._workdir, methods.create(other), data, evaluation._mesh)
    values_5, has_5 = again.judge(state, data.splits['test'])
    np.testing.assert_array_equal(has_5, has)
    for name in values:
        np.testing.assert_allclose(values_5[name], values[name], atol=2e-3)


def test_results_are_the_means_of_the_saved_values(evaluated, data):
    _, _, numbers, results, workdir = evaluated
    saved = np.load(workdir / 'predictions.npz')
    assert results['validation/dice'] == numbers['validation/dice']
    assert not any(
        truth_of(data.splits['validation'], i, 'Pneumothorax').any()
        for i in range(len(data.splits['validation']))
    )
    assert np.isnan(numbers['validation/dice/Pneumothorax'])  # so it is no part of the mean
    assert numbers['validation/dice'] == pytest.approx(
        (numbers['validation/dice/heart'] + numbers['validation/dice/lungs']) / 2
    )
    assert list(results['test']) == list(NAMES)
    for c, name in enumerate(NAMES):
        found, has = results['test'][name], saved['test_has'][:, c]
        assert found['positives'] == has.sum()
        for metric in ('dice', 'iou'):
            value = saved[f'test_{metric}'][:, c]
            assert found[f'{metric}_positives'] == pytest.approx(value[has].mean())
            assert found[f'{metric}_all'] == pytest.approx(value.mean())
            for over in ('positives', 'all'):
                rows = has if over == 'positives' else slice(None)
                told, patients = found[f'{metric}_{over}_interval'], saved['test_patient_ids'][rows]
                if len(set(patients)) < 3:
                    assert told is None
                    continue
                _, low, high, _ = intervals.mean_interval(value[rows, None], patients)
                assert told == pytest.approx([low[0], high[0]])
                _, low, high, _ = intervals.mean_interval(value[rows, None], np.arange(len(patients)))
                assert told != pytest.approx([low[0], high[0]], abs=1e-3), 'by image'
    heart = results['test']['heart']
    assert heart['dice_all'] == heart['dice_positives'] and heart['dice_all_interval'][0] > 0
    assert results['test']['Pneumothorax']['positives'] < len(data.splits['test'])


def test_samples_are_images_with_their_masks(evaluated, data):
    _evaluation, _, _, _, workdir = evaluated
    saved, split = np.load(workdir / 'predictions.npz'), data.splits['test']
    ids = saved['sample_image_ids'].tolist()
    assert len(ids) == len(set(ids)) == min(8, len(split))
    for i, image_id in enumerate(ids):
        position = split.image_ids.tolist().index(image_id)
        example = pipeline.decode(split, position)
        np.testing.assert_array_equal(saved['sample_images'][i], example['image'][..., 0])
        np.testing.assert_array_equal(saved['sample_truth'][i], example['target'] > 0)
        np.testing.assert_allclose(
            dice(saved['sample_truth'][i][None], saved['sample_predicted'][i][None])[0],
            saved['test_dice'][position],
            atol=2e-3,
        )
    assert saved['sample_truth'].dtype == saved['sample_predicted'].dtype == bool


def test_validation_alone_is_seen_before_the_end(evaluated, data, monkeypatch):
    evaluation, state, numbers, _, _ = evaluated
    seen = []
    monkeypatch.setattr(
        evaluation,
        '_predict',
        lambda state, split: (
            seen.append(split.name)
            or iter(
                [
                    (
                        np.arange(len(split)),
                        np.ones((len(split), 4, 4, 3), bool),
                        np.ones((len(split), 4, 4, 3), bool),
                    )
                ]
            )
        ),
    )
    assert evaluation.at(state, 1)['validation/dice'] == 1
    assert seen == ['validation'] and evaluation.monitor in numbers


def test_the_empty_rule(evaluated, data, monkeypatch):
    """Nothing shown and nothing answered is 1, over all images; it is no part of the positives."""
    evaluation, state, _, _, _ = evaluated
    split = data.splits['validation']
    has = np.zeros((len(split), 1, 1, 3), bool)
    has[0] = True
    masks = np.broadcast_to(has, (len(split), 4, 4, 3))
    monkeypatch.setattr(
        evaluation,
        '_predict',
        lambda state, split: iter([(np.arange(len(split)), masks, np.zeros_like(masks))]),
    )
    numbers = evaluation.at(state, 1)
    assert numbers['validation/dice'] == 0
    assert numbers['validation/dice_all'] == pytest.approx((len(split) - 1) / len(split))
    evaluation.check(True)
    monkeypatch.setattr(pipeline, 'decode', lambda split, position: {'target': np.zeros((4, 4, 3))})
    evaluation.check(False)
    with pytest.raises(UserError, match='shows heart or Pneumothorax or lungs'):
        evaluation.check(True)


def test_masks_are_probabilities_resized_then_cut():
    logits = np.full((1, 4, 4, 2), -5.0, np.float32)
    logits[0, :, 2:, 0] = 5.0
    found = np.asarray(segmentation.masks(logits, 8))
    expected = np.zeros((8, 8), bool)
    expected[:, 4:] = True  # an edge between two pixels stays where it is
    np.testing.assert_array_equal(found[0, ..., 0], expected)
    assert not found[..., 1].any()
    # One pixel sure, its neighbour nearly not: between them probabilities average, not logits.
    pair = np.float32([[[[100.0], [-1.0]]]])
    p = 1 / (1 + np.exp(1.0))
    line = np.float64([1, 0.75 + 0.25 * p, 0.25 + 0.75 * p, p]) >= 0.5
    np.testing.assert_array_equal(segmentation.masks(pair, 4)[0, 0, :, 0], line)
    assert not line[2]


# The recipe


def test_recipe_has_the_papers_values():
    config = segment.get_config()
    assert (config.task, config.data.name, config.data.target) == (
        'segment',
        'siim_pneumothorax',
        ('Pneumothorax',),
    )
    assert (config.batch_size, config.optim.learning_rate, config.early_stopping.patience) == (32, 3e-4, 10)
    assert config.data.options.balanced and config.data.validation_fraction == 0.2
    assert not config.optim.scale_with_batch and config.data.labelled.share == 1


def test_protocol_freezes_network_and_optimiser_alike():
    for protocol, frozen in (('frozen', True), ('finetune', False)):
        by_option, by_field = segment.get_config(f'protocol={protocol}'), segment.get_config()
        by_field.protocol = protocol
        settled = [segmentation.Task.settle(config) for config in (by_option, by_field)]
        assert settled[0].to_dict() == settled[1].to_dict()
        assert settled[0].method.frozen_encoder is frozen and settled[0].method.structures == 1
        assert settled[0].optim.frozen == (('encoder',) if frozen else ())
    assert segment.get_config('fraction=0.3').data.labelled.share == 0.3


def test_a_frozen_encoder_by_another_field_than_the_protocol_is_refused():
    config = segment.get_config()
    config.optim.frozen = ('encoder',)
    with pytest.raises(UserError, match='give --config.protocol=frozen'):
        segmentation.Task.settle(config)


@pytest.mark.parametrize(
    'argument,words',
    [
        ('size=tiny', 'size=tiny, expected one of full, small'),
        ('protocol=both', 'expected one of finetune, frozen'),
        ('dataset=nih_chestxray14', 'name what is segmented, structures='),
        ('dataset=mnist', 'expected one of image_folder_cxr, nih_chestxray14'),
        ('structure=heart', "'structure=heart', expected NAME=VALUE with a name out of dataset, struct"),
        ('frozen', "'frozen', expected NAME=VALUE"),
    ],
)
def test_recipe_names_what_it_does_not_know(argument, words):
    with pytest.raises(ValueError, match=words):
        segment.get_config(argument)
