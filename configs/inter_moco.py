"""Inter_MoCo (Kaku et al., NeurIPS 2021) as its released code trains it, on ChestX-ray14 with a ResNet-18.

  python main.py --config=configs/inter_moco.py --config.data.manual_dir=DIR

Intermediate maps are compared by their squared error; the Barlow variant's script for radiographs never
starts its training. Though called MoCo v2, the script has MoCo's first head and temperature. Those of the
second version: --config.method.temperature=0.2 --config.method.widths='(512,128)'
Views are the whole frame, turned by up to 30 degrees: maps of two crops would show different anatomy.
The learning rate is 0.03 at any batch and stays there, as in the code. The code's images have 512 px, and
their blur the same 0.1 to 2 pixels, which here are pixels of a view of 224:
--config.data.stored_size=512 --config.data.image_size=512 --config.views.first.blur_sigma='(0.044,0.875)',
and config.views.second's
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = 'nih_chestxray14'
    config.model.update(context=False, zero_init_residual=True)
    config.method = ConfigDict(
        dict(
            name='inter_moco',
            widths=(128,),
            queue=65536,
            momentum=0.999,
            temperature=0.07,
            norm_groups=1,
            stage_weights=(0.25, 0.25, 0.25, 0.25),
        )
    )
    base.moco_v2_views(config)
    for view in (config.views.first, config.views.second):
        view.update(area=(1.0, 1.0), flip=0.0, rotation=30.0)
    config.optim.update(
        name='sgd',
        learning_rate=0.03,
        scale_with_batch=False,
        weight_decay=1e-4,
        warmup_epochs=0.0,
        final_factor=1.0,
    )
    return config


def small(config):
    """For configs/quickstart.py."""
    config.method.update(queue=1024, momentum=0.99)  # views of the whole frame stay
