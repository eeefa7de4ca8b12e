"""Supervised classification of ChestX-ray14's 14 findings and No Finding, ResNet-18 from random weights.

  python main.py --config=configs/supervised.py --config.data.manual_dir=DIR

No one paper's recipe. Views (crop of area 0.08 to 1, flip, rotation by up to 7 degrees), Adam with 2e-4 and
no weight decay are those of a published benchmark that trains from random weights too (arXiv:2108.05979,
BenchmarkTransferLearning). It halves the rate when the validation loss stands still and stops early; here
the epochs are fixed and the rate falls as a cosine. It leaves out No Finding and has batches of 32; here
they are of 64, as in the other recipes, and the rate is not scaled to that.
Another data set: --config.data.name=...
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = 'nih_chestxray14'
    base.duration(config, 'total', epochs=50)
    config.model.context = False
    # labels: 0 is as many as the data has.
    config.method = ConfigDict(dict(name='supervised', labels=0, readout='pooled'))
    config.views.first.update(rotation=7.0, jitter_probability=0.0, blur_probability=0.0)
    del config.views.second
    config.optim.update(
        name='adamw',
        learning_rate=2e-4,
        scale_with_batch=False,
        weight_decay=0.0,
        warmup_epochs=0.0,
        final_factor=0.0,
    )
    return config
