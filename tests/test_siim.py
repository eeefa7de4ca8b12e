"""SIIM: relative, column-major runs against an independent oracle, in both forms of the release."""

import numpy as np
import pytest

pytest.importorskip('pydicom', reason="needs pip install 'mlvicx-jax[dicom]'")

from dicoms import write

from mlvicx_jax.data.prepare import prepare
from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import release
from mlvicx_jax_datasets.siim_pneumothorax import siim_pneumothorax_dataset_builder as siim

SIDE = 1024
IDS = [f'1.2.276.0.7230010.3.1.4.8323329.{i}' for i in range(12)]


def encode(mask) -> str:
    """The challenge's own format, pixel by pixel: columns first, gap since the last run's end."""
    out, gap, run = [], 0, 0
    for x in range(mask.shape[1]):
        for y in range(mask.shape[0]):
            if mask[y, x]:
                run += 1
            elif run:
                out += [gap, run]
                gap, run = 1, 0
            else:
                gap += 1
    if run:
        out += [gap, run]
    return ' '.join(map(str, out))


def decode(row: str) -> np.ndarray:
    """One run after the other, one pixel after the other."""
    mask, at = np.zeros((SIDE, SIDE), bool), 0
    numbers = [int(n) for n in row.split()]
    for gap, length in zip(numbers[::2], numbers[1::2]):
        at += gap
        for _ in range(length):
            mask[at % SIDE, at // SIDE] = True
            at += 1
    return mask


@pytest.fixture(scope='module')
def masks():
    """Image -> its masks: two overlapping ones, one that touches corners, one thin; others none."""
    yy, xx = np.indices((SIDE, SIDE))
    ellipse = (yy - 300) ** 2 / 150**2 + (xx - 250) ** 2 / 60**2 < 1
    other = (yy - 400) ** 2 + (xx - 280) ** 2 < 40**2
    corners = (yy < 20) & (xx < 10) | (yy > 1000) & (xx > 1010)
    line = (xx == 700) & (yy > 100) & (yy < 130)
    return {IDS[0]: [ellipse, other], IDS[1]: [corners], IDS[2]: [line]}


def write_release(root, masks, stage2=False):
    table = ['ImageId,EncodedPixels' if stage2 else 'ImageId, EncodedPixels']
    for i, image in enumerate(IDS):
        rows = [encode(mask) for mask in masks.get(image, [])] or ['-1']
        table += [f'{image},{row}' if stage2 else f'{image}, {row}' for row in rows]
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32)).astype(np.uint8)
        pixels = np.kron(pixels, np.ones((32, 32), np.uint8))
        folder = 'stage_2_images' if stage2 else f'dicom-images-train/{image}.1/{image}.2'
        write(
            root / f'{folder}/{image}.dcm',
            pixels,
            modality='CR',
            ViewPosition='PA',
            PatientAge='62',
            PatientSex='M',
        )
    (root / ('stage_2_train.csv' if stage2 else 'train-rle.csv')).write_text('\n'.join(table) + '\n')


def _examples(builder):
    return {e['image_id'].decode(): e for split in ('train_val', 'test') for e in builder.as_data_source(split)}


def test_decoder_against_the_oracle(masks):
    for found in masks.values():
        for mask in found:
            np.testing.assert_array_equal(siim.decode_mask((encode(mask),)), mask)
            np.testing.assert_array_equal(decode(encode(mask)), mask)
    assert not siim.decode_mask(()).any()
    # Two runs down the first column: pixels 2..4 and 10..11, the gap counted from the first's end.
    assert np.argwhere(siim.decode_mask(('2 3 5 2',))).tolist() == [[y, 0] for y in (2, 3, 4, 10, 11)]


@pytest.mark.parametrize('stage2', [False, True])
def test_both_forms(tmp_path, masks, stage2):
    write_release(tmp_path / 'raw', masks, stage2)
    write(next((tmp_path / 'raw').rglob('*.dcm')).parent / 'unlabelled.dcm', np.zeros((8, 8), np.uint8))
    builder = prepare('siim_pneumothorax', tmp_path / 'data', tmp_path / 'raw', {'size': 128})
    found = _examples(builder)
    assert found.keys() == set(IDS) and builder.info.metadata['labels'] == ['Pneumothorax']
    assert any('1 image files have no row' in n for n in builder.info.metadata['notes'])
    for image, example in found.items():
        whole = np.logical_or.reduce(masks.get(image, [np.zeros((SIDE, SIDE), bool)]))
        cover = whole.reshape(128, 8, 128, 8).mean((1, 3))
        expected = cover >= min(0.5, cover.max()) if whole.any() else cover > 0
        np.testing.assert_array_equal(example['mask'][..., 0], expected)
        assert example['labels'].tolist() == [int(image in masks)] == [int(expected.any())]
        assert (example['age'], example['view'], example['sex']) == (62, 0, 1)


def test_mask_at_full_size_is_exact(tmp_path, masks):
    write_release(tmp_path / 'raw', masks)
    found = _examples(prepare('siim_pneumothorax', tmp_path / 'data', tmp_path / 'raw', {'size': SIDE}))
    for image, parts in masks.items():
        np.testing.assert_array_equal(found[image]['mask'][..., 0], np.logical_or.reduce(parts))


def test_balanced(tmp_path, masks):
    write_release(tmp_path / 'raw', masks)
    options = {'size': 32, 'balanced': True, 'split_seed': 3}
    builder = prepare('siim_pneumothorax', tmp_path / 'data', tmp_path / 'raw', options)
    for split in ('train_val', 'test'):
        labels = [int(e['labels'][0]) for e in builder.as_data_source(split)]
        assert labels and sum(labels) * 2 == len(labels)
    assert any(n.startswith('balanced: test keeps') for n in builder.info.metadata['notes'])


def test_enlarged_and_thin_masks():
    dot = np.zeros((64, 64), bool)
    dot[10, 20] = True
    assert release.shrink_mask(dot, 8).sum() == 1 and release.shrink_mask(dot, 8)[1, 2]
    assert release.shrink_mask(dot, 64)[10, 20] == 1
    assert release.shrink_mask(~dot, 100).mean() > 0.99
    assert not release.shrink_mask(np.zeros((64, 64), bool), 8).any()


@pytest.mark.parametrize(
    'row,words',
    [
        (f'{IDS[5]}, 5', 'has 1 fields'),
        (f'{IDS[5]}, 5 -3', 'expected pairs of whole numbers'),
        (f'{IDS[5]}, 1048570 90', 'ends at pixel 1048660'),
        (f'{IDS[5]}, 4 4', 'has a mask here'),
        (f'{IDS[5]}, 4 4\n{IDS[5]}, -1', 'has a mask above'),
        (f'{IDS[5]}', '1 fields, expected'),
    ],
)
def test_bad_rows(tmp_path, row, words):
    write_release(tmp_path / 'raw', {})
    path = tmp_path / 'raw/train-rle.csv'
    lines = path.read_text().splitlines()
    keep = lines if 'mask here' in words else [line for line in lines if not line.startswith(IDS[5] + ',')]
    path.write_text('\n'.join([*keep, row]) + '\n')
    with pytest.raises(UserError, match=words) as error:
        prepare('siim_pneumothorax', tmp_path / 'data', tmp_path / 'raw', {'size': 32})
    assert '\n' not in str(error.value) and 'train-rle.csv, line' in str(error.value)
