"""The tables against numbers worked out by hand, the paper's own, and runs not to be mixed."""

import csv
import io
import math
import re

import numpy as np
import pytest
from fabricated import write_run

from mlvicx_jax.errors import UserError
from mlvicx_jax.grid import formats, paper, reading, tables
from mlvicx_jax.grid.cell import Cell
from mlvicx_jax.grid.tables import Number

OFFICIAL = '38ca5ef7f756092946f57c1a59faca882ed589a1ab1f72590b45dc06c6d5e1cc'
FINDINGS = tuple(sorted(set(paper.PAPER['table1']['values']['1.0']['mlvicx']) - {'Mean'}))
ABLATION = {'multi_level_only': 'multi', 'global_only': 'single', 'both': 'mlvicx'}
# Seeds 0, 1, 2. mlvicx: mean 0.8, deviations -0.1, 0, 0.1, so std 0.1; random: 0.6, 0.6, 0.7.
VALUES = {'random': (0.6, 0.6, 0.7), 'mlvicx': (0.7, 0.8, 0.9)}


def cells_of(
    task='classify',
    methods=('random', 'mlvicx'),
    seeds=(0, 1, 2),
    set_name='films',
    protocols=('frozen',),
    shares=(0.1,),
):
    return [
        Cell(set_name, task, protocol, share, method, seed, seed)
        for seed in seeds
        for protocol in protocols
        for share in shares
        for method in methods
    ]


def run_all(folder, cells, values=lambda cell: [VALUES[cell.method][cell.seed]] * 3, **given):
    return {cell: write_run(folder / str(i), cell, values(cell), **given) for i, cell in enumerate(cells)}


def fill(cells, runs, reference='mlvicx'):
    return {table.name: table for table in tables.fill(cells, runs, reference, ABLATION)}


def place(table, row, column, block=0) -> Number:
    return table.blocks[block].numbers[row, column]


def rows_of(table):
    return list(csv.DictReader(io.StringIO(formats.as_csv(table))))


def test_mean_std_interval_and_test_are_those_worked_out_by_hand(tmp_path):
    cells = cells_of()
    made = fill(cells, run_all(tmp_path, cells))
    number = place(made['table2'], 'mlvicx', '10 %')
    assert number.estimate.value == pytest.approx(0.8) and number.std == pytest.approx(0.1)
    # t(0.975, 2 degrees) = 4.302653; 0.1 / sqrt 3 x that = 0.248414
    assert number.estimate.low == pytest.approx(0.8 - 0.248414, abs=1e-6)
    assert number.estimate.high == pytest.approx(0.8 + 0.248414, abs=1e-6)
    random = place(made['table2'], 'random', '10 %')
    # Differences to the reference -0.1, -0.2, -0.2: mean -1/6, std 1/sqrt 300, t = -5;
    # with 2 degrees of freedom p = 1 - |t| / sqrt(t^2 + 2).
    assert random.test.difference == pytest.approx(-1 / 6)
    assert random.test.statistic == pytest.approx(-5)
    assert random.test.p == pytest.approx(1 - 5 / math.sqrt(27), abs=1e-9)
    assert number.test is None
    assert '0.800 ± 0.100 [0.552, 1.048]' in formats.markdown(made['table2'])
    assert 'p 0.038' in formats.markdown(made['table2'])


def test_a_number_is_read_from_the_primary_head(tmp_path):
    cells = cells_of()
    table = fill(cells, run_all(tmp_path, cells))['table1']
    assert place(table, 'random', 'Nodule').values == {0: 0.6, 1: 0.6, 2: 0.7}
    assert '0.111' not in formats.markdown(table)


def test_classes_stand_in_the_order_of_the_paper_and_both_means_behind_them(tmp_path):
    cells = cells_of()
    table = fill(cells, run_all(tmp_path, cells))['table1']
    assert [column.name for column in table.blocks[0].columns] == [
        'Cardiomegaly',
        'Nodule',
        'No Finding',
        'mean2',
        'mean3',
    ]


def test_what_is_not_available_in_one_seed_is_in_no_mean_over_seeds(tmp_path):
    cells = cells_of()

    def values(cell):
        nodule = None if (cell.method, cell.seed) == ('random', 1) else 0.5
        return [nodule, 0.7 + 0.01 * cell.seed, 0.6]

    made = fill(cells, run_all(tmp_path, cells, values))
    nodule = place(made['table1'], 'random', 'Nodule')
    assert math.isnan(nodule.estimate.value) and formats.text(nodule) == 'n/a (1 of 3 seeds)'
    mean = place(made['table2'], 'random', '10 %')
    assert mean.absent[1] == ('Nodule',) and '†' in formats.text(mean)
    assert mean.test is None  # its mean is over other labels than the reference's
    assert 'random, 10 %, seed 1: without Nodule' in formats.markdown(made['table2'])
    assert 'n/a' in formats.html(made['table1']) and 'nan' not in formats.html(made['table1'])
    line = next(
        line for line in rows_of(made['table1']) if (line['row'], line['column']) == ('random', 'Nodule')
    )
    assert line['mean'] == '' and line['values'] == '0.5;n/a;0.5'


def test_seeds_that_have_not_run_are_counted_and_shown(tmp_path):
    cells = cells_of()
    runs = run_all(tmp_path, [cell for cell in cells if cell.seed < 2 and cell.method != 'random'])
    table = fill(cells, runs)['table2']
    assert '(2 of 3 seeds)' in formats.text(place(table, 'mlvicx', '10 %'))
    assert formats.text(place(table, 'random', '10 %')) == 'not run'
    assert place(table, 'random', '10 %').test is None


def test_methods_are_compared_over_the_seeds_that_both_have(tmp_path):
    cells = cells_of()
    runs = run_all(tmp_path, [cell for cell in cells if (cell.method, cell.seed) != ('mlvicx', 1)])
    test = place(fill(cells, runs)['table2'], 'random', '10 %').test
    assert test.difference == pytest.approx((0.6 - 0.7 + 0.7 - 0.9) / 2)


def test_one_seed_has_no_spread_and_no_test(tmp_path):
    cells = cells_of(seeds=(0,))
    table = fill(cells, run_all(tmp_path, cells))['table2']
    assert formats.text(place(table, 'random', '10 %')) == '0.600'


def test_holm_is_the_step_down_of_p():
    assert tables.holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.03, 0.06, 0.06, math.nan], nan_ok=True)
    assert tables.holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert tables.holm([]).size == 0


def test_the_number_of_tests_is_told_and_each_p_is_adjusted_for_it(tmp_path):
    cells = cells_of(shares=(0.1, 1.0))
    table = fill(cells, run_all(tmp_path, cells))['table2']
    assert 'makes 2 tests' in formats.markdown(table)
    p = 1 - 5 / math.sqrt(27)
    assert place(table, 'random', '10 %').p_holm == pytest.approx(2 * p)


def test_labels_of_few_test_patients_are_named_below_the_table(tmp_path):
    for task, table, few in (
        ('classify', 'table2', {'few': {'Edema': '4 positive patients'}}),
        ('segment', 'table3', {'patients': 4}),
    ):
        cells = cells_of(task)
        runs = run_all(tmp_path / task, cells)
        for run in runs.values():
            of = run.results['test']
            (of['linear'] if task == 'classify' else of[run.labels[0]]).update(few)
        said = formats.markdown(fill(cells, runs)[table])
        name = 'Edema: 4 positive patients' if task == 'classify' else f'{runs[cells[0]].labels[0]}: 4 patients'
        assert f'Of few test patients: films, {name}.' in said


@pytest.fixture(scope='module')
def nih(tmp_path_factory):
    cells = cells_of(
        methods=('random', 'pcrl_v2', 'mlvicx', 'multi', 'single'),
        set_name='nih',
        protocols=('frozen', 'finetune'),
        shares=(0.01, 0.3, 1.0),
    )
    runs = run_all(
        tmp_path_factory.mktemp('nih'),
        cells,
        lambda cell: [0.5 + 0.001 * cell.seed] * 15,
        labels=(*FINDINGS, 'No Finding'),
        dataset='nih_chestxray14',
        test_hash=OFFICIAL,
    )
    return fill(cells, runs)


def paper_of(table, title, row, column):
    block = next(block for block in table.blocks if block.title == title)
    return block.numbers[row, column].paper


def test_the_papers_numbers_stand_beside_ours_in_tables_1_and_2(nih):
    one = 'nih, finetune, 1 % of the labels'
    assert paper_of(nih['table1'], one, 'mlvicx', 'Hernia') == (0.625, None)
    assert paper_of(nih['table1'], one, 'random', 'Atelectasis') == (0.57, None)
    assert paper_of(nih['table1'], one, 'mlvicx', 'mean15') == (0.642, None)
    assert paper_of(nih['table1'], one, 'mlvicx', 'mean14') is None  # the paper's holds No Finding
    assert paper_of(nih['table1'], one, 'mlvicx', 'No Finding') is None
    assert paper_of(nih['table1'], 'nih, frozen, 1 % of the labels', 'mlvicx', 'Hernia') is None
    assert paper_of(nih['table2'], 'nih, frozen: AUROC, mean15', 'pcrl_v2', '30 %') == (0.675, None)
    finetuned = 'nih, finetune: AUROC, mean15'
    assert paper_of(nih['table2'], finetuned, 'mlvicx', '100 %') == (0.79, None)
    assert 'p 0.00699 at 1 %' in formats.markdown(nih['table1'])
    assert re.search(r'mlvicx \(reference\).*\n\| · paper .*0\.625', formats.markdown(nih['table1']))


def test_table_4_has_the_ablations_and_no_other_table_has_them(nih):
    title = 'nih, AUROC, mean15'
    assert list(nih['table4'].blocks[0].rows) == ['multi_level_only', 'global_only', 'both']
    assert paper_of(nih['table4'], title, 'multi_level_only', 'finetune 1 %') == (0.637, None)
    assert paper_of(nih['table4'], title, 'both', 'frozen 30 %') == (0.691, None)
    assert paper_of(nih['table4'], title, 'both', 'frozen 100 %') is None
    assert set(nih['table1'].blocks[0].rows) == {'random', 'pcrl_v2', 'mlvicx'}
    assert nih['table4'].reference == 'both'


def test_accuracy_of_rsna_is_compared_and_auroc_tested(tmp_path):
    cells = cells_of()
    runs = run_all(
        tmp_path,
        cells,
        lambda cell: [VALUES[cell.method][cell.seed]] * 2,
        labels=('Pneumonia', 'No Finding'),
        dataset='rsna_pneumonia',
    )
    made = fill(cells, runs)
    assert set(made) == {'table2'}
    accuracy, auroc, auprc = made['table2'].blocks
    assert accuracy.numbers['mlvicx', '10 %'].paper == (0.812, None)
    assert accuracy.numbers['mlvicx', '10 %'].estimate.value == pytest.approx(0.7)
    assert auroc.numbers['random', '10 %'].test and not accuracy.numbers['random', '10 %'].test
    assert auprc.numbers['mlvicx', '10 %'].estimate.value == pytest.approx(0.6)


def test_dice_stands_beside_the_papers_mean_and_deviation(tmp_path):
    cells = cells_of('segment', shares=(0.3, 1.0))
    runs = run_all(
        tmp_path,
        cells,
        lambda cell: [VALUES[cell.method][cell.seed]],
        labels=('Pneumothorax',),
        dataset='siim_pneumothorax',
    )
    table = fill(cells, runs)['table3']
    positives, everyone, iou = table.blocks
    assert positives.numbers['mlvicx', 'frozen 30 %'].paper == (0.45, 0.01)
    assert everyone.numbers['mlvicx', 'frozen 30 %'].estimate.value == pytest.approx(1.0)
    assert iou.numbers['mlvicx', 'frozen 30 %'].paper is None
    assert '0.45 ± 0.01' in formats.markdown(table) and '0.45 ± 0.01' in formats.html(table)


@pytest.mark.parametrize(
    'given', [dict(test_hash='t' * 64), dict(labels=('No Finding', *FINDINGS[1:], 'Edge'))]
)
def test_the_paper_is_left_out_where_images_or_labels_are_not_its_own(tmp_path, given):
    cells = cells_of(protocols=('finetune',))
    given = dict(labels=(*FINDINGS, 'No Finding'), test_hash=OFFICIAL) | given
    runs = run_all(tmp_path, cells, lambda cell: [0.5] * 15, dataset='nih_chestxray14', **given)
    for table in fill(cells, runs).values():
        assert not any(number.paper for block in table.blocks for number in block.numbers.values())
        assert 'so no number of the paper' in formats.markdown(table)


@pytest.mark.parametrize(
    'changed,said',
    [
        (dict(test_hash='u' * 64), 'data/test_hash'),
        (dict(truth=0), 'truth of the test images'),
        (dict(labelled_hash='another'), 'labelled_hash'),
        (dict(dataset='other'), 'data set'),
        ({'data/validation_hash': 'w'}, 'data/validation_hash'),
    ],
)
def test_runs_on_different_images_are_refused(tmp_path, changed, said):
    cells = cells_of()
    runs = run_all(tmp_path, cells)
    odd = Cell('films', 'classify', 'frozen', 0.1, 'mlvicx', 1, 1)
    runs[odd] = write_run(tmp_path / 'odd', odd, [0.5] * 3, **changed)
    with pytest.raises(UserError, match=re.escape(said)) as error:
        fill(cells, runs)
    assert str(tmp_path / 'odd') in str(error.value)


def test_one_method_with_two_encoders_is_refused(tmp_path):
    cells = cells_of(shares=(0.1, 1.0))
    runs = run_all(tmp_path, cells)
    odd = Cell('films', 'classify', 'frozen', 1.0, 'mlvicx', 1, 1)
    runs[odd] = write_run(tmp_path / 'odd', odd, [0.5] * 3, sha256='retrained')
    with pytest.raises(UserError, match='init_proof.*retrained'):
        fill(cells, runs)


def test_seeds_that_share_an_encoder_must_have_the_same_and_the_note_says_so(tmp_path):
    cells = [cell._replace(encoder_seed=0) for cell in cells_of()]
    runs = run_all(tmp_path, cells, sha256='one')
    assert 'start from one encoder (pretraining seed 0)' in formats.markdown(fill(cells, runs)['table2'])
    runs[cells[-1]] = write_run(tmp_path / 'odd', cells[-1], [0.5] * 3, sha256='two')
    with pytest.raises(UserError, match='init_proof.*two'):
        fill(cells, runs)


def test_a_run_of_another_cell_or_a_damaged_one_is_refused(tmp_path):
    cell = cells_of()[0]
    write_run(tmp_path / 'run', cell, [0.5] * 3)
    with pytest.raises(UserError, match='has seed 0, expected 9'):
        reading.read_finished(tmp_path / 'run', cell._replace(seed=9))
    (tmp_path / 'run/predictions.npz').write_bytes(b'PK')
    with pytest.raises(UserError, match=r'predictions\.npz: can not be read'):
        reading.read_finished(tmp_path / 'run', cell)


def test_every_number_carries_what_it_is_of(tmp_path):
    cells = cells_of()
    table = fill(cells, run_all(tmp_path, cells))['table2']
    line = next(line for line in rows_of(table) if line['row'] == 'mlvicx')
    expected = dict(
        protocol='frozen',
        share='0.1',
        seeds='0;1;2',
        split='test',
        test_hash='t' * 64,
        context='True',
        init='workdirs/mlvicx;workdirs/mlvicx;workdirs/mlvicx',
        init_tensors='122;122;122',
        init_sha256='mlvicx0;mlvicx1;mlvicx2',
        labelled_hash='part0.1_0;part0.1_1;part0.1_2',
        labelled_images='40;40;40',
    )
    assert {name: line[name] for name in expected} == expected
    for page in (formats.markdown(table), formats.html(table)):
        for text in ('t' * 16, 'mlvicx0', '122', 'part0.1_2', 'workdirs/mlvicx', 'random'):
            assert text in page


def test_a_reader_of_the_files_never_finds_half_of_one(tmp_path, monkeypatch):
    cells = cells_of()
    made = tables.fill(cells, run_all(tmp_path, cells), 'mlvicx', ABLATION)
    formats.write(tmp_path / 'tables', made)
    before = (tmp_path / 'tables/table1.html').read_text()
    monkeypatch.setattr(formats.os, 'replace', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        formats.write(tmp_path / 'tables', made)
    assert (tmp_path / 'tables/table1.html').read_text() == before
    assert {'table1.md', 'table1.csv', 'table1.html', 'table2.md', 'table2.csv', 'table2.html'} <= {
        path.name for path in (tmp_path / 'tables').iterdir()
    }


def test_the_page_needs_nothing_outside_it_and_escapes_names(tmp_path):
    cells = cells_of(methods=('random', 'mlvicx'), set_name='a<b>')
    page = formats.html(fill(cells, run_all(tmp_path, cells))['table1'])
    assert not re.search(r'(src|href)=|https?://|@import|url\(', page)
    assert 'a&lt;b&gt;' in page and 'a<b>' not in page
    assert np.all([word in page for word in ('@media print', 'mlvicx')])
