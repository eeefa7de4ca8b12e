"""Finished downstream runs made up: results.json and predictions.npz as a run leaves them."""

import json
import pathlib

import numpy as np

from mlvicx_jax.grid import tables

LABELS = ('Nodule', 'Cardiomegaly', 'No Finding')


def write_run(
    folder,
    cell,
    values,
    labels=LABELS,
    *,
    dataset='phantom_cxr',
    test_hash='t' * 64,
    labelled_hash=None,
    sha256=None,
    truth=1,
    **changed,
):
    """Writes a run of `cell`; `values` are the AUROC of each label, or the Dice of each structure.

    A value of None is not available. Accuracy is the AUROC less 0.1, AUPRC less 0.2.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ids = np.array([f'image{i}' for i in range(4)])
    results = {
        'task': cell.task,
        'protocol': cell.protocol,
        'dataset': dataset,
        'share': cell.share,
        'labelled_images': 40,
        'labelled_hash': labelled_hash or f'part{cell.share}_{cell.seed}',
        'seed': cell.seed,
        'init': '' if cell.method == 'random' else f'workdirs/{cell.method}',
        'init_proof': None
        if cell.method == 'random'
        else {'tensors': 122, 'sha256': sha256 or f'{cell.method}{cell.seed}'},
        'context': True,
        'step': 7,
        'device': 'cpu',
        'version': '0',
        'data/train_hash': 'n' * 64,
        'data/validation_hash': 'v' * 64,
        'data/test_hash': test_hash,
    }
    matrix = np.full((4, len(labels)), truth, np.uint8)
    if cell.task == 'classify':
        findings = [values[i] for i, label in enumerate(labels) if label != 'No Finding']
        means = {f'mean{len(some)}': _mean(some) for some in (findings, values)}
        head = {
            metric: {label: value if value is None else value - less for label, value in zip(labels, values)}
            for metric, less in (('auroc', 0), ('accuracy', 0.1), ('auprc', 0.2))
        }
        results |= {
            'primary': 'linear',
            'validation/auroc': 0.5,
            'test': {
                'knn': {'auroc': dict.fromkeys(labels, 0.111), 'means': {}, 'not_available': []},
                'linear': head
                | {
                    'means': means,
                    'not_available': [label for label, value in zip(labels, values) if value is None],
                },
            },
        }
        arrays = {'label_names': np.array(labels), 'test_image_ids': ids, 'test_labels': matrix}
    else:
        results['test'] = {
            label: {'dice_positives': value, 'dice_all': value + 0.2, 'iou_positives': value - 0.1}
            for label, value in zip(labels, values)
        }
        arrays = {'structures': np.array(labels), 'test_image_ids': ids, 'test_has': matrix.astype(bool)}
    np.savez(folder / 'predictions.npz', **arrays)
    (folder / 'results.json').write_text(json.dumps(results | changed))
    return tables.read_run(folder, cell)


def _mean(values):
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
