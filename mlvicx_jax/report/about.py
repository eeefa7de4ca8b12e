"""What was run, on what, from where, and where its time went."""

import json
import pathlib
import runpy

from flax.traverse_util import flatten_dict

import mlvicx_jax
from mlvicx_jax.report.content import Block, Facts, Listing, NotRun, Section, Table, Text, count, number, share
from mlvicx_jax.run.goodput import PHASES
from mlvicx_jax.run.record import Run
from mlvicx_jax.terminal import duration

_BASE = pathlib.Path(mlvicx_jax.__file__).parents[1] / 'configs' / 'base.py'
_TASKS = {'pretrain': 'Pretraining', 'classify': 'Classification', 'segment': 'Segmentation'}


def title(run: Run) -> str:
    """Such as: Classification of phantom_cxr, frozen encoder, 1 % of the labels."""
    data = run.config['data']['name']
    if run.task == 'pretrain':
        return f'Pretraining on {data} with {run.config["method"]["name"]}'
    what = f'{data} ({asked(run)})' if asked(run) else data
    labelled = run.config['data']['labelled']['share']
    return f'{_TASKS[run.task]} of {what}, {protocol(run.config["protocol"])}, {share(labelled)} of the labels'


def protocol(name: str) -> str:
    """The words for a protocol."""
    return {'frozen': 'frozen encoder', 'finetune': 'fine-tuned encoder'}.get(name, name)


def what_was_run(run: Run) -> Section:
    """Everything that a number of this page must be cited with."""
    results, config = run.results or {}, run.config
    data = config['data']
    rows = [('task', _TASKS[run.task].lower()), ('method', config['method']['name'])]
    if run.task != 'pretrain':
        rows.append(('protocol', protocol(config['protocol'])))
    rows.append(
        (
            'data set',
            f'{data["name"]}, stored at {data["stored_size"]} px, seen at '
            f'{data["image_size"]} px{_options(data)}',
        )
    )
    rows += [('labels asked for', text)] if (text := asked(run)) else []
    rows += [(f'{name} split', text) for name, text in _splits(run).items()]
    if run.task != 'pretrain':
        rows.append(('label fraction', _fraction(results, data)))
    rows += [
        ('seed', str(config['seed'])),
        ('initial encoder', _init(results, config)),
        (
            'context bottlenecks',
            'kept' if results.get('context', config['model']['context']) else 'none (model.context=False)',
        ),
    ]
    rows.append(('checkpoint', _checkpoint(run)))
    rows += [
        (name, str(results[key]))
        for name, key in (('device', 'device'), ('mlvicx_jax', 'version'))
        if results.get(key) is not None
    ]
    if results.get('images_per_second'):
        rows.append(('speed', f'{results["images_per_second"]:.1f} images/s in training'))
    return Section('What was run', [Facts(rows)])


def unfinished(run: Run) -> Section | None:
    """Says so where a run has no results."""
    if run.results is not None:
        return None
    return Section(
        '',
        [
            Text(
                'This run has no results.json: it has not ended. What it logged so '
                'far follows; no number on this page is a result.',
                'warning',
            )
        ],
    )


def time_spent(run: Run) -> Section | NotRun | None:
    """goodput.json as a table; the seconds of a linear layer are not counted."""
    if run.goodput is None:
        return None if run.is_linear else NotRun('where the time went', 'no goodput.json in the folder')
    seconds = run.goodput['seconds']
    total = sum(seconds.values())
    rows = [
        (phase, f'{spent / total:.1%}' if total else number(None), duration(spent), PHASES.get(phase, ''))
        for phase in [*PHASES, *(seconds.keys() - PHASES.keys())]
        if (spent := seconds.get(phase)) is not None
    ]
    starts = run.goodput.get('starts', 1)
    return Section(
        'Where the time went',
        [
            Table(
                f'Wall time of {count(starts, "start")} of this run.',
                ('phase', 'share', 'time', 'which is'),
                [*rows, ('in all', '', duration(total), '')],
                totals=1,
                left=(3,),
            )
        ],
    )


def configuration(run: Run) -> Section:
    """The config: where it differs from what all recipes share, and whole; without absolute paths."""
    blocks: list[Block] = []
    config = without_paths(run.config)
    if _BASE.is_file():
        base = runpy.run_path(str(_BASE))['get_config']()
        old, new = (flatten_dict(tree, sep='.') for tree in (json.loads(base.to_json_best_effort()), config))
        rows = [
            (name, *(_value(tree.get(name, 'absent')) for tree in (old, new)))
            for name in sorted(old.keys() | new.keys())
            if old.get(name, 'absent') != new.get(name, 'absent')
        ]
        blocks.append(
            Table(
                'Fields that differ from configs/base.py, which all recipes share; the others are as there.',
                ('field', 'base', 'this run'),
                rows,
                left=(1, 2),
            )
        )
    blocks.append(Listing('The whole configuration', json.dumps(config, indent=1, sort_keys=True)))
    return Section('Configuration', blocks)


def asked(run: Run) -> str:
    """'Edema within Pneumonia', where a run asks other than all labels of all images."""
    data = run.config['data']
    names = ', '.join(data.get('questions') or ())
    if not data.get('within'):
        return names
    return f'{names or "all labels"} within {data["within"]}'


def without_paths(tree):
    """A config, or a part of one, with the last name of each absolute path alone: a page can be sent."""
    if isinstance(tree, dict):
        return {name: without_paths(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [without_paths(value) for value in tree]
    if isinstance(tree, str) and (tree.startswith(('/', '~')) or pathlib.PureWindowsPath(tree).is_absolute()):
        return pathlib.PureWindowsPath(tree).name
    return tree


def test_split(run: Run) -> str:
    """The words for what the numbers of a downstream run were made on."""
    size = f' ({_size(run.predictions, "test")})' if run.predictions else ''
    within = f' within {run.config["data"]["within"]}' if run.config['data'].get('within') else ''
    return f'Test split of {run.ended["dataset"]}{within}{size}'


def _splits(run: Run) -> dict[str, str]:
    found, results, arrays = {}, run.results or {}, run.predictions or {}
    hashes = {name: results.get(f'data/{name}_hash') for name in ('train', 'validation', 'test')}
    if hashes['train'] == results.get('labelled_hash'):
        hashes['train'] = None  # told with the label fraction
    if run.task == 'pretrain' and 'eval/split' in results:
        hashes[results['eval/split']] = results.get('data/eval_hash')
    for name, digest in hashes.items():
        parts = []
        if f'{name}_image_ids' in arrays:
            parts.append(_size(arrays, name))
        if digest:
            parts.append(f'SHA-256 of the image ids {digest}')
        if parts:
            found[name] = '; '.join(parts)
    return found


def _size(arrays: dict, split: str) -> str:
    patients = len(set(arrays[f'{split}_patient_ids'].tolist()))
    return f'{count(len(arrays[f"{split}_image_ids"]), "image")} of {count(patients, "patient")}'


def _options(data: dict) -> str:
    options = ', '.join(f'{name} {value}' for name, value in without_paths(data.get('options') or {}).items())
    return f' ({options})' if options else ''


def _fraction(results: dict, data: dict) -> str:
    labelled = data['labelled']
    text = f'{share(results.get("share", labelled["share"]))} of the training labels'
    if 'labelled_images' in results:
        text += f', {count(results["labelled_images"], "image")}'
    drawn = [
        word for word, key in (('stratified', 'stratified'), ('by patient', 'by_patient')) if labelled.get(key)
    ]
    text += f', drawn {" and ".join(drawn)}' if drawn else ''
    digest = results.get('labelled_hash')
    return text + (f'; SHA-256 of their ids {digest}' if digest else '')


def _init(results: dict, config: dict) -> str:
    init = without_paths(results.get('init', config.get('init')) or '')
    if not init:
        return 'random weights'
    proof = results.get('init_proof')
    if not proof:
        return init
    return f'{init}; {count(proof["tensors"], "tensor")} loaded and checked, SHA-256 {proof["sha256"]}'


def _checkpoint(run: Run) -> str:
    if run.results is None or 'step' not in run.results:
        return f'not ended; logged up to step {run.lines[-1]["step"] if run.lines else 0}'
    chosen = ', chosen on the validation split' if run.task != 'pretrain' else ''
    return f'step {run.results["step"]}{chosen}'


def _value(value) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)
