"""A map of pictures: items with similar vectors lie side by side.

t-SNE (van der Maaten & Hinton, JMLR 2008) of the vectors as the store compares them (store/similarity.py): centred and
of length 1, so that Euclidean neighbours are the neighbours of a search. Principal components reduce them first.
Legend: I items, D width of a vector.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from easyrec_mm.store.similarity import fit

Floats = npt.NDArray[np.float32]

LEAST_ITEMS = 5
_NUM_COMPONENTS = 30
_PERPLEXITY = 30.0
_NUM_ITERATIONS = 500
# With fewer items, the threads of the tree algorithm wait for each other longer than exact gradients take.
_FEW_ITEMS = 300


def place_items(vectors: Floats, seed: int = 0) -> Floats:
    """Return the places of at least LEAST_ITEMS items on the map, float32 `[I, 2]`, given their vectors `[I, D]`.

    Raises:
      ValueError: if there are fewer.
    """
    if len(vectors) < LEAST_ITEMS:
        raise ValueError(f"{len(vectors)} items make no map; give at least {LEAST_ITEMS}")
    units = fit("centred", vectors).unit(vectors)
    if not np.ptp(units, axis=0).any():
        return np.zeros((len(vectors), 2), np.float32)
    num_components = min(_NUM_COMPONENTS, *units.shape)
    reduced = PCA(num_components, svd_solver="full", random_state=seed).fit_transform(units).astype(np.float32)
    # As scikit-learn's init="pca" does, without computing the components again.
    first = np.zeros((len(vectors), 2), np.float32)
    first[:, : min(2, num_components)] = reduced[:, :2] / reduced[:, 0].std() * 1e-4
    tsne = TSNE(
        perplexity=min(_PERPLEXITY, (len(vectors) - 1) / 3),
        init=first,
        max_iter=_NUM_ITERATIONS,
        method="exact" if len(vectors) < _FEW_ITEMS else "barnes_hut",
        random_state=seed,
        n_jobs=-1,
    )
    return np.asarray(tsne.fit_transform(reduced), np.float32)
