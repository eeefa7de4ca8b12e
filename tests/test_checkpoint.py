"""A checkpoint is read back as it was written, or not at all; a run keeps to its own config."""

import contextlib
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from mlvicx_jax import parallel, start, train
from mlvicx_jax.errors import UserError
from mlvicx_jax.run import checkpoints as checkpoints_module
from mlvicx_jax.run import folder as workdir
from mlvicx_jax.run.checkpoints import Checkpoints
from mlvicx_jax.run.proof import fingerprint
from mlvicx_jax.state import TrainState


def state_at(step, offset=0.0):
    """A small state of every kind of leaf, on four devices."""
    rng = np.random.default_rng(step)
    w = rng.normal(size=(64, 32)).astype(np.float32) + np.float32(offset)
    state = TrainState(
        np.int32(step),
        np.int32(0),
        {'encoder': {'w': w, 'b': w[0]}},
        {'encoder': {'mean': w[1]}},
        {'trace': w * 2, 'count': np.int32(step)},
        {'queue': w[:2]},
    )
    return jax.device_put(state, parallel.replicated(parallel.create_mesh(4)))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """A folder with checkpoints of steps 1, 2 and 3."""
    folder = tmp_path_factory.mktemp('run') / 'checkpoints'
    checkpoints = Checkpoints(folder, 1, 3, 0, 'hash')
    for step in (1, 2, 3):
        checkpoints.save(state_at(step))
    checkpoints.wait()
    checkpoints.close()
    return folder


@pytest.fixture
def copy(written, tmp_path):
    shutil.copytree(written, tmp_path / 'checkpoints')
    return tmp_path / 'checkpoints'


def restore(folder, data_hash='hash'):
    checkpoints = Checkpoints(folder, 1, 3, 0, data_hash)
    try:
        return checkpoints.restore(state_at(0))
    finally:
        checkpoints.close()


def files(folder):
    return sorted(path for path in pathlib.Path(folder).rglob('*') if path.is_file() and path.stat().st_size)


def test_restores_the_newest_with_its_types_and_on_its_devices(copy):
    found, expected = restore(copy), state_at(3)
    assert same(found, expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert (a.dtype, a.shape, a.sharding) == (b.dtype, b.shape, b.sharding)
    assert len(found.step.sharding.device_set) == 4


def test_nothing_saved_is_no_state(tmp_path):
    assert restore(tmp_path / 'checkpoints') is None


def test_keeps_the_last_and_every_nth(tmp_path):
    checkpoints = Checkpoints(tmp_path / 'checkpoints', 2, 2, 4, 'hash')
    assert [step for step in range(1, 11) if checkpoints.due(step)] == [2, 4, 6, 8, 10]
    for step in (2, 4, 6, 8, 10):
        checkpoints.save(state_at(step))
    checkpoints.wait()
    checkpoints.close()
    assert sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir()) == [4, 8, 10]
    assert not Checkpoints(tmp_path / 'never', 0, 1, 0, '').due(5)


def test_a_state_that_reads_well_but_differs_is_damaged(copy, caplog):
    other = Checkpoints(copy.with_name('other'), 1, 3, 0, 'hash')
    other.save(state_at(3, offset=1e-3))
    other.wait()
    other.close()
    shutil.rmtree(copy / '3/state')
    shutil.copytree(copy.with_name('other') / '3/state', copy / '3/state')
    assert same(restore(copy), state_at(2))
    assert f'{copy / "3"} is damaged' in caplog.text and 'fingerprint' in caplog.text
    assert files(copy.with_name('checkpoints_damaged') / '3')


def test_all_damaged_stops_the_run_and_deletes_nothing(copy):
    for path in files(copy):
        if path.parent.name == 'd':
            os.truncate(path, path.stat().st_size // 2)
    before = len(files(copy))
    with pytest.raises(UserError, match=r'\[3, 2, 1\].*could be read'):
        restore(copy)
    assert len(files(copy.with_name('checkpoints_damaged'))) == before
    # And the same command again must not start afresh either.
    with pytest.raises(UserError, match='checkpoints_damaged'):
        restore(copy)


def test_other_training_images_are_refused_and_the_checkpoint_kept(copy):
    with pytest.raises(UserError, match='other'):
        restore(copy, data_hash='other')
    assert (copy / '3').exists()


def test_a_save_that_fails_names_the_complete_checkpoints(copy, monkeypatch):
    checkpoints = Checkpoints(copy, 1, 5, 0, 'hash')
    monkeypatch.setattr(
        checkpoints._manager,
        'save',
        lambda *a, **k: (_ for _ in ()).throw(OSError(28, 'No space left on device')),
    )
    with pytest.raises(UserError, match=r'step 4.*No space left.*\[1, 2, 3\]'):
        checkpoints.save(state_at(4))
    checkpoints.close()


def test_fingerprint_sees_every_flipped_bit():
    tree = {
        'a': jnp.arange(6, dtype=jnp.float32).reshape(2, 3),
        'b': jnp.int32(7),
        'c': jnp.zeros(40, jnp.float32),
    }
    whole = int(fingerprint(tree))
    words = {name: np.asarray(x).view(np.uint32) for name, x in tree.items()}
    for name, word in words.items():
        for bit in (0, 1, 22, 30, 31):
            flipped = word.copy().reshape(-1)
            flipped[-1] ^= np.uint32(1 << bit)
            flipped = flipped.reshape(word.shape).view(tree[name].dtype)
            assert int(fingerprint(tree | {name: flipped})) != whole, (name, bit)
    swapped = tree | {'a': tree['a'][::-1]}
    assert int(fingerprint(swapped)) != whole


def begin(folder):
    """Makes `folder` that of a run of the tiny config that has logged something."""
    workdir.claim(folder, tiny.get_config())
    (folder / 'metrics.jsonl').write_text('{"step": 0}\n')


def test_a_run_that_logged_nothing_leaves_its_folder_free(tmp_path):
    workdir.claim(tmp_path, tiny.get_config())
    workdir.claim(tmp_path, tiny.get_config('released'))


CHANGES = {
    'method.widths': (16, 16, 32),
    'model.width': 8,
    'data.image_size': 96,
    'data.options.patients': 30,
    'views.first.rotation': 5.0,
    'seed': 4,
    'batch_size': 32,
}


@pytest.mark.parametrize('field,value', CHANGES.items(), ids=CHANGES.keys())
def test_a_resume_with_another_config_is_refused_with_the_difference(tmp_path, monkeypatch, field, value):
    begin(tmp_path)
    config = tiny.get_config()
    old = dict(config.items())  # for the message
    for part in field.split('.'):
        old = old[part]
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    before = (tmp_path / 'config.json').read_bytes()
    monkeypatch.setattr(start, 'open_data', lambda config: pytest.fail('the run went on'))
    with pytest.raises(UserError) as caught:
        train.train(config, tmp_path)
    as_list = lambda x: list(x) if isinstance(x, tuple) else x
    assert f'config.{field}: {as_list(old)} -> {as_list(value)}' in str(caught.value)
    assert '--workdir' in str(caught.value)
    assert (tmp_path / 'config.json').read_bytes() == before


def test_an_option_that_the_run_did_not_have_is_refused(tmp_path):
    begin(tmp_path)
    config = tiny.get_config()
    with config.unlocked():
        config.data.options.seed = 5
    with pytest.raises(UserError, match='config.data.options.seed: absent -> 5'):
        workdir.claim(tmp_path, config)


def test_a_run_from_before_a_field_goes_on_with_what_it_did_and_not_with_another(tmp_path):
    begin(tmp_path)
    path = tmp_path / 'config.json'
    older = json.loads(path.read_text())
    del older['model']['zero_init_residual'], older['model']['remat'], older['init']
    path.write_text(json.dumps(older))
    config = tiny.get_config()
    config.init = 'weights.pth'
    with pytest.raises(UserError, match='config.init:  -> weights.pth'):
        workdir.claim(tmp_path, config)
    workdir.claim(tmp_path, tiny.get_config())


def test_what_changes_no_number_may_change_and_is_said(tmp_path, capsys):
    begin(tmp_path)
    config = tiny.get_config()
    config.data.data_dir, config.log_every_steps = '/elsewhere', 7
    workdir.claim(tmp_path, config)
    assert 'config.log_every_steps: 1 -> 7' in capsys.readouterr().out


def test_checkpoints_without_their_config_are_not_taken_over(tmp_path):
    (tmp_path / 'checkpoints/5').mkdir(parents=True)
    with pytest.raises(UserError, match='no config.json'):
        workdir.claim(tmp_path, tiny.get_config())


def test_a_finished_run_keeps_the_config_that_its_results_are_of(tmp_path):
    begin(tmp_path)
    config = tiny.get_config()
    config.optim.learning_rate = 7.0
    workdir.claim(tmp_path, config)  # a run under way may go on with another rate
    workdir.claim(tmp_path, tiny.get_config())
    (tmp_path / 'results.json').write_text('{}')
    with pytest.raises(UserError, match='config.optim.learning_rate: .* -> 7.0'):
        workdir.claim(tmp_path, config)
    longer = tiny.get_config()
    longer.total_steps *= 2
    workdir.claim(tmp_path, longer)


def test_a_run_whose_checkpoints_are_gone_does_not_start_anew(tmp_path):
    begin(tmp_path)
    (tmp_path / 'goodput.json').write_text('{}')  # the training loop writes it when it has its checkpoints
    with pytest.raises(UserError, match='checkpoints is gone'):
        workdir.claim(tmp_path, tiny.get_config())
    (tmp_path / 'checkpoints').mkdir()  # killed before the first save
    workdir.claim(tmp_path, tiny.get_config())


def test_results_without_their_log_are_still_a_run(tmp_path):
    begin(tmp_path)
    (tmp_path / 'metrics.jsonl').rename(tmp_path / 'results.json')
    config = tiny.get_config()
    config.seed = 5
    with pytest.raises(UserError, match='config.seed: 2 -> 5'):
        workdir.claim(tmp_path, config)


@pytest.mark.parametrize('content', ['[]', '{"data": 3}', '{', '{"method": {}}', '7'])
def test_a_damaged_config_of_a_run_is_one_line(content, tmp_path):
    begin(tmp_path)
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(UserError, match='config.json: .*--workdir'):
        workdir.claim(tmp_path, tiny.get_config())


def opened(folder, identity=None):
    return contextlib.closing(Checkpoints(folder, 1, 3, 0, 'hash', identity=identity))


def test_a_checkpoint_of_another_run_is_not_resumed_and_not_touched(tmp_path):
    ours, theirs = {'seed': 2, 'method.name': 'mlvicx'}, {'seed': 5, 'method.name': 'mlvicx'}
    with opened(tmp_path, ours) as checkpoints:
        checkpoints.save(state_at(1))
        checkpoints.wait()
    with opened(tmp_path, theirs) as checkpoints, pytest.raises(UserError, match='config.seed: 2 -> 5'):
        checkpoints.restore(state_at(0))
    later = ours | {'model.zero_init_residual': False}  # a field that the program got since
    with opened(tmp_path, later) as checkpoints:
        assert same(checkpoints.restore(state_at(0)), state_at(1))
    with opened(tmp_path) as checkpoints:  # a reader that knows no run
        assert same(checkpoints.restore(state_at(0)), state_at(1))


def test_a_checkpoint_of_the_same_step_with_another_state_is_replaced(tmp_path):
    """A frozen run that was killed before its results, and started again with another learning rate."""
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_at(3))
        checkpoints.wait()
    before = (tmp_path / '3').stat().st_ino
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_at(3))
        checkpoints.wait()
    assert (tmp_path / '3').stat().st_ino == before  # the same state: left as it is
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_at(3, offset=1))
        checkpoints.wait()
    assert same(restore(tmp_path), state_at(3, offset=1))


def test_code_that_changed_is_said_once_and_recorded(tmp_path, monkeypatch, capsys):
    def start(code, step):
        monkeypatch.setattr(checkpoints_module, 'code_hash', lambda: code * 64)
        with opened(tmp_path) as checkpoints:
            checkpoints.restore(state_at(0))
            checkpoints.restore(state_at(0), step - 1 or None)  # as a run does for its best step
            checkpoints.save(state_at(step))
            checkpoints.wait()
            return {step: code[0] for step, code in checkpoints.code.items()}, capsys.readouterr().out

    assert start('a', 1) == ({'0': 'a'}, '')
    assert start('a', 2) == ({'0': 'a'}, '')
    code, said = start('b', 3)
    assert code == {'0': 'a', '2': 'b'}
    assert said.count('\n') == 1 and f'code {"a" * 12}, now {"b" * 12}' in said
    assert start('b', 4) == ({'0': 'a', '2': 'b'}, '')


@pytest.mark.parametrize('name', ['²', '٣', '-1', '1_0', 'x'])
def test_a_folder_whose_name_is_no_step_stops_no_run(name, copy):
    (copy / name).mkdir()
    (copy / name / 'file').write_text('')
    assert same(restore(copy), state_at(3))
