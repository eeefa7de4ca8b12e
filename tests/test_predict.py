"""`mlvicx_jax.predict`: the numbers of evaluation, for files of every kind and number."""

import csv
import itertools
import json
import os
import shutil
import time

import cv2
import dicoms
import numpy as np
import pytest
from ended_run import make_workdir

import tiny
from mlvicx_jax import parallel
from mlvicx_jax.commands import _kept_table, predict
from mlvicx_jax.data.source import open_dataset
from mlvicx_jax.evaluation import frozen
from mlvicx_jax.files import write_json
from mlvicx_jax.run.record import Run
from mlvicx_jax_datasets import radiograph


@pytest.fixture(scope='module')
def data(data_dir):
    config = tiny.get_config()
    return open_dataset('phantom_cxr', data_dir, None, {'size': config.data.stored_size, **config.data.options})


@pytest.fixture(scope='module')
def classifier(tmp_path_factory, data_dir, data):
    return make_workdir(tmp_path_factory.mktemp('classifier'), 'supervised', data_dir, data.label_names)


@pytest.fixture(scope='module')
def films(tmp_path_factory, data):
    """Seven films of the test split as PNG files, sorted as they are there."""
    folder, split = tmp_path_factory.mktemp('films'), data.splits['test']
    for i in range(7):
        image = radiograph.decode_image(split.source[split.records[i]]['image'], 'film')
        (folder / f'{i}.png').write_bytes(radiograph.encode_png(image))
    return folder


def rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def numbers(found, names):
    return np.array([[float(row[name]) for name in names] for row in found])


@pytest.fixture(scope='module')
def together(classifier, films, tmp_path_factory):
    """The rows of the seven films in batches of three."""
    out = tmp_path_factory.mktemp('together') / 'predictions.csv'
    assert predict.main(['--init', str(classifier), str(films), '--out', str(out), '--batch-size', '3']) == 0
    assert [path.name for path in out.parent.iterdir()] == ['predictions.csv']
    return rows(out)


def test_a_film_gets_the_score_that_evaluation_gave_it(classifier, films, together, data):
    loaded = Run.open(classifier).network()
    split = data.splits['test'].take(np.arange(7))
    logits = frozen.extract(
        loaded.method.network,
        loaded.variables,
        split,
        loaded.config.data.image_size,
        4,
        parallel.create_mesh(4),
        output='logits',
    )
    assert list(together[0]) == ['path', *data.label_names, 'error']
    assert [row['path'] for row in together] == [str(films / f'{i}.png') for i in range(7)]
    found = numbers(together, data.label_names)
    assert np.ptp(found, axis=0).max() > 1e-4  # the films differ
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    assert {row['error'] for row in together} == {''}


def test_a_film_alone_in_any_batch_gets_the_same(classifier, films, together, data, tmp_path):
    for size in ('3', '1', '64'):
        out = tmp_path / f'{size}.csv'
        assert (
            predict.main(
                ['--init', str(classifier), str(films / '4.png'), '--out', str(out), '--batch-size', size]
            )
            == 0
        )
        (alone,) = numbers(rows(out), data.label_names)
        expected = numbers(together, data.label_names)[4]
        if size == '3':
            np.testing.assert_array_equal(alone, expected)
        else:
            np.testing.assert_allclose(alone, expected, rtol=1e-5)


def test_every_batch_is_of_one_compiled_shape(classifier, films, monkeypatch):
    shapes = []
    scorer = predict.scorer

    def watched(*arguments):
        columns, score = scorer(*arguments)
        return columns, lambda images: shapes.append(images.shape) or score(images=images)

    monkeypatch.setattr(predict, 'scorer', watched)
    predict.predict(classifier, [films], None, batch_size=3)
    assert shapes == [(3, 96, 96, 1)] * 3


def test_the_same_picture_in_other_files_gets_the_same_score(classifier, films, together, data, tmp_path):
    """Inverted as MONOCHROME1, stretched over 16 bits, and larger: each pixel doubled."""
    image = radiograph.read_image(films / '2.png')
    image[0, :2] = 0, 255  # so that a stretch from least to greatest changes nothing
    (tmp_path / 'plain.png').write_bytes(radiograph.encode_png(image))
    dicoms.write(tmp_path / 'inverted', 255 - image, photometric='MONOCHROME1')
    cv2.imwrite(str(tmp_path / 'deep.png'), image.astype(np.uint16) * 257)
    (tmp_path / 'large.png').write_bytes(radiograph.encode_png(image.repeat(2, 0).repeat(2, 1)))
    names = 'plain.png', 'inverted', 'deep.png', 'large.png'
    out = tmp_path / 'out.csv'
    assert (
        predict.main(
            [
                '--init',
                str(classifier),
                *(str(tmp_path / name) for name in names),
                '--out',
                str(out),
                '--batch-size',
                '3',
            ]
        )
        == 0
    )
    found = numbers(rows(out), data.label_names)
    np.testing.assert_array_equal(found, found[:1].repeat(4, 0))
    assert np.abs(found[0] - numbers(together, data.label_names)[3]).max() > 1e-5


def test_bad_files_have_their_reason_and_the_rest_their_scores(
    classifier, films, together, data, tmp_path, capsys
):
    (tmp_path / 'notes.txt').write_text('no film')
    whole = (films / '1.png').read_bytes()
    (tmp_path / 'cut.png').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'empty.jpg').write_bytes(b'')
    out = tmp_path / 'out.csv'
    paths = [
        tmp_path / 'notes.txt',
        films / '0.png',
        tmp_path / 'cut.png',
        tmp_path / 'gone.png',
        tmp_path / 'empty.jpg',
        films / '1.png',
    ]
    assert (
        predict.main(['--init', str(classifier), *map(str, paths), '--out', str(out), '--batch-size', '3']) == 1
    )
    found = rows(out)
    assert [row['path'] for row in found] == list(map(str, paths))
    for row, reason in zip(found, ('none of PNG, JPEG, DICOM', '', 'truncated', 'does not exist', 'empty', '')):
        assert bool(row['error']) == bool(reason) and reason in row['error']
        if reason:
            assert {row[name] for name in data.label_names} == {''}
    np.testing.assert_array_equal(
        numbers([found[1], found[5]], data.label_names), numbers(together[:2], data.label_names)
    )
    said = capsys.readouterr().err
    assert said.count('not scored: ') == 4 and '4 of 6 images could not be read' in said


def test_only_bad_files_still_make_a_table(classifier, tmp_path, capsys):
    (tmp_path / 'a.png').write_bytes(b'')
    assert predict.main(['--init', str(classifier), str(tmp_path / 'a.png'), '--batch-size', '3']) == 1
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 and out[0].startswith('path,') and 'empty' in out[1]


def test_without_out_the_table_is_all_of_stdout(classifier, films, together, capsys):
    assert predict.main(['--init', str(classifier), str(films), '--batch-size', '3']) == 0
    assert list(csv.DictReader(capsys.readouterr().out.splitlines())) == together


def test_a_label_that_training_did_not_tell_apart_has_no_probability(classifier, films, data, tmp_path):
    workdir = shutil.copytree(classifier, tmp_path / 'run')
    results = json.loads((workdir / 'results.json').read_text())
    silent = data.label_names[1]
    write_json(workdir / 'results.json', results | {'labels_without_score': [silent]})
    out = tmp_path / 'predictions.csv'
    assert predict.main(['--init', str(workdir), str(films), '--out', str(out), '--batch-size', '3']) == 0
    for row in rows(out):
        assert row[silent] == '' and all(row[name] for name in data.label_names if name != silent)


def test_a_folder_without_images_and_a_folder_of_no_run_are_refused(classifier, films, tmp_path, capsys):
    (tmp_path / 'notes.txt').write_text('no film')
    out = tmp_path / 'out.csv'
    for arguments, said in (
        (['--init', str(classifier), str(tmp_path)], 'no image is there'),
        (['--init', str(tmp_path), str(films)], 'config.json'),
        (['--init', str(classifier), str(films), '--batch-size', '0'], '1 or more'),
    ):
        assert predict.main([*arguments, '--out', str(out)]) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']


def test_a_pretrained_encoder_has_embeddings_but_no_probabilities(films, data, data_dir, tmp_path, capsys):
    workdir = make_workdir(tmp_path, 'vicreg', data_dir)
    assert predict.main(['--init', str(workdir), str(films)]) == 2
    said = capsys.readouterr().err
    assert 'no classifier' in said and '--embeddings' in said and 'classify.py' in said
    loaded = Run.open(workdir).network()
    variables = {kind: tree['encoder'] for kind, tree in loaded.variables.items()}
    split, outputs = data.splits['test'].take(np.arange(7)), ('pooled', 'grid')
    passes = frozen.passes(loaded.method.encoder, variables, split, 80, 4, parallel.create_mesh(4), outputs)
    expected = [{name: found[name][found['mask']] for name in outputs} for found in passes]
    for name, option in (('pooled', ()), ('grid', ('--readout', 'grid'))):
        out = tmp_path / f'{name}.csv'
        arguments = ['--init', str(workdir), str(films), '--embeddings', *option, '--out', str(out)]
        assert predict.main([*arguments, '--batch-size', '4']) == 0
        features = np.concatenate([batch[name] for batch in expected])
        names = [f'e{i}' for i in range(features.shape[1])]
        assert list(rows(out)[0]) == ['path', *names, 'error']
        np.testing.assert_allclose(numbers(rows(out), names), features, rtol=1e-5, atol=1e-6)
    assert len(names) == 108 * 4


@pytest.fixture
def stopped(classifier, films, tmp_path, monkeypatch):
    """A folder of films, one of them bad, the table of them, and `stop(after)`: a call that is stopped."""
    folder = tmp_path / 'films'
    shutil.copytree(films, folder)
    (folder / 'b_bad.png').write_bytes(b'\x89PNG\r\n\x1a\nno more')
    straight = tmp_path / 'straight.csv'
    assert predict.predict(classifier, [folder], straight, batch_size=2) == 1
    out, scores, calls = tmp_path / 'out.csv', predict._scores, itertools.count()

    def stop(after):
        def stopping(*arguments):
            if next(calls) >= after:
                raise KeyboardInterrupt
            return scores(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(predict, '_scores', stopping)
            with pytest.raises(KeyboardInterrupt):
                predict.predict(classifier, [folder], out, batch_size=2)
        (partial,) = tmp_path.glob('out.csv.*.partial')
        return partial

    return folder, straight, out, stop


def test_a_stopped_table_goes_on_to_the_same_one(classifier, stopped, capsys):
    folder, straight, out, stop = stopped
    out.write_text('the old one')
    partial = stop(after=2)
    assert out.read_text() == 'the old one' and len(partial.read_text().splitlines()) == 1 + 4
    with partial.open('a') as file:
        file.write('films/cut sho')  # what a kill leaves of a row
    capsys.readouterr()
    assert predict.predict(classifier, [folder], out, batch_size=2) == 1
    assert '4 of' in capsys.readouterr().err
    assert out.read_bytes() == straight.read_bytes() and not partial.exists()


@pytest.mark.parametrize('change', ['a film', 'another network', 'a row'])
def test_rows_that_are_not_of_these_films_and_this_network_are_made_again(classifier, stopped, change):
    folder, straight, out, stop = stopped
    partial = stop(after=2)
    rows = partial.read_text().splitlines(keepends=True)
    if change == 'a film':
        film = sorted(folder.iterdir())[0]
        os.utime(film, (time.time() + 10, time.time() + 10))
        rows[1] = rows[1].replace(',0.', ',9.')
    elif change == 'another network':
        rows[1:] = [row.replace(',0.', ',9.') for row in rows[1:]]
        partial = partial.rename(partial.with_name('out.csv.01234567.partial'))
    else:
        rows[1] = 'elsewhere/' + rows[1].replace(',0.', ',9.')
    partial.write_text(''.join(rows))
    predict.predict(classifier, [folder], out, batch_size=2)
    assert out.read_bytes() == straight.read_bytes() and not list(out.parent.glob('*.partial'))


def test_a_start_that_dies_while_it_takes_over_the_rows_of_before_loses_none(tmp_path, monkeypatch):
    film = tmp_path / 'film.png'
    film.touch()
    arguments = tmp_path / 'out.csv', ['path', 'error'], [str(film)], ['film.png'], 'hash'

    def die(*_, **__):
        raise KeyboardInterrupt

    def start(rows, then):
        with _kept_table.opened(*arguments) as table:
            kept = list(table.kept)
            table.write(rows)
            then()
        return kept

    with pytest.raises(KeyboardInterrupt):
        start([['film.png', '']], die)
    for module, function in ((_kept_table.csv, 'writer'), (os, 'replace')):
        with monkeypatch.context() as patched:
            patched.setattr(module, function, die)
            with pytest.raises(KeyboardInterrupt):
                start([], print)
    assert start([], print) == [['film.png', '']]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['film.png', 'out.csv']
