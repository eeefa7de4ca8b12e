"""A run's page: the right numbers in the right places, and nothing that it would have to fetch."""

import base64
import collections
import html.parser
import json
import pathlib
import re
import shutil
import subprocess
import xml.etree.ElementTree

import cv2
import numpy as np
import pytest

from mlvicx_jax import files
from mlvicx_jax.commands import report as command
from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation.metrics import auroc
from mlvicx_jax.files import write_json
from mlvicx_jax.grid.cell import Cell, write_cell
from mlvicx_jax.report import figures
from mlvicx_jax.run.record import Run

CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None
)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason='no Chromium is installed')

SET = 'nih-frozen-0.1-ap'  # a legal name of a set, in which set, protocol and share seem to stand
FINDINGS = ('Nodule', 'Cardiomegaly', 'Hernia')  # Hernia: no positive in the test split
LABELS = (*FINDINGS, 'No Finding')
HASHES = {'data/train_hash': '1a' * 32, 'data/validation_hash': '2b' * 32, 'data/test_hash': '3c' * 32}


def write_config(folder, task, share=0.01, **more):
    config = {
        'task': task,
        'seed': 7,
        'init': '/runs/mlvicx',
        'batch_size': 32,
        'method': {'name': {'pretrain': 'mlvicx', 'classify': 'supervised', 'segment': 'unet'}[task]},
        'model': {'context': True, 'width': 16},
        'eval': {'split': 'test'},
        'data': {
            'name': 'phantom_cxr',
            'stored_size': 128,
            'image_size': 96,
            'options': {'patients': 25},
            'labelled': {'share': share, 'stratified': True, 'by_patient': False},
        },
    } | more
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / 'config.json', config)


def write_lines(folder, lines):
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def write_goodput(folder):
    write_json(
        folder / 'goodput.json',
        {'seconds': {'training': 90.0, 'start': 10.0}, 'starts': 2, 'saved': {}, 'time': 0.0},
    )


def pretraining(folder):
    write_config(folder, 'pretrain')
    write_goodput(folder)
    write_lines(
        folder,
        [
            {
                'step': 0,
                'probe/auroc_init': 0.511,
                'knn/auroc_init': 0.512,
                'probe/auroc_init_uncalibrated': 0.613,
                'probe/auroc_pixels': 0.605,
                'knn/auroc_pixels': 0.606,
                'knn/auroc_init_uncalibrated': 0.614,
            },
            *(
                {
                    'step': step,
                    'train/loss': 44 - step / 100,
                    'train/std/global': 0.3,
                    'train/std/multi_level': 0.4,
                    'train/rankme/global': step / 10,
                    'train/level/floor': 21.5,
                    'train/level/share_nothing': 43.7,
                }
                for step in range(10, 210, 10)
            ),
            {'step': 200, 'probe/auroc': 0.715, 'knn/auroc': 0.616},
        ],
    )
    write_json(
        folder / 'results.json',
        {
            'step': 200,
            'eval/split': 'test',
            'data/eval_hash': HASHES['data/test_hash'],
            'data/train_hash': HASHES['data/train_hash'],
            'device': '1 x cpu',
            'version': '0.1.0',
            'probe/auroc': 0.715,
            'knn/auroc': 0.616,
            'probe/auroc_init': 0.511,
            'knn/auroc_init': 0.512,
            'probe/auroc_init_uncalibrated': 0.613,
            'probe/auroc_pixels': 0.605,
            'knn/auroc_pixels': 0.606,
            'line_to_beat': 'initial, uncalibrated',
            'probe/gain': 0.102,
            'probe/gain_low': 0.087,
            'probe/gain_high': 0.117,
            'knn/auroc_init_uncalibrated': 0.614,
            'probe/auroc/Nodule': 0.717,
            'probe/auroc/Hernia': None,
            'images_per_second': 59.2,
        },
    )
    return folder


def classification(
    folder, labels=LABELS, heads=('linear', 'lbfgs', 'knn'), n=120, seed=0, share=0.01, init='/runs/mlvicx'
):
    """A frozen classification; its AUROCs are those of its predictions, its other numbers are told
    apart by their digits: 0.<head><measure><label>."""
    write_config(folder, 'classify', share=share, protocol='frozen', init=init, seed=seed)
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, len(labels))) < 0.4).astype(np.uint8)
    if 'Hernia' in labels:
        truth[:, labels.index('Hernia')] = 0
    arrays = {'label_names': np.array(labels)}
    test = {}
    for h, head in enumerate(heads, 1):
        scores = 1 / (1 + np.exp(-(truth - 0.5 + rng.normal(0, 1 + h / 4, truth.shape))))
        areas = auroc(truth, scores)
        numbers = {name: (None if np.isnan(area) else float(area)) for name, area in zip(labels, areas)}
        test[head] = {
            'auroc': numbers,
            'not_available': [name for name, area in numbers.items() if area is None],
            'few': {'Nodule': '4 positive patients'},
            'no_interval': {'Hernia': 'one class only, or no score'},
        }
        for m, measure in enumerate(('auprc', 'f1', 'accuracy', 'calibration_error'), 1):
            test[head][measure] = {
                name: None if numbers[name] is None else float(f'0.{h}{m}{k}') for k, name in enumerate(labels)
            }
        for measure in ('auroc', 'auprc'):
            test[head][f'{measure}_interval'] = {
                name: [None, None] if value is None else [value - 0.05, min(1, value + 0.05)]
                for name, value in test[head][measure].items()
            }
        findings = [name for name in labels if name != 'No Finding']
        means = {
            f'mean{len(some)}': float(np.mean([numbers[name] for name in some if numbers[name] is not None]))
            for some in (findings, labels)
        }
        test[head] |= {
            'means': means,
            'means_interval': {mean: [value - 0.03, value + 0.03] for mean, value in means.items()},
        }
        arrays |= {f'{split}_{head}': scores for split in ('validation', 'test')}
    for split in ('validation', 'test'):
        arrays |= {
            f'{split}_image_ids': np.array([f'{i:04}.png' for i in range(n)]),
            f'{split}_patient_ids': np.array([f'p{i // 2}' for i in range(n)]),
            f'{split}_labels': truth,
        }
    np.savez(folder / 'predictions.npz', **arrays)
    write_lines(
        folder,
        [
            {'step': step, 'train/loss': 1 / step, 'validation/auroc': value}
            for step, value in zip((10, 20, 30), (0.6, 0.76, 0.7))
        ],
    )
    write_goodput(folder)
    write_json(
        folder / 'results.json',
        {
            'task': 'classify',
            'protocol': 'frozen',
            'dataset': 'phantom_cxr',
            'share': share,
            'labelled_images': 14,
            'labelled_hash': '5a' * 32,
            'seed': seed,
            'init': init,
            'init_proof': {'tensors': 82, 'sha256': 'c0' * 32} if init else None,
            'context': True,
            'step': 20,
            'device': '1 x cpu',
            'version': '0.1.0',
            'validation/auroc': 0.76,
            'primary': heads[0],
            'label_names': list(labels),
            'test': test,
            **HASHES,
        },
    )
    return folder


def discs(m, size, shift):
    y, x = np.mgrid[:size, :size]
    return np.stack(
        [
            [(y - size / 2) ** 2 + (x - size / 2 - shift - 4 * k) ** 2 < (8 + 4 * i) ** 2 for k in range(2)]
            for i in range(m)
        ]
    ).transpose(0, 2, 3, 1)


def segmentation(folder, m=5, size=96, n=40, seed=0):
    write_config(folder, 'segment', 0.1, protocol='finetune', seed=seed)
    rng = np.random.default_rng(seed)
    has = np.ones((n, 2), bool)
    has[20:, 1] = False
    has[0, 1] = False
    dice = rng.beta(8, 2, (n, 2))
    dice[0, 0] = 0.123
    ids = np.array([f'film {i}' for i in range(n)])
    truth = discs(m, size, 0)
    truth[0, ..., 1] = False
    films = rng.integers(60, 120, (m, size, size)).astype(np.uint8)
    np.savez(
        folder / 'predictions.npz',
        structures=np.array(['lungs', 'heart']),
        test_image_ids=ids,
        test_patient_ids=ids,
        test_dice=dice,
        test_iou=dice / 2,
        test_has=has,
        sample_image_ids=ids[:m],
        sample_images=films,
        sample_truth=truth,
        sample_predicted=discs(m, size, 5),
    )
    test = {
        name: {
            key: float(f'0.{8 + k}{j}')
            for j, key in enumerate(('dice_positives', 'dice_all', 'iou_positives', 'iou_all'), 1)
        }
        | {'positives': (40, 19)[k], 'patients': (20, 9)[k]}
        for k, name in enumerate(('lungs', 'heart'))
    }
    test['lungs']['dice_positives_interval'] = [0.777, 0.888]
    test['heart']['dice_positives_interval'] = None
    write_lines(
        folder,
        [
            {'step': step, 'train/loss': 1 / step, 'validation/dice': value}
            for step, value in zip((10, 20, 30), (0.5, 0.8, 0.7))
        ],
    )
    write_json(
        folder / 'results.json',
        {
            'task': 'segment',
            'protocol': 'finetune',
            'dataset': 'phantom_cxr',
            'share': 0.1,
            'labelled_images': 14,
            'labelled_hash': '5a' * 32,
            'seed': seed,
            'init': '',
            'init_proof': None,
            'context': True,
            'step': 20,
            'device': '1 x cpu',
            'version': '0.1.0',
            'validation/dice': 0.8,
            'test': test,
            **HASHES,
        },
    )
    return folder


def grid(folder):
    for init in ('', '/runs/mlvicx'):
        for share in (0.01, 0.1, 1.0):
            for seed in range(3):
                method = pathlib.Path(init).name or 'random'
                run = folder / 'runs' / f'{SET}-frozen-{share:g}-{method}-seed{seed}'
                classification(run, heads=('linear',), share=share, init=init, seed=seed)
                write_cell(run, Cell(SET, 'classify', 'frozen', share, method, seed, seed))
    masks = segmentation(folder / 'runs' / 'masks-finetune-0.1-random-seed0')
    write_cell(masks, Cell('masks', 'segment', 'finetune', 0.1, 'random', 0, 0))
    pending = folder / 'runs' / f'{SET}-frozen-1-mlvicx-seed3'
    shutil.copytree(run, pending)
    pretraining(folder / 'pretrained' / 'mlvicx_0')
    (pending / 'results.json').unlink()
    (folder / 'tables').mkdir()
    (folder / 'tables' / 'table1.md').write_text(
        '# Table I: classes\n\n- Mean over seeds.\n\n## phantom, frozen\n\n'
        '| method | a \\| b | Mean  |\n| ------ | ----- | ----: |\n| random | 0.613 | 0.62  |\n'
        '\n## Sets\n\n| set | images |\n| --- | --- |\n| phantom | 3c3c |\n'
    )
    return folder


class Page(html.parser.HTMLParser):
    """What a reader meets: tables by their columns, facts, paragraphs, pictures, headings."""

    VOID = {'meta', 'img', 'br'}

    def __init__(self, path):
        super().__init__()
        self.html = path.read_text()
        self.open, self.tags, self.tables, self.facts = [], [], [], {}
        self.texts = collections.defaultdict(list)
        self.feed(self.html)
        self.close()
        assert not self.open, self.open
        self.images = [attributes for tag, attributes in self.tags if tag == 'img']

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in self.VOID:
            return
        self.open.append(tag)
        if tag == 'table':
            self.tables.append([])
        elif tag == 'tr':
            self.tables[-1].append([])
        elif tag in ('td', 'th'):
            self.tables[-1][-1].append('')

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if (
            tag == 'table'
            and len(self.tables[-1][0]) == 2
            and not any(cell in ('share', 'AUROC') for cell in self.tables[-1][0])
        ):
            self.facts |= dict(self.tables[-1])

    def handle_data(self, data):
        if self.open and self.open[-1] in ('td', 'th'):
            self.tables[-1][-1][-1] += data
        elif data.strip() and self.open:
            self.texts[self.open[-1]].append(data)

    def table(self, *columns):
        """{row: {column: cell}} of the table that has these columns."""
        (rows,) = (rows for rows in self.tables if set(columns) <= set(rows[0]))
        return {row[0]: dict(zip(rows[0], row)) for row in rows[1:]}


def report(folder):
    command.main([str(folder)])
    return Page(folder / 'report.html')


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    """{kind: (folder, Page)}, and a page of NIH's size with large pictures."""
    root = tmp_path_factory.mktemp('runs')
    made = {
        make.__name__: make(root / make.__name__) for make in (pretraining, classification, segmentation, grid)
    }
    large = classification(root / 'large', [f'label {i}' for i in range(15)], ('classifier',), 8000)
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    (large / 'heatmaps').mkdir()
    cv2.imwrite(str(large / 'heatmaps' / 'heatmaps.png'), cv2.GaussianBlur(noise, (0, 0), 2))
    films = {'films': 12, 'patients': 9} | {
        measure: {
            f'{key}{end}': value
            for key, value in (
                ('value', 0.75),
                ('chance', 0.11),
                ('above_chance', 0.64),
                ('above_other_films', 0.5),
            )
            for end, value in (('', value), ('_interval', [value - 0.01, value + 0.02]))
        }
        for measure in ('pointing', 'iou', 'energy')
    }
    write_json(
        large / 'heatmaps' / 'heatmaps.json',
        {
            'dataset': 'phantom_cxr',
            'split': 'test',
            'level': 'stage4',
            'runs': [{'name': 'mine', 'localisation': {'Nodule': films, 'Mass': None}}],
        },
    )
    made['large'] = large
    return {kind: (folder, report(folder)) for kind, folder in made.items()}


def test_the_class_table_has_each_number_of_the_primary_head_in_its_column(pages):
    folder, found = pages['classification']
    table = found.table('class', 'positives')
    test = Run.open(folder).results['test']['linear']
    truth = Run.open(folder).predictions['test_labels']
    assert list(table) == [
        *LABELS,
        'mean3: 2 of 3 findings, mean',
        'mean4: 3 of 4 labels with No Finding, mean',
    ]
    for i, name in enumerate(LABELS):
        if name == 'Hernia':
            assert set(table[name].values()) == {'Hernia', '0 of 120', 'n/a'}
            continue
        area, row = test['auroc'][name], table[name]
        assert row == {
            'class': name,
            'positives': f'{truth[:, i].sum()} of 120',
            'AUROC': f'{area:.3f} [{area - 0.05:.3f}, {area + 0.05:.3f}]',
            'AUPRC': f'0.11{i} [0.06{i}, 0.16{i}]',
            'F1': f'0.12{i}',
            'accuracy': f'0.13{i}',
            'calibration error': f'0.14{i}',
        }
    mean = np.mean([test['auroc'][name] for name in ('Nodule', 'Cardiomegaly')])
    said = f'{mean:.3f} [{mean - 0.03:.3f}, {mean + 0.03:.3f}]'
    assert table['mean3: 2 of 3 findings, mean']['AUROC'] == said
    lead = found.texts['p'][0]
    assert said in lead and 'Test split of phantom_cxr (120 images of 60 patients)' in lead
    assert '95 % interval over patients' in lead
    assert 'Few test patients: Nodule (4 positive patients)' in found.html
    assert 'No interval: Hernia (one class only, or no score)' in found.html


def test_every_head_has_its_own_column(pages):
    folder, found = pages['classification']
    table = found.table('class', 'kNN')
    for column, head in (('linear layer', 'linear'), ('kNN', 'knn'), ('logistic regression (L-BFGS)', 'lbfgs')):
        area = Run.open(folder).results['test'][head]['auroc']['Nodule']
        assert table['Nodule'][column].startswith(f'{area:.3f} [')
        assert table['Hernia'][column] == 'n/a'


def test_what_was_run_is_what_a_citation_needs(pages):
    facts = pages['classification'][1].facts
    assert facts['protocol'] == 'frozen encoder' and facts['seed'] == '0'
    assert facts['data set'] == 'phantom_cxr, stored at 128 px, seen at 96 px (patients 25)'
    assert facts['train split'].endswith('1a' * 32)
    assert facts['validation split'].endswith('2b' * 32)
    assert facts['test split'] == f'120 images of 60 patients; SHA-256 of the image ids {"3c" * 32}'
    assert facts['label fraction'] == (
        f'1 % of the training labels, 14 images, drawn stratified; SHA-256 of their ids {"5a" * 32}'
    )
    assert facts['initial encoder'] == ('mlvicx; 82 tensors loaded and checked, SHA-256 ' + 'c0' * 32)
    assert facts['checkpoint'] == 'step 20, chosen on the validation split'
    assert pages['segmentation'][1].facts['initial encoder'] == 'random weights'
    assert pages['segmentation'][1].facts['checkpoint'].startswith('step 20, chosen')


def test_a_pretraining_shows_its_probes_beside_the_initial_encoder_and_its_curves(pages):
    _, found = pages['pretraining']
    table = found.table('trained', 'initial, calibrated')
    assert list(table['linear probe'].values())[1:] == ['0.715', '0.511', '0.613', '0.605']
    lead = 'the line to beat, initial, uncalibrated: 0.613; gain over it 0.102 [0.087, 0.117]'
    assert lead in ' '.join(re.sub('<[^>]+>', '', found.html).replace('&nbsp;', ' ').split())
    assert list(table['kNN'].values())[1:] == ['0.616', '0.512', '0.614', '0.606']
    assert found.table('finding', 'AUROC')['Hernia']['AUROC'] == 'n/a'
    alt = found.images[0]['alt']
    for said in (
        'Loss, training: 43.9 at step 10, 42 at step 200',
        'floor at 21.5',
        'views that share nothing at 43.7',
        'multi_level: 0.4 at step 10',
        'Rank of the embeddings, global: 1 at step 10, 20 at step 200',
        'initial, uncalibrated at 0.613',
    ):
        assert said in alt
    assert found.table('phase', 'share')['training']['share'] == '90.0%'
    assert any(item.startswith('sample views') for item in found.texts['li'])


def test_the_validation_curve_says_which_step_was_chosen(pages):
    (alt,) = (image['alt'] for image in pages['classification'][1].images if 'Validation' in image['alt'])
    assert 'Validation mean AUROC, validation: 0.6 at step 10, 0.7 at step 30, best 0.76' in alt


def test_the_table_of_a_segmentation_and_the_dice_below_each_outline(pages):
    folder, found = pages['segmentation']
    table = found.table('structure', 'Dice, positives')
    assert list(table['lungs'].values()) == [
        'lungs',
        '40 of 40',
        '20',
        '0.810 [0.777, 0.888]',
        '0.820 [n/a]',
        '0.830 [n/a]',
        '0.840 [n/a]',
    ]
    assert list(table['heart'].values())[:4] == ['heart', '19 of 40', '9', '0.910 [n/a]']
    alt = found.images[0]['alt']
    assert 'film 0: lungs Dice 0.123, heart Dice' in alt and '(none in truth); film 1' in alt
    dice = Run.open(folder).predictions['test_dice'][1:20, 1]
    assert f'heart: median {np.median(dice):.3f}' in found.images[1]['alt']
    assert 'over 19 images' in found.images[1]['alt']


def test_outlines_lie_where_the_masks_are(monkeypatch):
    sheets = []
    monkeypatch.setattr(figures, 'jpeg', lambda figure: sheets.append(figure))
    truth, predicted = np.zeros((2, 1, 32, 32, 1), bool)
    truth[0, 4:12, 16:30], predicted[0, 20:32, 0:10] = True, True  # one of them at the edge
    figures.outlines(np.zeros((1, 32, 32), np.uint8), truth, predicted, ['a'], ['lungs'], [['']])
    drawn = [
        collection.get_paths()[0].get_extents().extents.tolist() for collection in sheets[0].axes[1].collections
    ]
    # Between pixels, whose middles have whole numbers.
    assert drawn == [[15.5, 3.5, 29.5, 11.5], [-0.5, 19.5, 9.5, 31.5]]


def test_a_grid_shows_means_over_seeds_the_tables_and_what_is_not_done(pages):
    folder, found = pages['grid']
    alt = found.images[0]['alt']
    runs = [Run.open(folder / 'runs' / f'{SET}-frozen-0.1-random-seed{i}') for i in range(3)]
    values = [run.results['test']['linear']['means']['mean3'] for run in runs]
    line = re.search(r'random, frozen encoder: ([^;]*)', alt).group(1)
    assert f'{np.mean(values):.3f} at 10 %' in line
    assert line.index('at 1 %') < line.index('at 100 %')
    assert found.table('method', 'a | b')['random'] == {'method': 'random', 'a | b': '0.613', 'Mean': '0.62'}
    assert 'Table I: classes' in found.texts['h2'] and 'Mean over seeds.' in found.texts['p']
    assert 'phantom, frozen' in found.texts['p'] and found.table('set', 'images')
    table = found.table('run', 'result')
    assert len(table) == 21 and table['pretrained/mlvicx_0']['result'] == 'step 200'
    assert table[f'runs/{SET}-frozen-1-mlvicx-seed3']['result'] == 'not ended, step 30'
    segmented = table['runs/masks-finetune-0.1-random-seed0']
    assert '0.810 [0.777, 0.888]' in segmented.pop('result')
    assert list(segmented.values())[1:] == ['segment', 'masks', 'random', 'finetune', '10 %', '0']
    first = table[f'runs/{SET}-frozen-0.1-random-seed0']
    assert (first['set'], first['method']) == (SET, 'random')
    assert first['result'].startswith(f'{values[0]:.3f} [')
    assert f'AUROC against labels: {SET}' in found.texts['h2']


def test_runs_that_are_asked_other_questions_are_no_one_line(tmp_path):
    for i, question in enumerate(('Nodule', 'Cardiomegaly')):
        run = classification(tmp_path / 'runs' / str(i), (question,), ('linear',), seed=i)
        config = Run.open(run).config
        config['data'] |= {'questions': [question], 'within': 'Edema'}
        write_json(run / 'config.json', config)
    titles = report(tmp_path).texts['h2']
    assert {
        'AUROC against labels: phantom_cxr (Nodule within Edema)',
        'AUROC against labels: phantom_cxr (Cardiomegaly within Edema)',
    } <= set(titles)


def test_intervals_of_a_grid_are_over_seeds_or_over_patients_of_a_single_one(monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(figures, 'against_share', lambda panels, *_: drawn.update(panels) or 'data:,')
    for share, seeds in ((0.01, (0,)), (0.1, (0, 1)), (1.0, (0, 1, 2))):
        for seed in seeds:
            classification(tmp_path / 'runs' / f'{share}-{seed}', heads=('linear',), share=share, seed=seed)
    report(tmp_path)
    ((points,),) = (lines.values() for lines in drawn.values())
    one, two, three = sorted(points)
    assert one[2:4] == pytest.approx((one[1] - 0.03, one[1] + 0.03))
    assert np.isnan(two[2:4]).all() and len(two[4]) == 2
    half = 4.302653 * np.std(three[4], ddof=1) / 3**0.5  # t of 2 degrees of freedom
    assert three[1:4] == pytest.approx((np.mean(three[4]), three[1] - half, three[1] + half))


@pytest.mark.parametrize('kind', ['pretraining', 'classification', 'segmentation', 'grid', 'large'])
def test_a_page_needs_nothing_but_itself_and_is_told_to_who_does_not_see_it(pages, kind):
    _folder, found = pages[kind]
    assert len(found.html) < 2e6 and 'http' not in re.sub(r'http-equiv="Content', '', found.html)
    assert not {tag for tag, _ in found.tags} & {'script', 'link', 'iframe', 'object', 'base', 'a'}
    assert 'url(' not in found.html and '@import' not in found.html
    for image in found.images:
        assert len(image['alt']) > 20
        start, data = image['src'].split(';base64,')
        data = base64.b64decode(data, validate=True)
        if start == 'data:image/svg+xml':
            drawing = xml.etree.ElementTree.fromstring(data)
            assert not [
                value
                for element in drawing.iter()
                for name, value in element.items()
                if name.endswith('href') and not value.startswith('#')
            ]
        else:
            assert start in ('data:image/png', 'data:image/jpeg')
            assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch('h[1-6]', tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and set(levels) == {1, 2}
    assert [attributes['lang'] for tag, attributes in found.tags if tag == 'html'] == ['en']
    assert all(attributes.get('scope') in ('row', 'col') for tag, attributes in found.tags if tag == 'th')
    ids = [attributes['id'] for _, attributes in found.tags if 'id' in attributes]
    assert len(ids) == len(set(ids))
    assert {
        attributes['aria-labelledby'] for _, attributes in found.tags if 'aria-labelledby' in attributes
    } == set(ids)


def test_large_sheets_are_embedded_small_and_boxes_are_told(pages):
    _, found = pages['large']
    (image,) = (image for image in found.images if 'heatmaps' in image['alt'])
    assert image['src'].startswith('data:image/jpeg')
    row = found.table('measure', 'minus chance')['mine']
    assert (row['finding'], row['films']) == ('Nodule', '12')
    assert row['minus chance'] == '0.640 [0.630, 0.660]'


def test_a_run_that_goes_on_says_so_and_shows_what_there_is(tmp_path):
    for make in (pretraining, classification, segmentation):
        folder = make(tmp_path / make.__name__)
        for name in ('results.json', 'predictions.npz', 'goodput.json'):
            (folder / name).unlink(missing_ok=True)
        found = report(folder)
        assert 'has not ended' in found.texts['p'][0] and len(found.images) == 1
        assert found.facts['checkpoint'].startswith('not ended; logged up to')
        assert 'Test results' not in found.texts['h2']
    write_config(tmp_path / 'bare', 'pretrain')
    found = report(tmp_path / 'bare')
    assert not found.images and 'curves: metrics.jsonl holds no step yet' in found.texts['li']


def test_results_without_predictions_have_the_table_and_name_what_is_missing(tmp_path):
    for make, name in ((classification, 'ROC curves'), (segmentation, 'distribution of Dice')):
        folder = make(tmp_path / make.__name__)
        (folder / 'predictions.npz').unlink()
        found = report(folder)
        assert 'Test results' in found.texts['h2'] and len(found.tables) >= 3
        assert any(item.startswith(name) for item in found.texts['li'])


def test_predictions_of_another_run_are_noticed(tmp_path):
    folder, other = classification(tmp_path / 'a'), classification(tmp_path / 'b', seed=1)
    assert 'not of one run' not in report(folder).html
    shutil.copy(other / 'predictions.npz', folder)
    assert 'not of one run' in report(folder).html


DAMAGE = {
    'no folder': (None, 'no run is there'),
    'config.json': (b'{"seed": ', 'config.json: can not be read'),
    'config.json ': (b'{"seed": 1, "data": 3}', 'a section is no object'),
    'config.json  ': (b'{"seed": 1, "init": ""}', 'config.json: eval, method'),
    'results.json': (b'[1, 2]', 'results.json: holds a list'),
    'predictions.npz': (b'PK', 'predictions.npz: can not be read'),
    'heatmaps/a.png': (b'', 'a.png: is no image'),
    'heatmaps/heatmaps.json': (b'{"runs": 3}', 'heatmaps.json: is not what'),
}


@pytest.mark.parametrize('name', DAMAGE)
def test_a_damaged_file_is_named_in_one_line(tmp_path, name, capsys):
    content, said = DAMAGE[name]
    folder = tmp_path / 'run'
    if content is not None:
        classification(folder)
        (folder / 'heatmaps').mkdir()
        cv2.imwrite(str(folder / 'heatmaps' / 'b.png'), np.zeros((8, 8), np.uint8))
        (folder / name.strip()).write_bytes(content)
    capsys.readouterr()
    assert command.main([str(folder)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith('error: ') and said in line
    assert not (folder / 'report.html').exists()


@pytest.mark.parametrize(
    'change,said',
    [
        (lambda results: results.pop('primary'), 'primary is missing'),
        (lambda results: results.update(primary='other'), 'test.other, which "primary" names'),
        (
            lambda results: results['test']['linear']['f1'].update(Nodule='0.9'),
            "test.linear.f1.Nodule is '0.9'",
        ),
    ],
)
def test_results_that_say_no_numbers_are_refused(tmp_path, change, said):
    folder = classification(tmp_path)
    results = json.loads((folder / 'results.json').read_text())
    change(results)
    write_json(folder / 'results.json', results)
    with pytest.raises(UserError, match=re.escape(said)):
        _ = Run.open(folder).results


def test_names_are_text_wherever_they_stand(tmp_path):
    evil, mathematics = '<script>alert(1)</script>"\'>', '$x_$ & \\frac{'
    folder = classification(tmp_path / evil.replace('/', '_'), (evil, mathematics, 'Mass'))
    config = Run.open(folder).config
    config['data']['name'] = config['method']['name'] = evil
    write_json(folder / 'config.json', config)
    found = report(folder)
    assert '<script' not in found.html and 'alert(1)' in found.html
    assert {evil, mathematics} <= set(found.table('class', 'positives'))


def test_the_same_run_gives_the_same_bytes_and_a_failed_write_leaves_the_old_page(
    tmp_path, monkeypatch, capsys
):
    folder = classification(tmp_path / 'run')
    out = tmp_path / 'out' / 'page.html'
    command.main([str(folder), '--out', str(out)])
    first = out.read_bytes()
    command.main([str(folder), '--out', str(out)])
    assert out.read_bytes() == first

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files.os, 'replace', full)
    assert command.main([str(folder), '--out', str(out)]) == 2
    assert 'can not be written (No space left' in capsys.readouterr().err
    assert out.read_bytes() == first


def test_a_thinned_roc_curve_keeps_its_area():
    rng = np.random.default_rng(0)
    label = rng.random(20_000) < 0.1
    score = rng.normal(size=20_000) + label
    fpr, tpr, _ = figures.roc_curve(label, score)
    x, y = figures._thinned(fpr, tpr)
    assert len(fpr) > 2000 and len(x) == 400
    assert np.trapezoid(y, x) == pytest.approx(auroc(label[:, None], score[:, None])[0], abs=1e-3)


def browse(path, folder):
    """What Chromium's console said of a page, what the page asked the network for, its PDF."""
    log, pdf = folder / 'net.json', folder / 'page.pdf'
    done = subprocess.run(
        [
            CHROMIUM,
            '--headless',
            '--no-sandbox',
            '--disable-gpu',
            '--enable-logging=stderr',
            f'--user-data-dir={folder / "profile"}',
            '--host-resolver-rules=MAP * ~NOTFOUND',
            f'--log-net-log={log}',
            f'--print-to-pdf={pdf}',
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    console = [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
    # Chromium's own requests (its updates, its clock) begin from no page.
    asked = {
        found['url']
        for event in json.loads(log.read_text())['events']
        if 'url' in (found := event.get('params', {}))
        and found.get('initiator', 'not an origin') != 'not an origin'
    }
    return console, asked, pdf.read_bytes()


@needs_chromium
@pytest.mark.parametrize('kind', ['pretraining', 'large'])
def test_chromium_shows_and_prints_a_page_without_a_complaint_or_a_request(pages, kind, tmp_path):
    folder, _ = pages[kind]
    console, asked, pdf = browse(folder / 'report.html', tmp_path)
    assert not console and not asked
    assert 1 <= len(re.findall(rb'/Type */Page\b', pdf)) <= 8


@needs_chromium
@pytest.mark.parametrize('guarded', [True, False])
def test_chromium_would_have_told_of_a_picture_from_elsewhere(pages, guarded, tmp_path):
    address = 'http://example.org/a.png'
    html = pages['pretraining'][1].html.replace('</main>', f'<img src="{address}"></main>')
    if not guarded:
        html = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', '', html)
    (tmp_path / 'page.html').write_text(html)
    console, asked, _ = browse(tmp_path / 'page.html', tmp_path)
    assert (len(console), asked) == ((1, set()) if guarded else (0, {address}))


@pytest.mark.parametrize('make', [pretraining, classification, segmentation])
def test_a_page_holds_no_path_of_the_machine_and_no_patient(make, tmp_path):
    folder = make(tmp_path / 'run')
    config = json.loads((folder / 'config.json').read_text())
    config['init'] = '/mnt/secret/encoder'
    config['data'] |= {
        'data_dir': '/mnt/secret/data',
        'manual_dir': '~/secret/raw',
        'options': {'lists': 'C:\\secret\\lists', 'patients': 25},
    }
    write_json(folder / 'config.json', config)
    if (folder / 'predictions.npz').exists():
        with np.load(folder / 'predictions.npz') as file:
            arrays = dict(file)
        patients = np.array([f'secret{i}' for i in range(len(arrays['test_patient_ids']))])
        np.savez(folder / 'predictions.npz', **arrays | {'test_patient_ids': patients})
        results = json.loads((folder / 'results.json').read_text())
        write_json(folder / 'results.json', results | {'init': '/mnt/secret/encoder'})
    html = report(folder).html
    assert 'secret' not in html and str(tmp_path) not in html
    assert 'report of run' in html and 'encoder' in html and 'lists' in html
