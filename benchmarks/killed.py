"""What is killed: of each task its command, its phases as seen from outside, and what may not be lost."""

import csv
import functools
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from benchmarks import ends
from benchmarks.sessions import ROOT, Session
from mlvicx_jax.run.proof import steps_in

STARTING = 'imports, data, restoring, compilation'
STEPS, SAVE, EVALUATE = 24, 4, 8  # of a run that trains step by step
FILMS, BAD = 2000, 20
BLOCK = 4  # runs of the grid that make a phase
SMALL = {
    'data.options.patients': 25,
    'data.stored_size': 96,
    'data.image_size': 80,
    'data.num_threads': 1,
    'model.width': 4,
    'batch_size': 16,
    'eval.batch_size': 8,
}
STEPWISE = {
    'total_steps': STEPS,
    'checkpoint.every_steps': SAVE,
    'eval_every_steps': EVALUATE,
    'log_every_steps': 1,
}


class Task:
    """A command with a folder of its own under `out`, which the same command goes on in.

    Attributes:
        phases: in their order.
        code: of its exit when it is done.
    """

    phases: tuple[str, ...] = ()
    code = 0

    def __init__(self, out: pathlib.Path):
        self.out = out

    def prepare(self) -> None:
        """Makes what a run of it needs, once."""

    def command(self, name: str) -> list[str]:
        raise NotImplementedError

    def phase(self, session: Session, name: str) -> str:
        raise NotImplementedError

    def kept(self, name: str) -> Any:
        """What an earlier start has left, and the next may not lose."""

    def lost(self, session: Session, name: str, kept) -> list[str]:
        """What a start, which has ended, lost of it."""
        return []

    def differences(self, one: str, other: str) -> list[str]:
        return ends.of_runs(self.out / one, self.out / other)

    def _main(self, recipe: str, name: str, fields: dict) -> list[str]:
        words = [sys.executable, 'main.py', f'--config={recipe}', f'--workdir={self.out / name}']
        return [*words, *_flags(fields | {'data.data_dir': self.out / 'data'})]


class Stepwise(Task):
    """A run that trains step by step."""

    phases = STARTING, 'training', 'a save under way', 'evaluation', 'after the last step'
    fields = SMALL | STEPWISE

    def __init__(self, recipe: str, evaluated: str, out: pathlib.Path):
        super().__init__(out)
        self._recipe, self._evaluated = recipe, evaluated

    def command(self, name):
        return self._main(self._recipe, name, self.fields)

    def phase(self, session, name):
        said, steps = session.said(), session.steps()
        if not steps:
            return STARTING
        if list((self.out / name / 'checkpoints').glob('*tmp*')):
            return 'a save under way'
        if steps[-1] == STEPS:
            return 'after the last step'
        told = said.rfind(self._evaluated) > said.rfind(f'step {steps[-1]}/')
        return 'evaluation' if steps[-1] % EVALUATE == 0 and not told else 'training'

    def kept(self, name):
        return max(steps_in(self.out / name / 'checkpoints'), default=0)

    def lost(self, session, name, kept):
        found, steps = [], session.steps()
        if steps and steps[0] != kept + 1:
            found.append(f'began at step {steps[0]}, the newest checkpoint was of {kept}')
        if steps and kept and f'checkpoints/{kept}\n' not in session.said():
            found.append('did not say what it goes on from')
        return found


class Frozen(Task):
    """Features of a frozen encoder, and a linear layer on them."""

    phases = STARTING, 'features of train', 'features of validation', 'features of test', 'after the features'

    def command(self, name):
        recipe = 'configs/classify.py:dataset=phantom_cxr,size=small,protocol=frozen'
        return self._main(recipe, name, SMALL | {'total_steps': STEPS, 'eval_every_steps': EVALUATE})

    def phase(self, session, name):
        said = session.said()
        if '\nworkdir ' in said and len(self.kept(name)) == len(self.phases) - 2:
            return 'after the features'
        begun = [phase for phase in self.phases if f'{phase}:' in said]
        return begun[-1] if begun else STARTING

    def kept(self, name):
        return {path: path.stat().st_mtime_ns for path in (self.out / 'data/features').glob('*.npz')}

    def lost(self, session, name, kept):
        return [
            f'{path.name} was made again'
            for path, when in self.kept(name).items()
            if when != kept.get(path, when)
        ]


class Grid(Task):
    """One pretraining and 24 frozen runs: 2 encoders, 3 shares, 4 seeds, two runs at a time."""

    phases = (
        'before the first run',
        'pretraining',
        *(f'runs {i + 1} to {i + BLOCK}' for i in range(0, 24, BLOCK)),
        'tables',
    )

    def command(self, name):
        grid = self.out / 'grid.py'
        if not grid.exists():
            grid.write_text(GRID.format(root=str(ROOT), out=str(self.out), overrides=' '.join(_flags(SMALL))))
        return [sys.executable, 'main.py', f'--config={grid}', f'--workdir={self.out / name}']

    def phase(self, session, name):
        folder = self.out / name
        if ' runs in ' not in session.said() or not list(folder.glob('*/*.log')):
            return self.phases[0]
        if not (folder / 'pretrained/mlvicx_0/results.json').exists():
            return self.phases[1]
        return self.phases[2 + len(list(folder.glob('runs/*/results.json'))) // BLOCK]

    def kept(self, name):
        return {
            str(path.relative_to(self.out)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in (self.out / name).glob('*/*/results.json')
        }

    def lost(self, session, name, kept):
        now = self.kept(name)
        found = [f'{path} was made again' for path in kept if now.get(path) != kept[path]]
        logs = {path: path.read_text(errors='replace') for path in (self.out / name).glob('*/*.log')}
        found += [f'{path.name} says {word!r}' for path, log in logs.items() for word in TROUBLE if word in log]
        return found

    def differences(self, one, other):
        return ends.of_grids(self.out / one, self.out / other)


class Predict(Task):
    """2,000 films, one in a hundred of which can not be read."""

    phases = STARTING, 'scoring'
    code = 1  # since films could not be read

    def prepare(self):
        classifier = Stepwise(FINETUNE, EVALUATED, self.out).command('classifier')
        subprocess.run(classifier, cwd=ROOT, check=True, capture_output=True)
        folder, rng = self.out / 'films', np.random.default_rng(0)
        folder.mkdir(exist_ok=True)
        bad = set(rng.choice(FILMS, BAD, replace=False).tolist())
        for i in range(FILMS):
            height, width = rng.integers(32, 97, 2)
            _, png = cv2.imencode('.png', rng.integers(0, 256, (height, width), np.uint8))
            (folder / f'{i:04}.png').write_bytes(png.tobytes()[: 60 if i in bad else None])

    def command(self, name):
        words = ['-m', 'mlvicx_jax.predict', '--workdir', str(self.out / 'classifier'), str(self.out / 'films')]
        (self.out / name).mkdir(exist_ok=True)
        return [sys.executable, *words, '--out', str(self.out / name / 'scores.csv'), '--batch-size', '16']

    def phase(self, session, name):
        return 'scoring' if f'/{FILMS - self._at_start(session)}' in session.said() else STARTING

    def _at_start(self, session):
        told = re.search(
            rf'^(\d+) of {FILMS} images were scored by an earlier start', session.said(), re.MULTILINE
        )
        return int(told[1]) if told else 0

    def kept(self, name):
        rows = [path.read_bytes() for path in (self.out / name).glob('*.partial')]
        return max([rows.count(b'\n') - 1 for rows in rows], default=0)

    def lost(self, session, name, kept):
        begun = self._at_start(session)
        scoring = self.phase(session, name) == 'scoring'
        return [f'went on from {begun} of {kept} rows'] if scoring and begun < kept else []

    def differences(self, one, other):
        tables = [(self.out / name / 'scores.csv').read_bytes() for name in (one, other)]
        rows = list(csv.DictReader(tables[1].decode().splitlines()))
        found = ['scores.csv differs'] if tables[0] != tables[1] else []
        bad = sum(bool(row['error']) for row in rows)
        return found + ([f'{len(rows)} rows, {bad} bad'] if (len(rows), bad) != (FILMS, BAD) else [])


class Pretraining(Stepwise):
    """As `Stepwise`, with the evaluation of the initial encoder first; the recipe is small by itself."""

    phases = STARTING, 'initial evaluation', *Stepwise.phases[1:]
    fields = STEPWISE

    def phase(self, session, name):
        said = session.said()
        if (
            not session.steps()
            and 'evaluating the initial encoder' in said
            and 'BatchNorm uncalibrated' not in said
        ):
            return 'initial evaluation'
        return super().phase(session, name)


GRID = """
from configs import tables

def get_config():
    config = tables.get_config()
    grid = config.grid
    grid.pretrain = {{'mlvicx': '{root}/tests/tiny.py'}}
    grid.sets = {{'phantom': 'configs/classify.py:dataset=phantom_cxr,size=small'}}
    grid.protocols = ('frozen',)
    grid.fractions.classify = (0.3, 0.6, 1.0)
    grid.seeds, grid.pretrain_seeds = (0, 1, 2, 3), (0,)
    grid.parallel = 2
    grid.overrides = '--config.data.data_dir={out}/data --config.total_steps=8 {overrides}'
    return config
"""
TROUBLE = 'is damaged', 'Traceback', 'error: '  # what no start may say, however often it was killed
EVALUATED = 'validation AUROC'
FINETUNE = 'configs/classify.py:dataset=phantom_cxr,size=small,protocol=finetune'
SEGMENT = 'configs/segment.py:dataset=phantom_cxr,structures=heart,size=small'
TASKS: dict[str, Callable[[pathlib.Path], Task]] = {
    'pretrain': functools.partial(Pretraining, 'tests/tiny.py', 'frozen encoder'),
    'frozen': Frozen,
    'finetune': functools.partial(Stepwise, FINETUNE, EVALUATED),
    'segment': functools.partial(Stepwise, SEGMENT, 'validation Dice'),
    'grid': Grid,
    'predict': Predict,
}


def _flags(fields: dict) -> list[str]:
    return [f'--config.{field}={value}' for field, value in fields.items()]
