"""Opens what is known by its graph alone: as a plain vision transformer where it is one, so that everything can be cut."""

from torch import nn

from models.graph.capture import BATCH
from models.graph.network import GraphNetwork
from models.preprocessing import Preprocessing
from models.torch_network import TorchNetwork


def open_graph(
    module: nn.Module, name: str, preprocessing: Preprocessing, classes: int, batch: int = BATCH,
    image: tuple[int, int, int] | None = None,
) -> TorchNetwork:  # fmt: skip
    """module: any, or a graph that was written down for `batch` images of size `image`. Raises: UnsupportedModel."""
    network = GraphNetwork(module, name, preprocessing, classes, batch, image)
    plain = network.plain()
    return network if plain is None else TorchNetwork(plain, name, preprocessing)
