"""The phantom: exact truth, an image from three integers, the right way round, not too easy."""

import os

import cv2
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import radiograph
from mlvicx_jax_datasets.phantom_cxr import phantom_cxr_dataset_builder as phantom
from mlvicx_jax_datasets.phantom_cxr import render
from mlvicx_jax_datasets.phantom_cxr.findings import FINDINGS, LABELS


def many(patients: int, size: int) -> list[render.Example]:
    """The first image of each of `patients` patients."""
    return list(
        radiograph.parallel_map(lambda p: render.render(0, p, 0, size), range(patients), os.cpu_count() or 1)
    )


@pytest.fixture(scope='module')
def shots() -> list[render.Example]:
    return many(40, 128)


@pytest.fixture(scope='module')
def build(tmp_path_factory):
    def build(patients):
        config = phantom.Config(size=64, patients=patients)
        builder = phantom.Builder(
            data_dir=tmp_path_factory.mktemp('data'), config=config, file_format='array_record'
        )
        builder.download_and_prepare()
        return builder

    return build


def examples(builder, split: str) -> dict[str, dict]:
    return {e['image_id'].decode(): e for e in builder.as_data_source(split=split)}


def test_builder_keeps_the_schema_and_splits_by_patient(build):
    builder = build(10)
    assert builder.builder_config.name == '64_p10_s0'
    assert list(builder.info.metadata['labels']) == list(LABELS)
    splits = {split: examples(builder, split) for split in ('train_val', 'test')}
    people = {split: {e['patient_id'] for e in found.values()} for split, found in splits.items()}
    assert people['test'] == {b'000004', b'000009'} and len(people['train_val']) == 8
    for image_id, example in {**splits['train_val'], **splits['test']}.items():
        truth = render.render(0, *map(int, image_id.split('_')), 64)
        np.testing.assert_array_equal(example['image'][..., 0], truth.image)
        np.testing.assert_array_equal(example['mask'][..., 0], truth.mask)
        np.testing.assert_array_equal(example['anatomy'][..., 0], truth.anatomy)
        np.testing.assert_array_equal(example['labels'], truth.labels)
        assert len(example['bboxes']['label']) == len(truth.boxes)


def test_an_image_does_not_depend_on_the_number_of_patients(build):
    few, more = examples(build(5), 'train_val'), examples(build(6), 'train_val')
    assert few.keys() < more.keys()
    for image_id in few:
        np.testing.assert_array_equal(few[image_id]['image'], more[image_id]['image'])


def test_a_smaller_image_is_the_same_radiograph():
    for patient in range(4):
        large, small = (render.render(3, patient, 0, size) for size in (256, 64))
        shrunk = cv2.resize(large.image, (64, 64), interpolation=cv2.INTER_AREA)
        assert np.abs(shrunk.astype(int) - small.image).max() <= 1
        np.testing.assert_array_equal(large.labels, small.labels)
        double = render.render(3, patient, 0, 512)
        assert (
            np.corrcoef(
                cv2.resize(double.image, (64, 64), interpolation=cv2.INTER_AREA).ravel(), small.image.ravel()
            )[0, 1]
            > 0.98
        )


def test_labels_masks_and_boxes_agree(shots):
    for shot in shots:
        present = np.array([(shot.mask >> k & 1).any() for k in range(len(FINDINGS))])
        np.testing.assert_array_equal(present, shot.labels[:-1])
        assert shot.labels[-1] == (not present.any())
        for k in range(len(FINDINGS)):
            plane = shot.mask >> k & 1
            covered = np.zeros_like(plane)
            for top, left, bottom, right in (
                np.rint(np.multiply(b[1:], 128)).astype(int) for b in shot.boxes if b[0] == k
            ):
                inside = plane[top:bottom, left:right]
                assert inside[0].any() and inside[-1].any()  # the box is tight
                assert inside[:, 0].any() and inside[:, -1].any()
                covered[top:bottom, left:right] = 1
            assert (covered >= plane).all()


def test_the_chest_is_the_right_way_round(shots):
    columns = np.arange(128)
    healthy = [shot for shot in shots if shot.labels[-1]]
    assert len(healthy) > 8
    for shot in healthy:
        right, left, heart = (shot.anatomy >> bit & 1 for bit in range(3))
        centre = [(plane.sum(0) @ columns) / plane.sum() for plane in (right, left, heart)]
        assert centre[0] < centre[2] < centre[1]
        assert centre[2] > (centre[0] + centre[1]) / 2  # the apex points to the patient's left
        lungs = (right | left) & ~heart
        assert shot.image[lungs == 1].mean() < shot.image[heart == 1].mean() - 20


def test_more_test_patients_change_nobody_who_is_trained_on():
    alone, many = phantom.Config(patients=20), phantom.Config(patients=20, test_patients=2000)
    assert many.split()['train_val'] == alone.split()['train_val']
    assert many.split()['test'][:4] == alone.split()['test'] == [4, 9, 14, 19]
    assert len(set(many.split()['test'])) == 2000 and not set(many.split()['test']) & set(range(0, 10_000, 5))
    assert not set(phantom.Config(patients=10_000).split()['train_val']) & set(many.split()['test'])
    assert (alone.name, many.name) == ('256_p20_s0', '256_p20_s0_t2000')
    films = sum(render.person(0, patient).images for patient in many.split()['test'])
    assert 4500 < films < 5100


def spied(monkeypatch, patient: int, image: int) -> dict[str, np.ndarray]:
    """What one film is made of: depth along the beam, devices, lead, noise, and the film itself."""
    found = {}

    def keep(owner, name):
        original = getattr(owner, name)

        def function(*arguments):
            found[name] = original(*arguments)
            return np.copy(found[name])  # what follows may write to it

        monkeypatch.setattr(owner, name, function)

    with monkeypatch.context() as monkeypatch:
        for name in ('devices', 'markers', 'expose', 'collimate', 'display'):
            keep(render.detector, name)
        keep(render, '_optical_depth')
        keep(render.Canvas, 'noise')
        found['example'] = render.render(0, patient, image, 256)
    return found


def test_two_films_of_a_patient_share_anatomy_and_findings_only(monkeypatch):
    """The same pose and body, so that all that is left to differ is the film: a pair of films must
    have no exposure, noise, marker or collimation in common that gives the patient away."""
    pose = render.Pose.draw(np.random.default_rng(0))
    monkeypatch.setattr(render.Pose, 'draw', lambda rng: pose)
    monkeypatch.setattr(render, 'ACUTE', ())  # findings that may be absent from one film
    patient = next(
        p
        for p in range(99)
        if render.person(0, p).images >= 2 and render.draw_findings(render.stream(0, p, render._ILLNESS)).any()
    )
    first, second = (spied(monkeypatch, patient, i) for i in (0, 1))
    one, two = first['example'], second['example']
    assert (one.age, one.sex) == (two.age, two.sex)
    np.testing.assert_array_equal(one.anatomy, two.anatomy)
    np.testing.assert_array_equal(one.labels, two.labels)
    gas = np.abs(first['_optical_depth'] - second['_optical_depth']) > 1e-4
    assert gas.mean() < 0.05, 'more than gas under the left dome differs'
    for name in ('devices', 'markers', 'expose', 'display'):
        assert not np.array_equal(first[name], second[name]), name
    noise = [film['noise'].ravel() for film in (first, second)]  # the last field drawn: the quanta's
    assert noise[0].size == 256 * 256 and abs(np.corrcoef(*noise)[0, 1]) < 0.02


@pytest.mark.parametrize('option', [{'size': 0}, {'patients': 1}, {'seed': -1}, {'size': 96.5}])
def test_an_impossible_option_is_refused(option):
    with pytest.raises(UserError, match=next(iter(option))):
        phantom.Config(**option)


def test_pixels_alone_do_not_solve_it():
    """Five-fold ridge on 32 x 32 pixels; the README has the figure of the whole set."""
    found = many(320, 32)
    pixels = np.stack([shot.image.ravel() for shot in found]) / 255
    labels = np.stack([shot.labels[:-1] for shot in found])
    fold = np.arange(len(found)) % 5
    scores = np.zeros(labels.shape)
    for k in range(5):
        train, held = fold != k, fold == k
        scores[held] = Ridge(alpha=10.0).fit(pixels[train], labels[train]).predict(pixels[held])
    auroc = [roc_auc_score(labels[:, k], scores[:, k]) for k in range(len(FINDINGS))]
    assert 0.55 < np.mean(auroc) < 0.85, auroc
    assert (labels.mean(0) > 0.07).all() and (labels.mean(0) < 0.3).all()
    assert 0.3 < 1 - labels.any(1).mean() < 0.5
