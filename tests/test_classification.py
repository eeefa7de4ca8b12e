"""Fine-tuning and the frozen protocol: what is chosen by what, and that nothing is read that should not be."""

import dataclasses
import itertools
import json
import math
import pathlib

import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import tiny
from configs import classify
from mlvicx_jax import checkout
from mlvicx_jax import train as training
from mlvicx_jax.data import augment, opening, pipeline, questions
from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import frozen
from mlvicx_jax.run import best as downstream
from mlvicx_jax.run import restoring as checkpoint
from mlvicx_jax.run import results as run_results
from mlvicx_jax.run.record import Run
from mlvicx_jax.tasks import classify as classification

FINDINGS = slice(0, 8)  # of the phantom's labels, the last is No Finding


def recipe(data_dir, protocol='finetune', **changes):
    config = tiny.get_config('supervised')
    config.task, config.protocol = 'classify', protocol
    config.model.context = True
    config.method.readout = 'grid' if protocol == 'frozen' else 'pooled'
    config.data.data_dir = str(data_dir)
    config.data.validation_fraction = 0.3
    config.data.labelled.share = 0.6
    config.eval.batch_size = 8
    config.batch_size = 8
    config.optim.learning_rate = 0.01
    config.total_steps, config.eval_every_steps = 8, 2
    config.early_stopping.patience = 2
    config.checkpoint.every_steps = 3
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope='module')
def pretrained(data_dir, tmp_path_factory):
    """The workdir of an MLVICX run of two steps."""
    config, workdir = tiny.get_config(), tmp_path_factory.mktemp('pretrained')
    config.data.data_dir, config.total_steps = str(data_dir), 2
    assert training.train(config, workdir) == 0
    return workdir


@pytest.fixture(scope='module')
def finetuned(data_dir, tmp_path_factory, pretrained):
    workdir = tmp_path_factory.mktemp('finetuned')
    assert training.train(recipe(data_dir, init=str(pretrained)), workdir) == 0
    return workdir


@pytest.fixture(scope='module')
def probed(data_dir, tmp_path_factory, pretrained):
    workdir = tmp_path_factory.mktemp('frozen')
    assert training.train(recipe(data_dir, 'frozen', init=str(pretrained)), workdir) == 0
    return workdir


def results(workdir):
    return json.loads((workdir / 'results.json').read_text())


def predictions(workdir):
    with np.load(workdir / 'predictions.npz') as file:
        return dict(file)


def validation_curve(workdir):
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return {line['step']: line['validation/auroc'] for line in lines if 'validation/auroc' in line}


@pytest.mark.parametrize('which,heads', [('finetuned', ['classifier']), ('probed', ['knn', 'lbfgs', 'linear'])])
def test_results_are_those_of_the_predictions_and_name_what_they_were_made_of(
    which, heads, data_dir, pretrained, request
):
    workdir = request.getfixturevalue(which)
    found, predicted = results(workdir), predictions(workdir)
    data = opening.open_data(recipe(data_dir))
    names = list(data.label_names)
    assert found['label_names'] == predicted['label_names'].tolist() == names
    assert sorted(found['test']) == heads
    for name, split in data.splits.items():
        assert found[f'data/{name}_hash'] == split.hash
    for name in ('validation', 'test'):
        np.testing.assert_array_equal(predicted[f'{name}_image_ids'], data.splits[name].image_ids)
        np.testing.assert_array_equal(predicted[f'{name}_labels'], data.splits[name].labels)
    assert (
        found['labelled_images']
        == len(data.splits['train'])
        < len(opening.open_set(recipe(data_dir)).splits['train'])
    )
    assert found['labelled_hash'] == data.splits['train'].hash
    assert found['code'] == {'0': checkout.code_hash()}
    assert found['init'] == str(pretrained) and found['init_proof']['tensors'] == 115
    for head in heads:
        judged = found['test'][head]
        for i, name in enumerate(names):
            y, p = predicted['test_labels'][:, i], predicted[f'test_{head}'][:, i]
            if np.isnan(p).any() or len(set(y)) == 1:
                assert judged['auroc'][name] is None and name in judged['not_available']
            else:
                assert p.min() >= 0 and p.max() <= 1
                assert judged['auroc'][name] == pytest.approx(roc_auc_score(y, p), abs=1e-9)
        available = [judged['auroc'][name] for name in names[FINDINGS]]
        available = [value for value in available if value is not None]
        assert judged['means']['mean8'] == pytest.approx(np.mean(available))


def test_selection_is_by_the_findings_alone():
    labels = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 0], [1, 1, 0]])
    scores = np.array([[0.1, 0.3, 0.1], [0.2, 0.2, 0.2], [0.3, 0.1, 0.3], [0.4, 0.4, 0.4]])
    found = classification.validation_numbers(labels, scores, ['Mass', 'Edema', 'No Finding'])
    assert found['validation/auroc'] == pytest.approx((1 + 0.75) / 2)
    assert found['validation/auroc/No Finding'] == 0


def test_intervals_are_by_patient():
    """Three copies of a patient's film tell as much as one; were they counted, they would tell more."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (40, 3))
    scores = 1 / (1 + np.exp(-labels - rng.standard_normal(labels.shape)))
    names, patients = ['Mass', 'Edema', 'No Finding'], np.arange(40)
    once = classification.judge(names, labels, scores, labels, scores, patients)
    thrice = classification.judge(
        names, labels, scores, labels.repeat(3, 0), scores.repeat(3, 0), patients.repeat(3)
    )
    for key in ('auroc_interval', 'auprc_interval', 'means_interval'):
        assert len(once[key]) == (2 if key == 'means_interval' else 3)
        for name, ends in once[key].items():
            assert thrice[key][name] == pytest.approx(ends, abs=1e-9)


def test_what_is_of_few_patients_or_has_no_interval_is_said():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (40, 3))
    labels[:, 0], labels[:, 1] = np.arange(40) < 4, np.arange(40) < 2
    found = classification.judge(
        ['Mass', 'Edema', 'Hernia'],
        labels,
        rng.random((40, 3)),
        labels,
        rng.random((40, 3)),
        np.arange(40) // 2,
    )
    assert found['few'] == {'Mass': '2 positive patients', 'Edema': '1 positive patient'}
    assert found['no_interval'] == {
        'Mass': '2 positive patients, 3 are needed',
        'Edema': '1 positive patient, 3 are needed',
    }
    assert np.isnan(found['auroc_interval']['Mass']).all() and found['auroc_interval']['Hernia'][0] > 0


def test_the_best_step_on_validation_is_what_is_left(finetuned):
    curve, found = validation_curve(finetuned), results(finetuned)
    best = max(curve, key=lambda step: (curve[step], -step))
    assert found['step'] == best and found['validation/auroc'] == curve[best]
    assert [p.name for p in (finetuned / 'checkpoints').iterdir() if p.name.isdigit()] == [str(best)]


@pytest.mark.parametrize('which,head', [('finetuned', 'classifier'), ('probed', 'linear')])
def test_the_network_read_back_gives_the_predictions(which, head, data_dir, request):
    workdir = request.getfixturevalue(which)
    run = Run.open(workdir).network()
    data = opening.open_data(recipe(data_dir))
    assert (run.run.label_names, run.step) == (data.label_names, results(workdir)['step'])
    images = np.concatenate(
        [batch['image'][batch['mask']] for batch in pipeline.eval_batches(data.splits['test'], 8)]
    )
    views = augment.standardise(augment.resize(images, run.config.data.image_size))
    logits = run.method.network.apply(run.variables, views, train=False)['logits']
    expected = predictions(workdir)[f'test_{head}']
    known = ~np.isnan(expected)
    assert known.any()
    np.testing.assert_allclose((1 / (1 + np.exp(-np.float64(logits))))[known], expected[known], atol=2e-5)


def test_a_finished_run_is_left_alone(finetuned, data_dir, pretrained, capsys):
    before = {
        p: p.stat().st_mtime_ns
        for p in finetuned.rglob('*')
        if p.is_file() and p.name in ('results.json', 'predictions.npz', '_CHECKPOINT_METADATA')
    }
    assert training.train(recipe(data_dir, init=str(pretrained)), finetuned) == 0
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert f'finished at step {results(finetuned)["step"]}' in capsys.readouterr().out


class Killed(Exception):
    pass


def test_a_run_killed_in_an_evaluation_ends_as_the_straight_one(
    finetuned, data_dir, pretrained, tmp_path, monkeypatch
):
    evaluate = classification.Task.at
    kills = {4, 6}

    def at(self, state, step):
        if step in kills:
            kills.remove(step)
            raise Killed
        return evaluate(self, state, step)

    monkeypatch.setattr(classification.Task, 'at', at)
    config = recipe(data_dir, init=str(pretrained))
    for _ in range(2):
        with pytest.raises(Killed):
            training.train(config, tmp_path)
    assert training.train(config, tmp_path) == 0
    assert validation_curve(tmp_path) == validation_curve(finetuned)
    straight, again = predictions(finetuned), predictions(tmp_path)
    for name, array in straight.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


@pytest.mark.parametrize('which', ['finetuned', 'probed'])
def test_canary_test_labels_can_not_influence_what_is_chosen(
    which, data_dir, pretrained, tmp_path, monkeypatch, request
):
    """With every test label turned round, all but the test figures stays as it was, to the bit."""
    straight = request.getfixturevalue(which)
    asked = opening.asked

    def turned(config, data):
        data = asked(config, data)
        test = data.splits['test']
        test = dataclasses.replace(test, labels=1 - test.labels)
        return dataclasses.replace(data, splits=data.splits | {'test': test})

    monkeypatch.setattr(opening, 'asked', turned)
    if which == 'finetuned':
        training.train(recipe(data_dir, init=str(pretrained)), tmp_path)
    else:
        training.train(recipe(data_dir, 'frozen', init=str(pretrained)), tmp_path)
    assert validation_curve(tmp_path) == validation_curve(straight)
    tiny_leaves = [jax.tree.leaves(Run.open(workdir).network().variables) for workdir in (straight, tmp_path)]
    for a, b in zip(*tiny_leaves, strict=True):
        np.testing.assert_array_equal(a, b)
    a, b = results(straight), results(tmp_path)
    assert a['step'] == b['step'] and a['validation/auroc'] == b['validation/auroc']
    head = a['primary']
    for name, value in a['test'][head]['auroc'].items():
        if value is not None:
            assert b['test'][head]['auroc'][name] == pytest.approx(1 - value)


def test_frozen_is_frozen(probed, pretrained):
    encoder = checkpoint.restore_encoder(pretrained)
    after = Run.open(probed).network().variables
    after = {kind: after[kind]['encoder'] for kind in encoder}
    assert jax.tree.structure(encoder) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(encoder), jax.tree.leaves(after)):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_fine_tuned_is_not(finetuned, pretrained):
    encoder = checkpoint.restore_encoder(pretrained)
    after = Run.open(finetuned).network().variables
    before = tiny.leaves(encoder)
    after = tiny.leaves({kind: after[kind]['encoder'] for kind in encoder})
    still = [path for path in before if np.array_equal(before[path], after[path])]
    assert all('channel_' in path for path in still), still  # a gate's hidden ReLU may be off


def test_features_are_computed_once_and_again_where_they_are_damaged(
    probed, data_dir, pretrained, tmp_path, monkeypatch
):
    passes = []
    extract = frozen.extract
    monkeypatch.setattr(
        frozen, 'extract', lambda *arguments: passes.append(arguments[2].name) or extract(*arguments)
    )
    for i, (share, seed) in enumerate(itertools.product((0.3, 1.0), (2, 3))):
        config = recipe(data_dir, 'frozen', init=str(pretrained), seed=seed)
        config.data.labelled.share = share
        config.data.questions = ('any finding', 'AP view')
        config.method.labels = 2
        training.train(config, tmp_path / str(i))
    assert not passes
    files = sorted((pathlib.Path(data_dir) / 'features').iterdir(), key=lambda p: p.stat().st_size)
    damaged = bytearray(files[-1].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    files[-1].write_bytes(damaged)
    config = recipe(data_dir, 'frozen', init=str(pretrained))
    training.train(config, tmp_path / 'again')
    assert passes == ['train']
    np.testing.assert_array_equal(
        predictions(tmp_path / 'again')['test_linear'], predictions(probed)['test_linear']
    )


def test_an_encoder_that_does_not_fit_stops_the_run(data_dir, pretrained, tmp_path):
    config = recipe(data_dir, 'frozen', init=str(pretrained))
    config.model.width = 8
    with pytest.raises(UserError, match='shape .* set config.model.width'):
        training.train(config, tmp_path / 'wide')
    with pytest.raises(UserError, match='nowhere: can not be read'):
        training.train(recipe(data_dir, 'frozen', init='nowhere'), tmp_path / 'nowhere')
    plain = tmp_path / 'plain'
    config = recipe(data_dir, init=str(pretrained), total_steps=1, eval_every_steps=1)
    config.model.context = False
    training.train(config, plain)  # context bottlenecks dropped, and said to be
    assert results(plain)['init_proof']['tensors'] == 100 and not results(plain)['context']
    with pytest.raises(UserError, match='no context bottlenecks.*--config.model.context=False'):
        training.train(recipe(data_dir, 'frozen', init=str(plain)), tmp_path / 'without')


def test_a_random_encoder_has_no_proof_and_labels_must_fit(data_dir, tmp_path):
    config = recipe(data_dir, 'frozen')
    training.train(config, tmp_path / 'random')
    assert results(tmp_path / 'random')['init_proof'] is None
    config.method.labels = 15
    for protocol in ('finetune', 'frozen'):
        config.protocol = protocol
        with pytest.raises(UserError, match='give --config.method.labels=9'):
            training.train(config, tmp_path / protocol)


def test_patience_counts_evaluations_and_a_nan_is_never_better(tmp_path):
    best = downstream.Best('v', 2)
    for step, value, stops in (
        (1, math.nan, False),
        (2, 0.5, False),
        (3, 0.5, False),
        (4, 0.6, False),
        (5, math.nan, False),
        (6, 0.6, True),
    ):
        best.found(step, {'v': value})
        assert best.waited_enough == stops, step
    assert (best.step, best.numbers) == (4, {'v': 0.6})
    lines = [{'step': s, 'v': v} for s, v in ((1, 0.1), (2, 0.7), (3, None), (4, 0.2), (5, 0.9))]
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, [{'step': 0}, *lines])))
    again = downstream.Best('v', 2)
    again.resume(tmp_path, 4)
    assert (again.step, again.waited_enough) == (2, True)
    without = downstream.Best(None, 2)
    without.resume(tmp_path, 4)
    assert not without.found(5, {})


def test_questions(data_dir):
    data = opening.open_set(recipe(data_dir))
    test = data.splits['test']
    asked = questions.ask(data, ('any finding', 'AP view', 'male', 'Nodule')).splits['test']
    use = np.isin(test.view, ('AP', 'PA')) & np.isin(test.sex, ('M', 'F'))
    np.testing.assert_array_equal(asked.image_ids, test.image_ids[use])
    expected = np.stack(
        [
            1 - test.labels[:, 8],
            test.view == 'AP',
            test.sex == 'M',
            test.labels[:, data.label_names.index('Nodule')],
        ],
        1,
    )[use]
    np.testing.assert_array_equal(asked.labels, expected)
    train = data.splits['train']
    name = data.label_names[
        int(np.argmax(np.minimum.reduce([split.labels.sum(0) for split in data.splits.values()])[FINDINGS]))
    ]
    inside = questions.ask(data, ('AP view',), within=name).splits['train']
    assert len(inside) == train.labels[:, data.label_names.index(name)].sum()
    with pytest.raises(UserError, match="'Nodul' can not be asked of phantom_cxr; it has Card"):
        questions.ask(data, ('Nodul',))


@pytest.mark.parametrize(
    'argument,message',
    [
        ('fraktion=1', 'a name out of dataset, protocol'),
        ('protocol=linear', 'frozen, finetune'),
        ('dataset=mnist', 'expected one of image_folder_cxr, nih'),
        ('size=tiny', 'full, small'),
    ],
)
def test_a_wrong_option_of_the_recipe_is_named(argument, message):
    with pytest.raises(ValueError, match=message):
        classify.get_config(argument)


def test_a_layer_of_a_killed_start_is_never_the_runs(data_dir, pretrained, tmp_path, monkeypatch):
    """Killed between its checkpoint and its results, and started again with another learning rate."""

    def killed(*_):
        raise InterruptedError

    rates = {'first': 0.01, 'again': 0.3}
    config = {
        name: recipe(data_dir, 'frozen', init=str(pretrained), **{'optim.learning_rate': rate})
        for name, rate in rates.items()
    }
    with monkeypatch.context() as patch:
        patch.setattr(run_results, 'write', killed)
        with pytest.raises(InterruptedError):
            training.train(config['first'], tmp_path / 'run')
    old = Run.open(tmp_path / 'run').network().variables['params']['classifier']
    assert not (tmp_path / 'run/results.json').exists()
    for folder in ('run', 'straight'):
        assert training.train(config['again'], tmp_path / folder) == 0
    found, expected = (
        Run.open(tmp_path / folder).network().variables['params']['classifier']
        for folder in ('run', 'straight')
    )
    np.testing.assert_array_equal(found['kernel'], expected['kernel'])
    assert not np.array_equal(found['kernel'], old['kernel'])
    assert len(list((tmp_path / 'run/checkpoints').iterdir())) == 1
