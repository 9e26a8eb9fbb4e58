"""Images that no network of the zoo has seen the like of: rotated, inverted, and letters in the place of digits."""

import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from gfm_jax.runs import ByClass, by_class

__all__ = ["DOMAINS", "letters"]


def _of_side(function: Callable) -> Callable:
    """A change of square images, as one of flat ones."""

    def change(images: dict[str, ByClass], shape, seed: int) -> dict[str, ByClass]:
        changed = lambda x: function(x.reshape(-1, *shape)).reshape(x.shape)
        return {split: part._replace(inputs=changed(part.inputs)) for split, part in images.items()}

    return change


rotated = _of_side(lambda x: jnp.rot90(x, axes=(1, 2)))
inverted = _of_side(lambda x: x.max() + x.min() - x)


def other_data(images: dict[str, ByClass], shape, seed: int) -> dict[str, ByClass]:
    """Letters A to J in the range of the images; each split drawn anew, of as many as the rarest class has."""
    lowest, highest = (float(f(images["train"].inputs)) for f in (jnp.min, jnp.max))
    found = {}
    for number, (split, part) in enumerate(images.items()):
        drawn, labels = letters(np.random.default_rng((seed, number)), int(part.count.min()), shape[0])
        flat = lowest + (highest - lowest) * np.repeat(drawn[..., None], shape[2], -1).reshape(len(drawn), -1)
        found[split] = by_class(flat.astype(np.float32), labels, 10)
    return found


DOMAINS = {"rotated": rotated, "inverted": inverted, "letters": other_data}


def letters(rng: np.random.Generator, num_per_class: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Letters A to J from the fonts that come with Matplotlib, turned, moved and resized a little.

    Args:
      rng: randomness.
      num_per_class: images of each letter.
      side: of an image, in pixels.

    Returns:
      Images, [num, side, side] in 0..1, and labels 0..9.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(str(folder / name), 40) for name in FONTS]
    images, labels = [], np.tile(np.arange(10), num_per_class)
    for label in labels:
        page = Image.new("L", (64, 64))
        font = fonts[rng.integers(len(fonts))]
        ImageDraw.Draw(page).text((32, 32), "ABCDEFGHIJ"[label], fill=255, font=font, anchor="mm")
        angle, scale, dx, dy = rng.uniform((-12, 0.85, -3, -3), (12, 1.15, 3, 3))
        c, s = np.cos(np.radians(angle)) / scale, np.sin(np.radians(angle)) / scale
        moved = (c, s, 32 - c * (32 + dx) - s * (32 + dy), -s, c, 32 + s * (32 + dx) - c * (32 + dy))
        page = page.transform((64, 64), Image.Transform.AFFINE, moved, Image.Resampling.BILINEAR)
        images.append(np.asarray(page.crop((14, 14, 50, 50)).resize((side, side), Image.Resampling.BOX)) / 255)
    return np.stack(images), labels


FONTS = tuple(
    f"{family}{style}.ttf"
    for family, styles in (
        ("DejaVuSans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("DejaVuSerif", ("", "-Bold", "-Italic", "-BoldItalic")),
        ("DejaVuSansMono", ("", "-Bold")),
        ("STIXGeneral", ("", "Bol", "Italic", "BolIta")),
    )
    for style in styles
)
