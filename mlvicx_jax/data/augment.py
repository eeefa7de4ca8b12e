"""Random views of radiographs on the device: pure functions of one key and one image each.

The order is VICReg's (Bardes et al., 2022): random resized crop, flip, [rotation,] jitter, blur,
solarise. A radiograph has one channel, on which hue, saturation and random greyscale do nothing:
they are left out, and the grey is replicated to three channels at the very end (`standardise`).

Crop with flip, and blur, are one matrix product per axis and example, at full float32 precision so
that every kind of device shows the network the same pictures.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mlvicx_jax.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1], as in torchvision's reference transforms
IMAGENET_STD = (0.229, 0.224, 0.225)
BLUR_REFERENCE_SIZE = 224  # px; the view size for which VICReg gives its blur


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One view's random transformations; the defaults are VICReg's first view.

    Attributes:
        area: range of the crop's share of the image, uniform.
        aspect: range of the crop's width / height, log-uniform.
        flip: probability of a left-right flip.
        rotation: greatest angle in degrees, uniform in both directions; 0 leaves the operation out.
        jitter_probability: probability of brightness and contrast jitter (both or neither).
        brightness: b of the factor U(1 - b, 1 + b) that multiplies the pixels.
        contrast: c of the factor U(1 - c, 1 + c) that multiplies the distance from the view's mean.
        blur_probability: probability of a Gaussian blur.
        blur_sigma: range of its standard deviation in pixels of a 224 px view, uniform; scaled by
            size / 224 for views of another size.
        solarise_probability: probability of inverting the bright pixels.
        solarise_threshold: the least value in [0, 1] that is inverted.
    """

    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rotation: float = 0.0
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    blur_probability: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise_probability: float = 0.0
    solarise_threshold: float = 0.5

    def __post_init__(self):
        ranges = {'area': 1, 'aspect': float('inf'), 'blur_sigma': float('inf')}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ranges:
                high = ranges[field.name]
                valid = len(value) == 2 and 0 < value[0] <= value[1] <= high
                expected = f'(low, high) with 0 < low <= high <= {high}'
            else:
                high = 180 if field.name == 'rotation' else 1
                valid = 0 <= value <= high
                expected = f'a number in [0, {high}]'
            if not valid:
                raise UserError(f'augmentation {field.name}={value}: give {expected}')


def augment(keys: jax.Array, images: jax.Array, size: int, recipe: Recipe) -> jax.Array:
    """Draws one random view of every image: `geometry`, then `photometry`.

    View i depends on keys[i] and images[i] alone, so a batch may be cut over devices in any way.
    Every operation has its own draws, used or not: changing one field of the recipe leaves the
    draws of the others as they were.

    Args:
        keys: typed PRNG keys [b].
        images: uint8 [b, H, W, 1].
        size: side of the views in pixels.
        recipe: the transformations.

    Returns:
        float32 [b, size, size, 1] in [0, 1].
    """
    return photometry(keys, geometry(keys, images, size, recipe), recipe)


def geometry(keys: jax.Array, images: jax.Array, size: int, recipe: Recipe) -> jax.Array:
    """The recipe's crop, flip and rotation of uint8 images; see `augment`."""
    height, width = images.shape[1:3]
    area, aspect, top, left, flip, angle = _draws(keys)[:6]
    top, left, box_height, box_width = crop_box(area, aspect, top, left, height, width, recipe)
    rows = resampling_matrix(top, box_height, height, size)
    columns = resampling_matrix(left, box_width, width, size)
    columns = jnp.where((flip < recipe.flip)[:, None, None], columns[:, ::-1], columns)
    views = sandwich(rows, images[..., 0] / jnp.float32(255), columns).clip(0, 1)
    if recipe.rotation:
        views = rotate(views, jnp.deg2rad(recipe.rotation) * (2 * angle - 1))
    return views[..., None]


def photometry(keys: jax.Array, views: jax.Array, recipe: Recipe) -> jax.Array:
    """The recipe's jitter, blur and solarisation of views [b, n, n, 1]; see `augment`."""
    jitter, brightness, contrast, blur, sigma, solarise = _draws(keys)[6:]
    views, size = views[..., 0], views.shape[1]
    if recipe.jitter_probability:
        on = jitter < recipe.jitter_probability
        views = adjust(
            views,
            jnp.where(on, 1 + recipe.brightness * (2 * brightness - 1), 1),
            jnp.where(on, 1 + recipe.contrast * (2 * contrast - 1), 1),
        )
    if recipe.blur_probability:
        low, high = recipe.blur_sigma
        sigma = (low + sigma * (high - low)) * size / BLUR_REFERENCE_SIZE
        matrix = blur_matrix(jnp.where(blur < recipe.blur_probability, sigma, 0), size)
        views = sandwich(matrix, views, matrix).clip(0, 1)  # the clip only removes rounding
    if recipe.solarise_probability:
        on = (solarise < recipe.solarise_probability)[:, None, None]
        views = jnp.where(on & (views >= recipe.solarise_threshold), 1 - views, views)
    return views[..., None]


def _draws(keys):
    """[12, b] uniform numbers: six for the geometry, six for the photometry."""
    return jax.vmap(lambda key: jax.random.uniform(key, (12,)))(keys).T


def view_keys(keys: jax.Array, number: int) -> jax.Array:
    """The keys [b] of an image's view `number`, from those of the images."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def views(keys: jax.Array, images: jax.Array, size: int, recipes: dict[str, Recipe]) -> dict[str, jax.Array]:
    """One view of every image for each recipe, drawn independently; see `augment`."""
    return {
        name: augment(view_keys(keys, number), images, size, recipe)
        for number, (name, recipe) in enumerate(recipes.items())
    }


def standardise(images: jax.Array, dtype=jnp.float32) -> jax.Array:
    """Grey [b, h, w, 1] in [0, 1] to [b, h, w, 3], normalised by ImageNet's mean and deviation."""
    return ((images - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)).astype(dtype)


def resize(images: jax.Array, size: int) -> jax.Array:
    """The whole image, for evaluation: uint8 [b, H, W, 1] to float32 [b, size, size, 1] in [0, 1].

    Antialiased bicubic: what `augment` gives for a square image, a crop of area 1 and the rest off.
    """
    shape = (images.shape[0], size, size, 1)
    images = images / jnp.float32(255)
    return jax.image.resize(images, shape, 'cubic', precision=jax.lax.Precision.HIGHEST).clip(0, 1)


def crop_box(
    area: jax.Array, aspect: jax.Array, top: jax.Array, left: jax.Array, height: int, width: int, recipe: Recipe
) -> tuple[jax.Array, ...]:
    """Turns four uniform draws [b] into boxes (top, left, height, width), [b] each, in pixels.

    torchvision draws area and aspect up to ten times until the box fits. Here the area is drawn
    once, and the aspect log-uniformly among those of the recipe with which a box of this area fits:
    the area is exactly uniform and the box always inside. Where no aspect of the recipe fits (an
    elongated image), the nearest is taken and the box cut. Boxes are not rounded to whole pixels.
    """
    area = recipe.area[0] + area * (recipe.area[1] - recipe.area[0])
    low = jnp.clip(area * width / height, *recipe.aspect)  # the box is as high as the image
    high = jnp.clip(width / (area * height), *recipe.aspect)  # the box is as wide as the image
    aspect = low * (high / low) ** aspect
    box_height = jnp.minimum(jnp.sqrt(area * height * width / aspect), height)
    box_width = jnp.minimum(jnp.sqrt(area * height * width * aspect), width)
    return top * (height - box_height), left * (width - box_width), box_height, box_width


def resampling_matrix(start: jax.Array, length: jax.Array, extent: int, size: int) -> jax.Array:
    """Weights [b, size, extent] that resample [start, start + length) of `extent` pixels to `size`.

    Keys' cubic kernel (a = -1/2, as in Pillow), stretched by the scale where the axis shrinks: the
    antialiasing. Rows sum to 1: at the image's border the kernel's outer part is dropped, at the
    crop's border the pixels beyond it are read.
    """
    scale = (length / size)[:, None, None]
    centre = start[:, None, None] + (jnp.arange(size)[:, None] + 0.5) * scale - 0.5
    distance = jnp.abs(jnp.arange(extent) - centre) / jnp.maximum(scale, 1)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weights = jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0))
    return weights / weights.sum(-1, keepdims=True)


def rotate(images: jax.Array, radians: jax.Array) -> jax.Array:
    """Turns images [b, n, n] about their centres, anticlockwise for positive angles [b]; bilinear.

    What lies outside repeats the nearest edge pixel: black corners would give the angle away.
    """
    n = images.shape[-1]
    middle = (n - 1) / 2
    x, y = jnp.arange(n) - middle, jnp.arange(n)[:, None] - middle
    cos, sin = jnp.cos(radians)[:, None, None], jnp.sin(radians)[:, None, None]
    row = jnp.clip(cos * y + sin * x + middle, 0, n - 1)
    column = jnp.clip(cos * x - sin * y + middle, 0, n - 1)
    top = jnp.minimum(row.astype(jnp.int32), n - 2)
    left = jnp.minimum(column.astype(jnp.int32), n - 2)
    down, right = row - top, column - left

    @jax.vmap
    def take(flat, index):
        return flat.at[index].get(mode='promise_in_bounds')  # by the clips above

    def pixel(offset):
        return take(images.reshape(-1, n * n), top * n + left + offset)

    upper = (1 - right) * pixel(0) + right * pixel(1)
    lower = (1 - right) * pixel(n) + right * pixel(n + 1)
    return (1 - down) * upper + down * lower


def adjust(images: jax.Array, brightness: jax.Array, contrast: jax.Array) -> jax.Array:
    """Multiplies images [b, h, w] by brightness [b], then their distance to the mean by contrast.

    Clipped to [0, 1] after each, as torchvision's ColorJitter does; it shuffles the two, which but
    for the clipping commute, so their order is fixed here.
    """
    images = (brightness[:, None, None] * images).clip(0, 1)
    mean = images.mean((1, 2), keepdims=True)
    return (mean + contrast[:, None, None] * (images - mean)).clip(0, 1)


def blur_matrix(sigma: jax.Array, size: int) -> jax.Array:
    """Gaussian weights [b, size, size] along one axis for sigma [b] in pixels; the identity for 0.

    Rows sum to 1: at the border the weights outside are dropped and the others make up for them.
    """
    offset = jnp.arange(size) - jnp.arange(size)[:, None]
    sigma = jnp.maximum(sigma, 1e-2)[:, None, None]  # exp(-0.5 / 1e-4) is 0 in float32
    weights = jnp.exp(-0.5 * (offset / sigma) ** 2)
    return weights / weights.sum(-1, keepdims=True)


def sandwich(rows: jax.Array, images: jax.Array, columns: jax.Array) -> jax.Array:
    """rows @ image @ columns^T for every example: [b, m, h], [b, h, w], [b, n, w] -> [b, m, n]."""
    highest = jax.lax.Precision.HIGHEST
    half = jnp.einsum('bmh,bhw->bmw', rows, images, precision=highest)
    return jnp.einsum('bmw,bnw->bmn', half, columns, precision=highest)
