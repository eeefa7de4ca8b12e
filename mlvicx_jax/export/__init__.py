"""The encoder outside JAX, and weights from outside as its start.

  mlvicx export --workdir W --format torchvision|mlvicx|onnx|flax --out F

`folder` writes what users take away and proves it first, `initial` reads what `config.init` names;
`weights` knows what a tensor is called on either side.
"""
