"""Tasks: one registry, what they refuse and when, and that whatever can be off runs to the end."""

import concurrent.futures
import dataclasses
import functools
import json
import pathlib
import signal
import time
import types

import numpy as np
import pytest

import tiny
from configs import base, segment
from mlvicx_jax import methods, start, tasks
from mlvicx_jax import train as training
from mlvicx_jax.data import opening, resident
from mlvicx_jax.errors import UserError
from mlvicx_jax.run import guard
from mlvicx_jax.run.goodput import Goodput
from mlvicx_jax.tasks import classify, linear

OFF = {
    'eval_every_steps': 0,
    'log_every_steps': 0,
    'checkpoint.every_steps': 0,
    'checkpoint.keep_every': 0,
    'optim.warmup_epochs': 0.0,
    'eval.max_train_images': 0,
    'watchdog_seconds': 0.0,
    'data.num_threads': 0,
    'data.num_workers': 0,
}


def recipe(kind, data_dir, **changes):
    """The smallest run of a kind, two steps."""
    config = tiny.get_config('' if kind == 'pretrain' else 'supervised')
    if kind == 'segment':
        small, config = config, segment.get_config('dataset=phantom_cxr,structures=heart')
        config.model.width = small.model.width
        for field in ('options', 'stored_size', 'image_size', 'num_threads'):
            config.data[field] = small.data[field]
    elif kind != 'pretrain':
        config.task, config.protocol, config.method.labels = 'classify', kind, 0
    config.data.data_dir = str(data_dir)
    config.batch_size = config.eval.batch_size = 8
    base.duration(config, 'total', steps=2)
    config.early_stopping.patience = 10 if kind != 'pretrain' else 0
    base.duration(config, 'eval_every')
    config.update_from_flattened_dict(changes)
    return config


def results(workdir):
    return json.loads((workdir / 'results.json').read_text())


def standing_step(method, *_):
    """A training step that changes nothing but the count: this test is about what is around it."""

    def step(state, batch):
        metrics = {'loss': 1.0, 'gradient_norm': 1.0, 'skipped': 0}
        return state.replace(step=state.step + 1), metrics, dict.fromkeys(method.embeddings.values(), np.eye(8))

    return step


@pytest.mark.parametrize('kind', ['pretrain', 'finetune', 'frozen', 'segment'])
def test_with_all_that_can_be_off_a_run_comes_to_its_end(kind, data_dir, tmp_path, capsys, monkeypatch):
    config = recipe(kind, data_dir, **OFF)
    monkeypatch.setattr(training, 'make_train_step', standing_step)
    assert training.train(config, tmp_path) == 0
    found = results(tmp_path)
    assert found['step'] == 2 and found['task'] == config.task
    if kind != 'pretrain':
        assert found['protocol'] == config.protocol and found['test']
        assert found[tasks.find(config).monitor] is not None
    # The same command again says so before anything is decoded or evaluated.
    monkeypatch.setattr(resident, 'hold', None)
    monkeypatch.setattr(tasks.find(config), 'results', None)
    capsys.readouterr()
    assert training.train(config, tmp_path) == 0
    assert capsys.readouterr().out == f'finished at step 2; results in {tmp_path / "results.json"}\n'


def test_a_task_is_found_by_its_file_name_and_protocol():
    files = {path.stem for path in pathlib.Path(tasks.__path__[0]).glob('[!_]*.py')}
    assert {task.__module__.rpartition('.')[2] for task in tasks.all_tasks()} == files
    config = recipe('frozen', '')
    assert tasks.find(config).__module__.endswith('linear')
    config.protocol = 'finetune'
    assert tasks.find(config).__module__.endswith('classify')
    config.protocol = 'linear'
    with pytest.raises(UserError, match="config.protocol is 'linear', expected one of finetune, frozen"):
        tasks.find(config)
    config.task = 'pretrain'
    with pytest.raises(UserError, match="config.protocol is 'linear', expected none"):
        tasks.find(config)
    config.task = 'detect'
    with pytest.raises(UserError, match="config.task is 'detect', expected one of classify, pretrain, segment"):
        tasks.find(config)


class Touched(Exception):
    pass


def touch(*_, **__):
    raise Touched


@pytest.mark.parametrize(
    'kind,changes,message',
    [
        ('pretrain', {'method.name': 'vicreg2'}, "'vicreg2'"),
        ('pretrain', {'method.aggregation': 'mean'}, 'config.method'),
        ('pretrain', {'batch_size': 6}, '4 devices do not divide'),
        ('pretrain', {'optim.frozen': ('encodr',)}, "names 'encodr'"),
        ('pretrain', {'total_epochs': 1.0}, 'both set'),
        ('pretrain', {'init': 'nowhere'}, 'nowhere'),
        ('pretrain', {'protocol': 'frozen'}, 'expected none'),
        ('segment', {'protocol': 'half'}, 'expected one of finetune, frozen'),
        ('segment', {'data.target': ()}, 'config.data.target is empty'),
        ('finetune', {'optim.frozen': ('encoder',)}, 'give --config.protocol=frozen'),
    ],
)
def test_what_needs_no_data_is_refused_before_they_are_opened(
    kind, changes, message, data_dir, tmp_path, monkeypatch
):
    config = recipe(kind, data_dir)
    monkeypatch.setattr(start, 'open_data', touch)
    with pytest.raises(Touched):
        training.train(config, tmp_path)
    for name, value in changes.items():
        *place, field = name.split('.')
        holder = config
        for section in place:
            holder = holder[section]
        with holder.ignore_type():
            holder[field] = value
    with pytest.raises(UserError, match=message):
        training.train(config, tmp_path)


def emptied(config, data):
    """The set without a positive label or mask in its validation split."""
    validation = data.splits['validation']
    validation = dataclasses.replace(validation, labels=0 * validation.labels)
    return dataclasses.replace(data, splits=data.splits | {'validation': validation})


@pytest.mark.parametrize(
    'kind,changes,message',
    [
        ('pretrain', {'batch_size': 5000}, 'more than the .* images of train; lower it'),
        ('supervised', {'method.labels': 15}, 'give --config.method.labels=9'),
        ('finetune', {'method.labels': 15}, 'give --config.method.labels=9'),
        ('frozen', {'method.labels': 15}, 'give --config.method.labels=9'),
        ('finetune', {'data.questions': ('AP view',), 'data.within': 'Mars'}, 'Mars'),
        ('finetune', {'no positives': True}, 'no validation AUROC to choose a step by'),
        ('frozen', {'no positives': True}, 'no validation AUROC to choose a step by'),
        ('segment', {'data.target': ('heart', 'hat')}, 'hat'),
    ],
)
def test_what_the_data_tell_is_refused_before_anything_is_computed(
    kind, changes, message, data_dir, tmp_path, monkeypatch
):
    config = recipe('finetune' if kind == 'supervised' else kind, data_dir, eval_every_steps=1)
    if kind == 'supervised':
        config.task = 'pretrain'
        del config['protocol']
    monkeypatch.setattr(start.states, 'create', touch)
    with pytest.raises(Touched):
        training.train(config, tmp_path)
    if changes.pop('no positives', False):
        asked = opening.asked
        monkeypatch.setattr(opening, 'asked', lambda config, data: emptied(config, asked(config, data)))
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        training.train(config, tmp_path / 'again')


def test_labels_are_counted_by_the_data_and_stay_what_they_were(data_dir, tmp_path, monkeypatch):
    config = recipe('finetune', data_dir)
    (tmp_path / 'metrics.jsonl').write_text('')
    monkeypatch.setattr(start.states, 'create', touch)
    with pytest.raises(Touched):
        training.train(config, tmp_path / 'new')
    assert json.loads((tmp_path / 'new/config.json').read_text())['method']['labels'] == 9
    (tmp_path / 'new/metrics.jsonl').write_text('')  # begun
    config.data.questions = ('AP view',)
    with pytest.raises(UserError, match=r'another config: config.data.questions'):
        training.train(config, tmp_path / 'new')


def test_the_banner_tells_the_batch_that_runs(data_dir, tmp_path, capsys, monkeypatch):
    config = recipe('finetune', data_dir, **{'data.labelled.share': 0.3})
    config.batch_size = 64
    config.optim.warmup_epochs = 10.0
    base.duration(config, 'total', steps=40)
    monkeypatch.setattr(training, 'loop', lambda start: len(start.data.splits['train']))
    images = training.train(config, tmp_path)
    size = images // 4 * 4
    said = capsys.readouterr().out
    assert f'steps        40 of {size} images = {40 * size / images:.1f} epochs' in said
    assert 'warm-up      4 steps, a tenth of the run; the config has 10' in said


def test_frozen_heads_have_no_score_for_a_label_they_never_saw():
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(40, 8)).astype(np.float32) for name in ('train', 'validation', 'test')}
    y = {name: rng.integers(0, 2, (40, 3)).astype(np.uint8) for name in x}
    y['train'][:, 1] = 0

    @dataclasses.dataclass
    class Split:
        labels: np.ndarray
        patient_ids: np.ndarray = dataclasses.field(default_factory=lambda: np.arange(40))

    config = recipe('frozen', '')

    class Log:
        write = staticmethod(lambda step, numbers: None)

    splits = {name: Split(labels) for name, labels in y.items()}
    *_, scores = linear.heads(config, x, splits, ('Nodule', 'Mass', 'Edema'), Log)
    for of_split in scores.values():
        for head, found in of_split.items():
            assert np.isnan(found[:, 1]).all() and not np.isnan(found[:, (0, 2)]).any(), head


def test_a_fine_tuned_network_has_no_score_for_a_label_it_never_saw(monkeypatch):
    labels = np.random.default_rng(0).integers(0, 2, (40, 3))
    known = types.SimpleNamespace(labels=labels)
    task = object.__new__(classify.Task)
    task._config, task._mesh, task._method = recipe('finetune', ''), None, types.SimpleNamespace(network=None)
    task._data = types.SimpleNamespace(
        splits={'train': types.SimpleNamespace(labels=labels * [1, 0, 1]), 'validation': known, 'test': known}
    )
    monkeypatch.setattr(classify.frozen, 'extract', lambda *_: np.zeros((40, 3)))
    for split in ('validation', 'test'):
        scores = task._probabilities(types.SimpleNamespace(params={}, batch_stats={}), split)
        assert np.isnan(scores).all(0).tolist() == [False, True, False]
        assert (scores[:, (0, 2)] == 0.5).all()


def test_features_are_found_by_the_content_of_the_set_not_by_its_place(data_dir, monkeypatch):
    config = recipe('frozen', data_dir)
    config.method.labels = 9
    data = opening.open_data(config)
    made = []
    monkeypatch.setattr(linear, 'write_arrays', lambda path, arrays: made.append(path.name))
    monkeypatch.setattr(linear, '_read', lambda path: None)
    monkeypatch.setattr(
        linear.frozen, 'extract', lambda encoder, variables, split, *_: np.zeros((len(split), 2))
    )
    method, variables = methods.create(config), {'w': np.ones(2)}
    for content in 'aab':
        monkeypatch.setattr(linear, 'records_hash', lambda data, content=content: content)
        linear.features(config, method, variables, data, data.splits, None)
    first, same, other = made[:3], made[3:6], made[6:]
    assert first == same and not set(first) & set(other)


def test_runs_that_need_the_same_features_at_once_compute_them_once(data_dir, tmp_path, monkeypatch):
    config = recipe('frozen', data_dir)
    config.method.labels = 9
    data = opening.open_data(config)
    config.data.data_dir = str(tmp_path)
    computed = []

    def slowly(encoder, variables, split, *_):
        computed.append(split.name)
        time.sleep(0.2)
        return np.zeros((len(split), 2))

    monkeypatch.setattr(linear.frozen, 'extract', slowly)
    of_run = functools.partial(
        linear.features, config, methods.create(config), {'w': np.ones(2)}, data, data.splits, None
    )
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = [run.result() for run in [pool.submit(of_run) for _ in range(3)]]
    assert sorted(computed) == sorted(split.name for split in data.splits.values())
    assert [x.keys() for x in found] == [data.splits.keys()] * 3
    assert not list(tmp_path.rglob('*.partial'))


@pytest.mark.parametrize('number,code', [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_asks_to_save_and_stop(number, code):
    before = signal.getsignal(number)
    with guard.StopRequest() as stop:
        assert not stop.requested(1)
        signal.raise_signal(number)
        assert stop.requested(2) and stop.stopped(2) == code
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_a_start_holds_what_the_run_will_have(data_dir, tmp_path):
    """A frozen segmentation: what follows from the protocol is in config.json too."""
    begun = start.begin(recipe('segment', data_dir, protocol='frozen'), tmp_path, Goodput(tmp_path))
    begun.checkpoints.close()
    written = json.loads((tmp_path / 'config.json').read_text())
    assert written['protocol'] == 'frozen'
    assert written['method']['frozen_encoder'] and written['optim']['frozen'] == ['encoder']
    assert begun.method.frozen_encoder and begun.method.structures == 1
