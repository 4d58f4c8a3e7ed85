"""Create `patches.json`.

The file has thumbnails of some images and, for each block that removes tokens, the patches that remain after it.
"""

import base64
from typing import Any

from models.data.dataset import Batch
from models.evaluation.kept_patches import grid_of, kept_patches, thumbnail
from models.networks.network import Network

FILE = "patches.json"
IMAGES = 8
"""Number of images shown. They are taken from the selection split; the test split is used for scores only."""


def patches_of(network: Network, original: Network, batch: Batch) -> dict[str, Any] | None:
    """Return the content of the file, or None if the network removes no tokens.

    A patch is named by its index in the grid, counted row by row.

    original: the network before pruning. batch: the images to show.
    """
    found = kept_patches(network, batch.images)
    if not found:
        return None
    structure, plan = original.structure, network.plan
    assert plan is not None
    names = [structure.blocks[block.source].name for block in plan.blocks]
    patches = max(reduction.patches for reduction in network.reductions())
    rows, columns = grid_of(patches, structure.image)
    images = [
        {
            "index": int(row),
            "png": base64.b64encode(thumbnail(image, original.preprocessing)).decode("ascii"),
            "kept": [one.places[place].tolist() for one in found],
        }
        for place, (row, image) in enumerate(zip(batch.indices, batch.images, strict=True))
    ]
    blocks = [{"block": names[one.block], "kept": one.places.shape[1]} for one in found]
    return {"grid": [rows, columns], "patches": patches, "blocks": blocks, "images": images}
