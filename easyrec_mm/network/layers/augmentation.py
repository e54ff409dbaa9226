"""Random changes of training pictures: crop, flip, colours, erased rectangles, with Keras layers where they exist."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import tensorflow as tf

# Pixels float32 `[P, H, W, C]`, 0-1, and the source of random numbers -> the changed pixels.
Step = Callable[[tf.Tensor, keras.random.SeedGenerator], tf.Tensor]

LARGEST_STRETCH = 4 / 3
MID_GREY = 128 / 255


class Augmentation(keras.layers.Layer):
    """Random changes in training, with separate random numbers per picture. All changes are off by default.

    Args, in the order in which they change a picture:
      random_resized_crop_min_area: a window of the picture is enlarged to the size of the picture; the aspect ratio is
        not kept (Szegedy et al., CVPR 2015, section 6). The window's share of the area is uniform between this value
        and 1. The ratio between the stretch of width and that of height is log-uniform in the part of 3/4 to 4/3 for
        which the window fits; then the position of the window is uniform. 1 is off.
      horizontal_flip: whether a picture is mirrored with probability 1/2.
      brightness: largest number added to or subtracted from the whole picture, as a share of the full range; 0-1,
        uniform.
      contrast: the difference between a pixel and the mean of its channel in the picture is multiplied by a number
        uniform in 1 +- contrast; 0-1.
      saturation: the saturation (of HSV) is multiplied by a number in 1 +- saturation; 0-1.
      hue: largest rotation of the hue (of HSV) in either direction, as a share of half the circle; 0-1, uniform.
      random_erasing: probability that a rectangle becomes mid-grey (Zhong et al., AAAI 2020); 0-1. Each side of the
        rectangle is sqrt(u) of the picture's side, u uniform in 0.02-0.33; its position is uniform.
      seed: seed of the random numbers. Their state is the only variable; restoring it continues the draws.

    Raises:
      ValueError: if saturation or hue is used for pictures that do not have 3 channels.
    """

    def __init__(
        self,
        *,
        random_resized_crop_min_area: float = 1.0,
        horizontal_flip: bool = False,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        random_erasing: float = 0.0,
        seed: int = 0,
        name: str = "augmentation",
    ) -> None:
        super().__init__(name=name)
        # Ranges are pairs, because Keras layers interpret a single number differently, and not as documented.
        # The seed is not used, but without one these layers would take it from the generator of the initial weights.
        options = {"seed": seed, "dtype": "float32"}
        colours = {**options, "value_range": (0.0, 1.0)}
        steps: list[Step] = []
        if random_resized_crop_min_area < 1.0:
            steps.append(_random_resized_crop(random_resized_crop_min_area))
        if horizontal_flip:
            steps.append(_step(keras.layers.RandomFlip("horizontal", **options)))
        if brightness:
            steps.append(_step(keras.layers.RandomBrightness((-brightness, brightness), **colours)))
        if contrast:
            steps.append(_step(keras.layers.RandomContrast((contrast, contrast), **colours)))
        if saturation:
            # For a factor f, this layer multiplies by f / (1 - f).
            factor = ((1.0 - saturation) / (2.0 - saturation), (1.0 + saturation) / (2.0 + saturation))
            steps.append(_step(keras.layers.RandomSaturation(factor, **colours)))
        if hue:
            steps.append(_step(keras.layers.RandomHue((0.0, hue), **colours)))
        if random_erasing:
            factor = (random_erasing, random_erasing)
            steps.append(_step(keras.layers.RandomErasing(factor, fill_value=MID_GREY, **colours)))
        self._steps = steps
        self._seed = seed
        self._needs_colours = bool(saturation or hue)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the state of the random numbers if any change is on."""
        if self._needs_colours and input_shape[-1] != 3:
            raise ValueError(f"saturation and hue need pictures of 3 channels; these have {input_shape[-1]}")
        if self._steps:
            self._draws = keras.random.SeedGenerator(self._seed, name="draws")

    def call(self, pixels: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Change pixels uint8 `[P, H, W, C]` in training, keeping shape and dtype; P may be unknown or 0."""
        if not training or not self._steps:
            return pixels
        x = tf.cast(pixels, tf.float32) / 255.0
        for step in self._steps:
            x = step(x, self._draws)
        return tf.saturate_cast(tf.round(x * 255.0), tf.uint8)


def _step(layer: keras.layers.Layer) -> Step:
    """Wrap a preprocessing layer of Keras so that it draws from a given generator instead of its own state.

    The name of its own state depends on how many states the process has, so another process would not find it in a
    checkpoint. As the layer is hidden in a function, its state is not a variable of Augmentation.
    """

    def step(x: tf.Tensor, draws: keras.random.SeedGenerator) -> tf.Tensor:
        return layer.transform_images(x, layer.get_random_transformation(x, seed=draws))

    return step


def _random_resized_crop(min_area: float) -> Step:
    def step(x: tf.Tensor, draws: keras.random.SeedGenerator) -> tf.Tensor:
        size = tf.cast(tf.shape(x)[1:3], tf.float32)
        draw = keras.random.uniform([tf.shape(x)[0], 4], seed=draws)  # [P, 4]
        area = min_area + (1.0 - min_area) * draw[:, 0]
        # The window's share of the width is `ratio` times its share of the height; it fits for ratios up to 1 / area.
        log_limit = tf.minimum(math.log(LARGEST_STRETCH), -tf.math.log(area))
        ratio = tf.exp(log_limit * (2.0 * draw[:, 1] - 1.0))
        share = tf.sqrt(tf.stack([area / ratio, area * ratio], axis=1))  # [P, 2], of height and width
        start = draw[:, 2:] * (1.0 - share) * size
        # The centre of pixel i of the result, i + 1/2, lies at start + share (i + 1/2) of the picture.
        shift = start + (share - 1.0) / 2.0
        zero = tf.zeros_like(area)
        transform = [share[:, 1], zero, shift[:, 1], zero, share[:, 0], shift[:, 0], zero, zero]
        return keras.ops.image.affine_transform(x, tf.stack(transform, axis=1), "bilinear", "nearest")

    return step
