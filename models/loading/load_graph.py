"""Opens what is known by its graph alone: as a plain vision transformer where it is one, so that everything can be cut."""

from torch import nn

from models.data.preprocessing import Preprocessing
from models.graph.network import GraphNetwork
from models.graph.tracing.capture import BATCH
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork


def open_graph(
    module: nn.Module, name: str, preprocessing: Preprocessing, classes: int, batch: int = BATCH,
    image: tuple[int, int, int] | None = None,
) -> Network:  # fmt: skip
    """module: any, or a graph that was written down for `batch` images of size `image`. Raises: UnsupportedModel."""
    network = GraphNetwork(module, name, preprocessing, classes, batch, image)
    plain = network.plain()
    return network if plain is None else TorchNetwork(plain, name, preprocessing)
