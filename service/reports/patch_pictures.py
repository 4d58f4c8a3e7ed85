"""`patches.json`: small pictures of some images, and which patches of each are left after each block that removes tokens."""

import base64
from typing import Any

from models.data.dataset import Batch
from models.evaluation.kept_patches import grid_of, kept_patches, thumbnail
from models.networks.network import Network

FILE = "patches.json"
IMAGES = 8
"""Of the selection split: the test split is for figures."""


def patches_of(network: Network, original: Network, batch: Batch) -> dict[str, Any] | None:
    """The file's JSON; None where no tokens are removed. Places count row by row of the grid.

    original: what the network was pruned from. batch: the images that are shown.
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
