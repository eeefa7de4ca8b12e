"""results.json: what it holds, by task; the same check when it is written and when it is read."""

import pathlib
from typing import Any, NotRequired, TypedDict

from mlvicx_jax.data import NO_FINDING
from mlvicx_jax.errors import UserError
from mlvicx_jax.files import read_json, without_nan, write_json
from mlvicx_jax.run.schema import mismatch, shown

FILE = 'results.json'
_WAY_OUT = 'restore it, or delete it and run its command again'

Number = float | None  # None: not available
Interval = tuple[Number, Number] | None
ByName = dict[str, Number]  # of a label

# Every run. Beside these there may be more numbers: train/*, probe/*, goodput/*, time/*.
Common = TypedDict(
    'Common',
    {
        'step': int,
        'task': NotRequired[str],
        'labels_without_score': NotRequired[list[str]],  # of which training has one class alone
        'images_per_second': NotRequired[Number],
        'device': NotRequired[str],
        'version': NotRequired[str],
        'code': NotRequired[dict[str, str]],  # {first step: sha256 of the program from there on}
        'data/train_hash': NotRequired[str],
    },
)


class Proof(TypedDict):
    """Which encoder a run began with."""

    tensors: int
    sha256: str


_Readings = TypedDict(
    '_Readings',
    {
        'label_names': NotRequired[list[str]],
        'eval/split': NotRequired[str],
        'data/eval_hash': NotRequired[str],
        'eval/readout': NotRequired[str],
        'line_to_beat': NotRequired[str],  # the baseline with the best probe
        'probe/gain': NotRequired[Number],  # over it, with its interval over patients
        'probe/gain_low': NotRequired[Number],
        'probe/gain_high': NotRequired[Number],
        'probe/auroc': NotRequired[Number],
        'probe/auroc_pixels': NotRequired[Number],
        'knn/auroc_pixels': NotRequired[Number],
        'probe/auroc_init': NotRequired[Number],
        'probe/auroc_init_uncalibrated': NotRequired[Number],
        'knn/auroc': NotRequired[Number],
        'knn/auroc_init': NotRequired[Number],
        'knn/auroc_init_uncalibrated': NotRequired[Number],
    },
)
_Labelled = TypedDict(
    '_Labelled',
    {
        'protocol': str,
        'dataset': str,
        'share': float,
        'labelled_images': int,
        'labelled_hash': str,
        'seed': int,
        'init': str,
        'init_proof': Proof | None,
        'context': bool,
        'data/validation_hash': str,
        'data/test_hash': str,
    },
)


class Pretraining(Common, _Readings):
    """Where read-outs of the encoder were asked for, the newest."""


class Downstream(Common, _Labelled):
    """Of a classification or segmentation: on which labels, from which encoder."""


class Head(TypedDict):
    """Test numbers of one classifier, by label."""

    auroc: ByName
    auroc_interval: NotRequired[dict[str, Interval]]
    auprc: NotRequired[ByName]
    auprc_interval: NotRequired[dict[str, Interval]]
    f1: NotRequired[ByName]
    accuracy: NotRequired[ByName]
    calibration_error: NotRequired[ByName]
    means: ByName  # 'mean14' of NIH's findings, 'mean15' with No Finding
    means_interval: NotRequired[dict[str, Interval]]
    not_available: list[str]
    few: NotRequired[dict[str, str]]  # labels that few test patients have: '4 positive patients'
    no_interval: NotRequired[dict[str, str]]  # labels and means without one, and why


class Structure(TypedDict):
    """Test numbers of one structure."""

    positives: NotRequired[int]  # images that show it
    patients: NotRequired[int]  # whose images these are
    dice_positives: Number
    dice_positives_interval: NotRequired[Interval]
    dice_all: Number
    dice_all_interval: NotRequired[Interval]
    iou_positives: Number
    iou_positives_interval: NotRequired[Interval]
    iou_all: NotRequired[Number]
    iou_all_interval: NotRequired[Interval]


class Classification(Downstream):
    """`primary` is the head of `test` whose numbers are the run's."""

    label_names: list[str]
    primary: str
    test: dict[str, Head]


class Segmentation(Downstream):
    """`test` has the numbers of each structure."""

    label_names: NotRequired[list[str]]
    test: dict[str, Structure]


TASKS = {'pretrain': Pretraining, 'classify': Classification, 'segment': Segmentation}


def write(workdir, task: str, content: dict[str, Any]) -> None:
    """Writes results.json; a number that is not finite is written as null.

    Raises:
        ValueError: the content is not what `TASKS` says: a mistake of the program.
    """
    content = without_nan(content)
    if found := problem(task, content):
        raise ValueError(f'results of {task}: {found}')
    write_json(pathlib.Path(workdir) / FILE, content)


def read(workdir, config: dict[str, Any]) -> dict[str, Any] | None:
    """results.json of a run, as `TASKS` says of its task; None where it has not ended.

    Args:
        config: the content of its config.json.

    Raises:
        UserError: the file is damaged, or another run's.
    """
    path = pathlib.Path(workdir) / FILE
    if not path.exists():
        return None
    content = read_json(path, _WAY_OUT)
    if found := problem(config['task'], content) or _other_run(config, content):
        raise UserError(f'{path}: {found}; {_WAY_OUT}')
    return content


def problem(task: str, content: dict[str, Any]) -> str | None:
    """What is wrong with the results of a task, or None."""
    if content.get('task', task) != task:
        return f'task is {shown(content["task"])}, config.json has {task}'
    found = mismatch(content, TASKS[task])
    if found:
        return found
    if task == 'classify':
        return _classification_problem(content)
    if task == 'segment' and not content['test']:
        return 'test names no structure'
    if task == 'pretrain' and content.get('probe/auroc') is not None and 'eval/split' not in content:
        return 'eval/split is missing'
    numbers = {name: value for name, value in content.items() if name.startswith('probe/auroc/')}
    return mismatch(numbers, ByName)


def _other_run(config: dict[str, Any], content: dict[str, Any]) -> str | None:
    """How results that are well formed contradict config.json."""
    if config['task'] == 'pretrain':
        return None
    asked = {
        'protocol': config['protocol'],
        'seed': config['seed'],
        'share': config['data']['labelled']['share'],
    }
    return next(
        (
            f'{name} is {shown(content[name])}, config.json has {shown(value)}'
            for name, value in asked.items()
            if content[name] != value
        ),
        None,
    )


def _classification_problem(content: dict[str, Any]) -> str | None:
    """What one field says against another."""
    names, test = content['label_names'], content['test']
    if len(set(names)) < len(names) or not names:
        return f'label_names is {shown(names)}, expected names, each once'
    if content['primary'] not in test:
        return f'test.{content["primary"]}, which "primary" names, is missing'
    for head, numbers in test.items():
        for measure in ('auroc', 'auprc', 'f1', 'accuracy', 'calibration_error'):
            if numbers.get(measure, numbers['auroc']).keys() != set(names):
                return f'test.{head}.{measure} is not of the labels that label_names has'
        means = {f'mean{len(names)}', f'mean{len(set(names) - {NO_FINDING})}'}
        if numbers['means'].keys() != means:
            return f'test.{head}.means has {shown(sorted(numbers["means"]))}, expected {sorted(means)}'
    return None
