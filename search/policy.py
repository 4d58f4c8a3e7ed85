"""A policy says how much to keep of each axis. The search proposes it; the ranking decides which members stay."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from models.record import Record, later


@dataclass(frozen=True)
class Policy(Record):
    """Keep ratios, each in (0, 1]. Each space uses the fields that it knows.

    heads: share of the heads. qk, v: share of the q/k dims and of the v dims of each head. neurons: share of the MLP
    neurons. embed: share of the embedding dims. embed_by_stage: in its place, one number for each stage whose width can
    be cut. halves: share of the sublayers (attention or MLP) of all blocks.
    inputs: share of the layer inputs and neurons that learned gates (VTP) weigh.
    tokens: share of the patch tokens, one number per point where tokens are removed.
    *_by_block: one number per block, in the place of the number for the whole network. The space of MDC and the local
    search have them.
    *_mix, in [0, 1]: 0 removes the same share from every block, 1 lets the scores decide between blocks.
    """

    heads: float = 1.0
    qk: float = 1.0
    v: float = 1.0
    neurons: float = 1.0
    tokens: tuple[float, ...] = ()
    heads_mix: float = 0.0
    neurons_mix: float = 0.0
    embed: float = 1.0
    halves: float = 1.0
    inputs: float = 1.0
    heads_by_block: tuple[float, ...] = ()
    neurons_by_block: tuple[float, ...] = ()
    qk_by_block: tuple[float, ...] = later(())
    v_by_block: tuple[float, ...] = later(())
    embed_by_stage: tuple[float, ...] = later(())
    int8: float = later(0.0)
    """Share of the linear layers that are quantised; those that lose least by it come first. 0: an fp32 network."""

    @property
    def shares(self) -> dict[str, float]:
        """The keep ratios of a policy with numbers for each block, by name, such as "neurons3". Heads are left out.

        One head is a large step, so a small change of its keep ratio changes nothing.
        """
        rows = {"qk": self.qk_by_block, "v": self.v_by_block, "neurons": self.neurons_by_block, "tokens": self.tokens}
        rows["embed"] = self.embed_by_stage
        found = {f"{axis}{i}": keep for axis, keeps in rows.items() for i, keep in enumerate(keeps)}
        return {**found, "embed": self.embed}

    def with_shares(self, shares: Mapping[str, float]) -> "Policy":
        """Return the policy with these numbers in the place of all its `shares`."""

        def row(axis: str, keeps: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(shares[f"{axis}{i}"] for i in range(len(keeps)))

        return dataclasses.replace(
            self,
            qk_by_block=row("qk", self.qk_by_block),
            v_by_block=row("v", self.v_by_block),
            neurons_by_block=row("neurons", self.neurons_by_block),
            tokens=row("tokens", self.tokens),
            embed=shares["embed"],
            embed_by_stage=row("embed", self.embed_by_stage),
        )
