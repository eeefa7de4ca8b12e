"""RSNA: several rows per image, three classes, and NIH's split through the id mapping."""

import json

import numpy as np
import pytest

pytest.importorskip('pydicom', reason="needs pip install 'mlvicx-jax[dicom]'")

from dicoms import write

from mlvicx_jax.data.prepare import prepare
from mlvicx_jax.errors import UserError

LABELS, CLASSES = 'stage_2_train_labels.csv', 'stage_2_detailed_class_info.csv'
OTHER = 'No Lung Opacity / Not Normal'
KIND = {f'id{i:02}': ('Lung Opacity', OTHER, 'Normal')[i % 3] for i in range(12)}


def write_release(root, mapping=False):
    labels = ['patientId,x,y,width,height,Target']
    classes = ['patientId,class']
    for i, (image, kind) in enumerate(KIND.items()):
        rows = [f'{image},256.0,512.0,128.0,64.0,1', f'{image},0.0,0.0,512.0,1024.0,1']
        rows = rows if kind == 'Lung Opacity' else [f'{image},,,,,0']
        labels += rows
        classes += [f'{image},{kind}'] * len(rows)  # a row per box, as in the real file
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64)).astype(np.uint8)
        write(
            root / f'stage_2_train_images/{image}.dcm',
            pixels,
            modality='CR',
            ViewPosition='AP',
            PatientSex='M',
            PatientAge='51',
        )
    (root / LABELS).write_text('\n'.join(labels) + '\n')
    (root / CLASSES).write_text('\n'.join(classes) + '\n')
    if mapping:
        names = [f'{i // 2 + 1:08}_{i % 2:03}.png' for i in range(14)]
        (root / 'pneumonia-challenge-dataset-mappings_2018.json').write_text(
            json.dumps(
                [
                    {'SOPInstanceUID': '1.2', 'subset_img_id': image, 'img_id': name, 'orig_labels': []}
                    for image, name in zip(KIND, names)
                ]
            )
        )
        (root / 'train_val_list.txt').write_text('\n'.join(names[:8]))
        (root / 'test_list.txt').write_text('\n'.join(names[8:]))


def _examples(builder, split):
    return {e['image_id'].decode(): e for e in builder.as_data_source(split)}


def test_labels_and_boxes(tmp_path):
    write_release(tmp_path / 'raw')
    builder = prepare('rsna_pneumonia', tmp_path / 'data', tmp_path / 'raw', {'size': 32})
    assert builder.info.metadata['labels'] == ['Pneumonia', 'No Finding']
    splits = {split: _examples(builder, split) for split in ('train_val', 'test')}
    assert {s: len(e) for s, e in splits.items()} == {'train_val': 10, 'test': 2}
    everything = {**splits['train_val'], **splits['test']}
    assert everything.keys() == KIND.keys()
    for image, example in everything.items():
        expected = {'Lung Opacity': [1, 0], OTHER: [0, 0], 'Normal': [0, 1]}[KIND[image]]
        assert example['labels'].tolist() == expected
        assert (example['age'], example['view'], example['sex']) == (51, 1, 1)
        assert example['patient_id'].decode() == image
    boxes = everything['id00']['bboxes']['bbox']
    np.testing.assert_allclose(boxes, [[0.5, 0.25, 0.5625, 0.375], [0, 0, 1, 0.5]])
    notes = ' '.join(builder.info.metadata['notes'])
    assert 'seed 0' in notes and 'pretrained on NIH' in notes
    other = prepare('rsna_pneumonia', tmp_path / 'data', tmp_path / 'raw', {'size': 32, 'split_seed': 1})
    assert _examples(other, 'test').keys() != splits['test'].keys()


def test_mapping_gives_the_split_of_nih(tmp_path):
    write_release(tmp_path / 'raw', mapping=True)
    builder = prepare('rsna_pneumonia', tmp_path / 'data', tmp_path / 'raw', {'size': 32})
    assert _examples(builder, 'train_val').keys() == set(list(KIND)[:8])
    test = _examples(builder, 'test')
    assert test.keys() == set(list(KIND)[8:])
    assert {i: e['patient_id'] for i, e in test.items()} == {
        'id08': b'5',
        'id09': b'5',
        'id10': b'6',
        'id11': b'6',
    }
    assert builder.info.metadata['lists']['test']['official'] is False


def test_mapping_is_checked(tmp_path):
    write_release(tmp_path / 'raw')
    arguments = 'rsna_pneumonia', tmp_path / 'data', tmp_path / 'raw'
    with pytest.raises(UserError, match='split=nih needs'):
        prepare(*arguments, {'size': 32, 'split': 'nih'})
    with pytest.raises(UserError, match="split is 'clean'"):
        prepare(*arguments, {'split': 'clean'})
    write_release(tmp_path / 'raw', mapping=True)
    path = tmp_path / 'raw/pneumonia-challenge-dataset-mappings_2018.json'
    text = path.read_text()
    for old, new, words in (
        ('"id03"', '"id99"', 'id03 of'),
        ('00000001_000', '00000099_000', 'is in neither'),
        ('00000001_000', 'xray-1', 'no name of an NIH image'),
        ('"img_id"', '"nih"', 'not the id mapping'),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=words):
            prepare(*arguments, {'size': 32})


@pytest.mark.parametrize(
    'name,old,new,words',
    [
        (LABELS, 'Target', 'target', "no column 'Target'"),
        (LABELS, 'id01,,,,,0', 'id01,,,,,1', "Target is '1'"),
        (LABELS, 'id01,,,,,0', 'id01,,,,,0\nid01,,,,,0', 'id01 is there twice'),
        (LABELS, 'id01,', 'id77,', f'id77 is not in {CLASSES}'),
        (LABELS, '128.0', '-128.0', 'is empty or outside'),
        (CLASSES, OTHER, 'No Opacity', "unknown finding 'No Opacity'"),
        (CLASSES, 'id00,Lung Opacity', 'id00,Normal', 'id00 is'),
    ],
)
def test_bad_tables(tmp_path, name, old, new, words):
    write_release(tmp_path / 'raw')
    path = tmp_path / 'raw' / name
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=words) as error:
        prepare('rsna_pneumonia', tmp_path / 'data', tmp_path / 'raw', {'size': 32})
    assert '\n' not in str(error.value)
