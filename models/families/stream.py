"""A `Stream` is the residual stream of one stage: what writes to it, and what reads it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reader:
    """A norm over the stream, and the layers that read what it gives."""

    norm: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Stream:
    """The residual stream of one stage. Everything is named by its path in the model as it is now.

    A basis is free if all writers and all layers of the readers are linear or convolutions, and only these norms are in
    front of them.
    """

    stage: str
    """Path of the blocks of the stage."""
    fixed: str = ""
    """Why no basis is free. Empty: it is free. The stream of a plain network can be cut in any case."""
    writers: tuple[str, ...] = ()
    """Layers whose outputs are added to the stream."""
    tables: tuple[str, ...] = ()
    """Parameters that are added to the stream, or that scale what is added. Their last dim is the width."""
    readers: tuple[Reader, ...] = ()
    starts: tuple[str, ...] = ()
    """Modules whose output is the first content of the stream, and which keep the original width. A rotated network has
    a linear layer behind each of them."""
    start_norms: tuple[str, ...] = ()
    """Norms over the stream whose output is the stream itself, in a network that has no such linear layer."""

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers that read the stream."""
        return tuple(path for reader in self.readers for path in reader.layers)

    @property
    def norms(self) -> tuple[str, ...]:
        """All norms over the stream."""
        return (*self.start_norms, *(reader.norm for reader in self.readers if reader.norm))
