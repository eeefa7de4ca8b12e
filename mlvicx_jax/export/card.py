"""The model card: README.md in the Hugging Face layout."""

from mlvicx_jax import __version__

_USE = {
    'torchvision': """```python
import torch, torchvision
from safetensors.torch import load_file

encoder = torchvision.models.resnet18()
encoder.load_state_dict(load_file('model.safetensors'), strict=True)
encoder.fc = torch.nn.Identity()
encoder.eval()
```

`fc.weight` and `fc.bias` are zeros, there only so that `strict=True` finds every key.

`mlvicx_torch.py` beside it needs no torchvision and has the preprocessing:""",
    'mlvicx': '`mlvicx_torch.py` needs torch and safetensors, nothing else:',
    'onnx': """```python
import onnxruntime

session = onnxruntime.InferenceSession('model.onnx')
names = [output.name for output in session.get_outputs()]
features = dict(zip(names, session.run(names, {{'image': images}})))
```

Opset {opset}. `images` are float32 [n, 3, {size}, {size}], standardised as below; their number and size
are free.""",
    'flax': """`model.safetensors` holds the variables, their names joined by `/`:

```python
import jax
from flax.traverse_util import unflatten_dict
from mlvicx_jax.models.resnet import ResNet18
from safetensors.numpy import load_file

variables = unflatten_dict(load_file('model.safetensors'), sep='/')
encoder = ResNet18(width={width}, context={context}, reduction={reduction}, axis_name=None)
features = encoder.apply(variables, images)   # standardised float32 [n, {size}, {size}, 3]
```""",
}

_TORCH = """
```python
import mlvicx_torch
from PIL import Image

encoder = mlvicx_torch.load('.')
features = encoder(mlvicx_torch.preprocess(Image.open('radiograph.png'), encoder.image_size))
features['pooled']   # [1, {pooled}]; also stem, stage1, stage2, stage3, stage4
```"""


def card(trained, evaluation: dict, form: str, config: dict, proof: dict, loss: dict | None, what: str) -> str:
    """README.md of an export.

    Args:
        trained: the `run.record.Trained` that was exported.
        evaluation: numbers of its run, with their `step`; {} where there are none.
        form: the format's name.
        config: the content of config.json.
        proof: differences by feature, see `folder.compare`.
        loss: what the context bottlenecks' absence costs; None where they are there.
        what: 'encoder' or 'all'.
    """
    recipe, pre = config['recipe'], config['preprocessing']
    method, data = recipe['method'], recipe['data']
    use = _USE[form] + (_TORCH if form in ('torchvision', 'mlvicx') else '')
    use = use.format(size=pre['size'], pooled=config['features']['pooled'], **config)
    return f"""---
library_name: {dict(onnx='onnx', flax='flax').get(form, 'pytorch')}
pipeline_tag: image-feature-extraction
tags:
- chest-x-ray
- self-supervised-learning
- resnet-18
- {method['name']}
---

# ResNet-18 for chest radiographs, pretrained with {method['name']}

{_structure(config)} Pretrained with mlvicx_jax \
{__version__}, method `{method['name']}`{_source(method)}, step {trained.step}.
{_context(loss)}
## Use

{use}
{_heads(what)}
## Input

{pre['input'].capitalize()}; {pre['resize']}, size {pre['size']}; times 1/255; {pre['channels']}; \
minus mean {tuple(pre['mean'])}, divided by {tuple(pre['std'])}. In training the films were first \
stored at {data['stored_size']} px (area average). Other normalisations give other features.

## Training

{_training(trained, recipe)}

Everything else is in `config.json` under `recipe`.

## Results

{_results(trained, evaluation)}

## Exported against original

On 16 procedural radiographs at {pre['size']} px, in float32, evaluation mode; the export refuses \
above 1e-4 (times the largest entry where that is above 1).

| feature | largest difference | least cosine | largest entry |
|---|---|---|---|
{_proof(proof)}

Running variances are the biased ones (Flax's); PyTorch would have collected the unbiased ones. In \
evaluation mode both divide by the number they are given.

## Intended use and limits

Research on representations of frontal chest radiographs. Not a medical device, not for diagnosis, \
triage or any decision about a patient.

- Learned from one source ({data['name']}); other hospitals, machines, children, lateral films and \
films that were cropped, inverted or annotated differently are outside it.
- Self-supervised features also hold view, sex, age, devices and machine, and a classifier on them \
may answer from these. Test by subgroup and on a second source.
- Labels of public sets are often mined from reports; the figures above inherit their errors.

## Licence

The program that made these weights, mlvicx_jax, is Apache-2.0. The weights themselves have no licence \
yet: whoever publishes them chooses one that the terms of the training data (`{data['name']}`) allow, and \
adds it to the first lines of this file as `license: NAME`.
"""


def _training(trained, recipe: dict) -> str:
    data = recipe['data']
    return f"""| | |
|---|---|
| data | `{data['name']}`{_options(data)}, training split of {_share(data)} |
| training split | sha256 of its sorted image ids `{trained.data_hash}` |
| method | {_values(recipe['method'])} |
| optimiser | {_values(recipe['optim'])} |
| batch size, steps | {recipe['batch_size']}, {trained.step} |
| activations | {recipe['dtype']} |
| initial weights | {recipe.get('init') or 'random'} |
| seed | {recipe['seed']} |"""


def _structure(config) -> str:
    bottlenecks = (
        f'a context bottleneck (CBAM, reduction {config["reduction"]}) in line at each of its five levels'
        if config['context']
        else 'no context bottlenecks'
    )
    return f"ResNet-18 in torchvision's form, {config['width']} channels wide, with {bottlenecks}."


def _source(method) -> str:
    return ' ([arXiv:2403.11504](https://arxiv.org/abs/2403.11504))' if method['name'] == 'mlvicx' else ''


def _context(loss) -> str:
    if loss is None:
        return ''
    text = f"""
**This is not the whole encoder.** It was trained with context bottlenecks behind the stem and each
stage, and torchvision's resnet18 has no place for them: here they are dropped, and each stage gets
features that it was not trained on. On 16 procedural radiographs the pooled features with and
without them have a least cosine of {loss['cosine']:.3f}. """
    if 'with' not in loss:
        text += (
            'What a probe loses was not measured here (`--data` does). The format `mlvicx` '
            'keeps the bottlenecks.\n'
        )
        return text
    rows = '\n'.join(
        f'| {label} | {loss["with"][key]:.3f} | {loss["without"][key]:.3f} | '
        f'{loss["without"][key] - loss["with"][key]:+.3f} |'
        for key, label in (('probe', 'linear probe'), ('knn', 'kNN'))
    )
    return (
        text
        + f"""The format `mlvicx` keeps them.

Mean AUROC on the {loss['split']} split ({loss['images']} images):

| | with | without (this file) | change |
|---|---|---|---|
{rows}
"""
    )


def _heads(what) -> str:
    return (
        ''
        if what == 'encoder'
        else (
            '\n`heads.safetensors` holds what the encoder was trained with: heads and, under '
            "`method_state`, the method's own networks (a teacher).\n"
        )
    )


def _options(data) -> str:
    options = _values(data.get('options') or {})
    return f' ({options})' if options else ''


def _share(data) -> str:
    return f'train_val without {data["validation_fraction"]:.0%} of its patients (seed {data["split_seed"]})'


def _values(section: dict) -> str:
    return ', '.join(f'{name} {value}' for name, value in section.items())


def _results(trained, evaluation) -> str:
    kept = {
        name: value
        for name, value in evaluation.items()
        if isinstance(value, float)
        and value == value  # NaN: one class in the test images
        and not name.startswith(('train/', 'time/', 'images_per'))
    }
    if not kept:
        return "No evaluation was found in the run's folder."
    rows = '\n'.join(f'| {name} | {value:.3f} |' for name, value in sorted(kept.items()))
    split = evaluation.get('eval/split', trained.config.eval.split)
    when = evaluation.get('step')
    other = '' if when == trained.step else f' That is another step than the exported {trained.step}.'
    context = ' (with its context bottlenecks)' if trained.encoder.context else ''
    return f"""Of the frozen encoder{context}, {split} split, at step {when}.{other}

| | |
|---|---|
{rows}"""


def _proof(proof) -> str:
    return '\n'.join(
        f'| {name} | {row["difference"]:.1e} | {row["cosine"]:.7f} | {row["largest"]:.3g} |'
        for name, row in proof.items()
    )
