"""Whether the records of a prepared set are still those that a run was trained on."""

import hashlib
import json
import os

import numpy as np
import tensorflow_datasets as tfds

from mlvicx_jax.data.source import RadiographSet

LOOKED_AT = 64  # images of each split


def records_hash(data: RadiographSet) -> str:
    """SHA-256 of what tells a set's records from others that hold images of the same ids.

    Of all labels, of the splits' sizes in records and bytes as they were when the set was prepared,
    of the names and sizes of the record files, and of the encoded images and masks of `LOOKED_AT`
    records spread evenly over each split. Not of every byte, which on a large set would cost minutes
    at each start: what escapes is images exchanged for others of just the same encoded size, if they
    lie between those that are read.
    """
    builder = tfds.builder_from_directory(data.folder)
    files = {
        os.path.basename(path): os.path.getsize(path)
        for split in builder.info.splits.values()
        for path in split.filepaths
    }
    sizes = {name: (split.num_examples, split.num_bytes) for name, split in builder.info.splits.items()}
    digest = hashlib.sha256(json.dumps([files, sizes], sort_keys=True).encode())
    for _, split in sorted(data.splits.items()):
        chosen = np.unique(np.linspace(0, len(split) - 1, LOOKED_AT).astype(int))
        digest.update(split.labels.tobytes())
        for position in chosen:
            for _, value in sorted(split.record(position).items()):
                if isinstance(value, bytes):
                    digest.update(hashlib.sha256(value).digest())
    return digest.hexdigest()
