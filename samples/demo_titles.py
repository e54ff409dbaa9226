"""Titles of the demo's items: what their words say of an item, partly what its picture shows and partly what it hides.

A title names how good the item is (its benefit), which no picture shows, and of every second item the style, which the
picture shows, too. Its words are drawn from several with the same meaning.
"""

import numpy as np
import numpy.typing as npt
from demo_pictures import CATEGORIES, STYLES

BENEFITS = (-1.0, 0.0, 1.0)
BENEFIT_WORDS = (
    ("basic", "budget", "simple"),
    ("everyday", "standard", "useful"),
    ("premium", "sturdy", "award-winning"),
)
STYLE_WORDS = {
    "retro": ("vintage", "nostalgic", "old-school"),
    "botanic": ("leafy", "floral", "garden"),
    "urban": ("city", "street", "metropolitan"),
    "pure": ("plain", "minimal", "clean"),
}
ENDINGS = ("", " for home", " for the office", " as a gift", " with free shipping", ", boxed")
SHARE_WITH_STYLE = 0.5


def draw_benefits(num_items: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Draws the benefit of each item, and whether its title names its style."""
    benefit = np.array(BENEFITS)[rng.integers(len(BENEFITS), size=num_items)]
    return benefit, rng.random(num_items) < SHARE_WITH_STYLE


def write_titles(
    category: npt.NDArray[np.int64],
    style: npt.NDArray[np.int64],
    benefit: npt.NDArray[np.float64],
    names_style: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> list[str]:
    """The title of each item."""
    titles = []
    for item_category, item_style, item_benefit, has_style in zip(category, style, benefit, names_style, strict=True):
        words = [str(rng.choice(BENEFIT_WORDS[BENEFITS.index(item_benefit)]))]
        style_word = str(rng.choice(STYLE_WORDS[STYLES[item_style]]))
        words += [style_word] if has_style else []
        titles.append(" ".join([*words, CATEGORIES[item_category]]).capitalize() + str(rng.choice(ENDINGS)))
    return titles
