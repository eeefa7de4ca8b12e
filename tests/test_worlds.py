"""What people have, from the folder to embeddings: pretrained on for ten steps, then scored."""

import csv

import pytest
import worlds
from ml_collections import ConfigDict

import tiny
from configs import base
from mlvicx_jax import train
from mlvicx_jax.commands import predict


@pytest.mark.slow
@pytest.mark.parametrize('world', worlds.WORLDS)
def test_a_world_is_pretrained_on_and_scored(tmp_path, world):
    folder, options = worlds.WORLDS[world](tmp_path / 'raw')
    config = tiny.get_config()
    base.duration(config, 'total', steps=10)
    config.batch_size = 8
    config.data.update(name='image_folder_cxr', data_dir=str(tmp_path / 'data'), manual_dir=str(folder))
    config.data.options = ConfigDict(options)
    config.data.validation_fraction = 0.2
    assert train.train(config, tmp_path / 'run') == 0
    out = tmp_path / 'embeddings.csv'
    assert predict.predict(tmp_path / 'run', [folder], out, embeddings='pooled', batch_size=8) == 0
    with out.open(newline='') as file:
        header, *rows = csv.reader(file)
    assert len(rows) >= 16 and len({tuple(row[1:]) for row in rows}) == len(rows)
    assert header[:2] == ['path', 'e0'] and all(float(row[1]) is not None for row in rows)
