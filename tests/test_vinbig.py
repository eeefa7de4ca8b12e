"""VinBig: Kaggle's and PhysioNet's tables, three readers made one label, boxes in the image."""

import numpy as np
import pytest

pytest.importorskip('pydicom', reason="needs pip install 'mlvicx-jax[dicom]'")

from dicoms import write

from mlvicx_jax.data.prepare import prepare, read_report
from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import radiograph
from mlvicx_jax_datasets.vinbig_cxr import vinbig_cxr_dataset_builder as vinbig

KAGGLE_HEADER = 'image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max'
# Ten images, two of them with findings; Kaggle leaves the corners of 'No finding' empty.
ROWS = {
    'img0': [
        'Cardiomegaly,3,R1,40,20,60,80',
        'Cardiomegaly,3,R2,44,20,60,80',
        'Nodule/Mass,8,R2,1,2,11,12',
        'Cardiomegaly,3,R3,40,24,60,80',
        'Pneumothorax,12,R3,0,0,10,10',
        'Pneumothorax,12,R3,10,10,30,30',
    ],
    'img1': ['Nodule/Mass,8,R1,1,2,11,12', 'No finding,14,R2,,,,', 'No finding,14,R3,,,,'],
    **{f'img{i}': [f'No finding,14,R{r},,,,' for r in (1, 2, 3)] for i in range(2, 10)},
}


def _film(path, seed, **tags):
    pixels = np.random.default_rng(seed).integers(0, 4096, (100, 80)).astype(np.uint16)
    write(
        path,
        pixels,
        bits=12,
        photometric=f'MONOCHROME{1 + seed % 2}',
        PatientSex='F',
        PatientAge='061Y',
        **tags,
    )


def write_kaggle(root):
    lines = [f'{image},{row}' for image, rows in ROWS.items() for row in rows]
    lines = lines[::2] + lines[1::2]  # the rows of an image are not together
    root.mkdir(parents=True, exist_ok=True)
    (root / 'train.csv').write_text('\n'.join([KAGGLE_HEADER, *lines]) + '\n')
    for i, image in enumerate(ROWS):
        _film(root / f'train/{image}.dicom', i)


PHYSIONET = [*vinbig.PHYSIONET_LABELS[:-2], 'Other diseases', 'No finding']


def write_physionet(root):
    folder = root / 'annotations'
    folder.mkdir(parents=True)

    def flags(*names):
        return ','.join('01'[name in names] for name in PHYSIONET)

    (folder / 'image_labels_train.csv').write_text(
        '\n'.join(
            [
                'image_id,rad_id,' + ','.join(PHYSIONET),
                'a,R8,' + flags('Edema', 'Other diseases'),
                'a,R9,' + flags('Edema'),
                'a,R10,' + flags('No finding'),
                *(f'b,{r},' + flags('No finding') for r in ('R8', 'R9', 'R10')),
            ]
        )
    )
    (folder / 'image_labels_test.csv').write_text(
        '\n'.join(['image_id,' + ','.join(PHYSIONET), 'c,' + flags('Tuberculosis')])
    )
    (folder / 'annotations_train.csv').write_text(
        'image_id,rad_id,class_name,x_min,y_min,x_max,y_max\na,R8,Edema,8,10,40,50\nb,R8,No finding,,,,\n'
    )
    (folder / 'annotations_test.csv').write_text(
        'image_id,class_name,x_min,y_min,x_max,y_max\nc,No finding,,,,\n'
    )
    for i, image in enumerate('ab'):
        _film(root / f'train/{image}.dicom', i)
    _film(root / 'test/c.dicom', 2)


def _examples(builder):
    names = builder.info.metadata['labels']
    found = {}
    for split in builder.info.splits:
        for e in builder.as_data_source(split):
            labels = {names[i] for i in np.flatnonzero(e['labels'])}
            boxes = [
                (names[k], *np.round(b * [100, 80, 100, 80]).astype(int).tolist())
                for k, b in zip(e['bboxes']['label'], e['bboxes']['bbox'])
            ]
            found[e['image_id'].decode()] = split, labels, boxes, e
    return found


@pytest.mark.parametrize(
    'rule,first,second',
    [
        ('majority', {'Cardiomegaly'}, {'No Finding'}),
        ('all', {'Cardiomegaly'}, {'No Finding'}),
        ('any', {'Cardiomegaly', 'Nodule/Mass', 'Pneumothorax'}, {'Nodule/Mass'}),
    ],
)
def test_kaggle_and_the_rule_of_readers(tmp_path, rule, first, second):
    write_kaggle(tmp_path / 'raw')
    builder = prepare('vinbig_cxr', tmp_path / 'data', tmp_path / 'raw', {'size': 32, 'rule': rule})
    found = _examples(builder)
    assert found.keys() == ROWS.keys() and len(builder.info.metadata['labels']) == 15
    assert found['img0'][1] == first and found['img1'][1] == second
    assert all(found[f'img{i}'][1] == {'No Finding'} for i in range(2, 10))
    boxes = found['img0'][2]  # ymin, xmin, ymax, xmax
    assert ('Cardiomegaly', 20, 40, 80, 60) in boxes
    assert len(boxes) == (6 if rule == 'any' else 3)
    assert found['img2'][3]['age'] == 61 and found['img2'][3]['patient_id'] == b'img2'
    assert sum(split == 'test' for split, *_ in found.values()) == 2
    assert any(rule in note for note in builder.info.metadata['notes'])


@pytest.mark.parametrize('sides', [False, True])
def test_copies_as_smaller_pictures_have_boxes_where_the_scale_is_known(tmp_path, sides):
    write_kaggle(tmp_path / 'raw')
    expected = _examples(prepare('vinbig_cxr', tmp_path / 'dicom', tmp_path / 'raw', {'size': 32}))
    for path in sorted((tmp_path / 'raw/train').iterdir()):
        small = radiograph.resize(radiograph.read_image(path), 50)
        path.with_suffix('.png').write_bytes(radiograph.encode_png(small))
        path.unlink()
    if sides:  # as the known copies on Kaggle have them
        header, *rows = (tmp_path / 'raw/train.csv').read_text().splitlines()
        lines = [f'{header},width,height', *(f'{row},80,100' for row in rows)]
        (tmp_path / 'raw/train.csv').write_text('\n'.join(lines))
    builder = prepare('vinbig_cxr', tmp_path / 'png', tmp_path / 'raw', {'size': 32})
    found = _examples(builder)
    assert {i: f[1] for i, f in found.items()} == {i: f[1] for i, f in expected.items()}
    assert found['img0'][2] == (expected['img0'][2] if sides else [])
    assert any('1 films are copies of unknown scale' in n for n in builder.info.metadata['notes']) == (
        not sides
    )


def test_physionet(tmp_path):
    write_physionet(tmp_path / 'raw')
    options = {'size': 32, 'form': 'physionet'}
    builder = prepare('vinbig_cxr', tmp_path / 'data', tmp_path / 'raw', options)
    found = _examples(builder)
    assert len(builder.info.metadata['labels']) == 28
    assert {i: f[:3] for i, f in found.items()} == {
        'a': ('train_val', {'Edema'}, [('Edema', 10, 8, 50, 40)]),
        'b': ('train_val', {'No Finding'}, []),
        'c': ('test', {'Tuberculosis'}, []),
    }
    with pytest.raises(UserError, match='form=physionet'):
        prepare('vinbig_cxr', tmp_path / 'data', tmp_path / 'raw', {'size': 32})


@pytest.mark.parametrize(
    'old,new,words',
    [
        ('class_id', 'klass', "no column 'class_id'"),
        ('Cardiomegaly,3', 'Cardiomegalie,3', "unknown finding 'Cardiomegalie'"),
        ('Cardiomegaly,3', 'Cardiomegaly,4', "class_id is '4'"),
        ('40,20,60,80', '40,20,30,80', 'is empty'),
        ('40,20,60,80', '40,x,60,80', 'expected four numbers'),
        ('Cardiomegaly,3', 'Cardiomegal\x81,3', 'neither UTF-8 nor'),
    ],
)
def test_bad_table(tmp_path, old, new, words):
    write_kaggle(tmp_path / 'raw')
    path = tmp_path / 'raw/train.csv'
    path.write_bytes(path.read_text().replace(old, new, 1).encode('latin-1'))
    with pytest.raises(UserError, match=words) as error:
        prepare('vinbig_cxr', tmp_path / 'data', tmp_path / 'raw', {'size': 32})
    assert '\n' not in str(error.value) and 'train.csv' in str(error.value)


def test_bad_files_are_rows_of_the_report(tmp_path):
    write_kaggle(tmp_path / 'raw')
    train = tmp_path / 'raw/train'
    (train / 'img1.dicom').unlink()
    (train / 'img2.dicom').write_bytes(b'')
    (train / 'img3.dicom').write_bytes((train / 'img3.dicom').read_bytes()[:-900])
    _film(train / 'img4.dicom', 4, modality='CT')
    _film(train / 'img5.dicom', 5, PixelData=None)
    _film(train / 'img0.dicom', 0, Columns=30, Rows=100, PixelData=bytes(range(250)) * 24)  # boxes outside
    arguments = 'vinbig_cxr', tmp_path / 'data', tmp_path / 'raw', {'size': 32}
    with pytest.raises(UserError, match='6 of 10 images.*--allow-bad 6'):
        prepare(*arguments, allow_bad=5)
    builder = prepare(*arguments, allow_bad=6)
    reasons = {row['file'].rpartition('/')[2]: row['reason'] for row in read_report(builder.data_path)['bad']}
    for name, words in {
        'img0.dicom': 'outside the 30 x 100 image',
        'img1': 'no image file',
        'img2.dicom': 'empty',
        'img3.dicom': 'truncated or damaged',
        'img4.dicom': 'Modality CT',
        'img5.dicom': 'no pixel data',
    }.items():
        assert words in reasons[name], reasons
    assert _examples(builder).keys() == {f'img{i}' for i in range(6, 10)}
