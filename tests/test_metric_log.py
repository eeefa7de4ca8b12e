"""metrics.jsonl: what is damaged is told, kept, and chooses nothing."""

import json

import pytest

from mlvicx_jax.errors import UserError
from mlvicx_jax.run.best import Best
from mlvicx_jax.run.metrics import MetricLog, read_metrics

AUROC = 'validation/auroc'
LINES = [
    {'step': 1, 'train/loss': 0.9},
    {'step': 2, 'train/loss': 0.8},
    {'step': 2, AUROC: 0.9},
    {'step': 4, 'train/loss': 0.7},
    {'step': 4, AUROC: 0.8},
    {'step': 6, 'train/loss': 0.6},
    {'step': 6, AUROC: 0.7},
]
DAMAGE = {
    'cut': lambda line: line[: len(line) // 2],
    'not UTF-8': lambda line: line.replace(b'step', b'st\xff\xfe'),
    'no object': lambda line: b'[1, 2]',
    'a number': lambda line: b'7',
    'no step': lambda line: line.replace(b'step', b'stop'),
    'a step that is no number': lambda line: line.replace(b'"step": ', b'"step": "x", "y": '),
    'text': lambda line: line.replace(b'0.', b'"0", "z": 0.'),
    'nested': lambda line: b'[' * 100_000,
    'empty': lambda line: b'',
}


def write(folder, number=None, damage=None, end=b'\n'):
    """A log whose line `number`, from 1, is damaged; returns the damaged bytes."""
    lines = [json.dumps(line).encode() for line in LINES]
    if number:
        lines[number - 1] = DAMAGE[damage](lines[number - 1])
    (folder / 'metrics.jsonl').write_bytes(b'\n'.join(lines) + end)
    return lines[number - 1] if number else b''


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_line_is_told_by_its_number_and_the_others_are_read(damage, tmp_path, capsys):
    write(tmp_path, 3, damage)
    assert read_metrics(tmp_path) == LINES[:2] + LINES[3:]
    said = capsys.readouterr().out
    assert said.count('\n') == 1 and 'metrics.jsonl: line 3 is damaged' in said


@pytest.mark.parametrize('damage', DAMAGE)
def test_no_best_step_is_chosen_from_a_damaged_log(damage, tmp_path):
    """Step 2 is the best. Where its line can not be read, step 4 would have been taken for it."""
    write(tmp_path)
    best = Best(AUROC, None)
    best.resume(tmp_path, 6)
    assert best.step == 2
    write(tmp_path, 3, damage)
    with pytest.raises(UserError, match='line 3 is damaged.*it may hold validation/auroc') as told:
        Best(AUROC, None).resume(tmp_path, 6)
    assert '--workdir' in str(told.value)
    unmonitored = Best(None, None)
    unmonitored.resume(tmp_path, 6)
    assert unmonitored.step == 0


def test_damage_behind_the_checkpoint_stops_no_run(tmp_path):
    """Those lines are about to be written again."""
    write(tmp_path, 7, 'cut')
    best = Best(AUROC, None)
    best.resume(tmp_path, 4)
    assert best.step == 2


def test_a_last_line_that_a_kill_cut_short_is_no_damage(tmp_path, capsys):
    write(tmp_path, 7, 'cut', end=b'')
    assert read_metrics(tmp_path) == LINES[:-1]
    best = Best(AUROC, None)
    best.resume(tmp_path, 6)
    assert best.step == 2 and not capsys.readouterr().out


def test_a_resume_keeps_damaged_lines_as_they_are_and_says_what_it_drops(tmp_path, capsys):
    spoiled = write(tmp_path, 2, 'not UTF-8')
    log = MetricLog(tmp_path, 4)
    log.write(4, {AUROC: 0.8})  # is there already
    log.write(6, {AUROC: 0.5})
    log.close()
    assert 'steps 6 to 6' in capsys.readouterr().out
    lines = (tmp_path / 'metrics.jsonl').read_bytes().splitlines()
    assert lines[1] == spoiled and len(lines) == 6
    assert read_metrics(tmp_path) == [LINES[0], *LINES[2:5], {'step': 6, AUROC: 0.5}]


def test_a_log_that_can_not_be_opened_is_one_line(tmp_path):
    (tmp_path / 'metrics.jsonl').mkdir()
    with pytest.raises(UserError, match='metrics.jsonl: can not be read'):
        read_metrics(tmp_path)
