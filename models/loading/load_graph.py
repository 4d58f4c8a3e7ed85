"""Opens a model that is known only by its graph.

If the graph turns out to be a plain vision transformer, it is opened as one, because then every part can be pruned.
"""

from torch import nn

from models.data.preprocessing import Preprocessing
from models.export.signature import Signature
from models.graph.network import GraphNetwork
from models.graph.tracing.capture import BATCH
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork


def open_graph(
    module: nn.Module,
    name: str,
    preprocessing: Preprocessing,
    classes: int,
    *,
    batch: int = BATCH,
    image: tuple[int, int, int] | None = None,
    signature: Signature | None = None,
) -> Network:
    """Open any module.

    batch, image: for a module that is itself a graph: the batch size and the image size (C, H, W) that it was made for.
    signature: the names of the outputs, and which of them vitfit compares with the original.
    Raises: UnsupportedModel.
    """
    network = GraphNetwork(module, name, preprocessing, classes, batch=batch, image=image, signature=signature)
    plain = network.plain()
    return network if plain is None else TorchNetwork(plain, name, preprocessing).with_signature(network.signature)
