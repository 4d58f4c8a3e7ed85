"""`patches.json`: small pictures of some images, and which patches of each are left after each block that removes tokens."""

import base64
from typing import Any

from models.patches import grid_of, kept_patches, thumbnail
from models.torch_network import TorchNetwork
from service.evaluation import Evaluation

FILE = "patches.json"
IMAGES = 8
"""Of the selection split: the test split is for figures."""


def patches_of(network: TorchNetwork, evaluation: Evaluation) -> dict[str, Any] | None:
    """JSON; None where no tokens are removed, or where there are no images but noise. Places count row by row of the grid."""
    if not evaluation.data.assessed:
        return None
    batch = evaluation.data.take("selection", IMAGES, 0)
    found = kept_patches(network, batch.images)
    if not found:
        return None
    original, plan = evaluation.network.structure, network.plan
    assert plan is not None
    names = [original.blocks[block.source].name for block in plan.blocks]
    patches = max(reduction.patches for reduction in network.reductions())
    rows, columns = grid_of(patches, original.image)
    images = [
        {
            "index": int(row),
            "png": base64.b64encode(thumbnail(image, evaluation.network.preprocessing)).decode("ascii"),
            "kept": [one.places[place].tolist() for one in found],
        }
        for place, (row, image) in enumerate(zip(batch.indices, batch.images, strict=True))
    ]
    blocks = [{"block": names[one.block], "kept": one.places.shape[1]} for one in found]
    return {"grid": [rows, columns], "patches": patches, "blocks": blocks, "images": images}
