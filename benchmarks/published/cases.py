"""The results that papers published, and the requests that ask for networks of the same size."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A published result and its request.

    published: macs in 1e9, params in 1e6, top1 in percent on ImageNet-1K. tuned: whether top1 was reached after
    fine-tuning.
    """

    name: str
    model: str
    method: str
    published: dict[str, float]
    tuned: bool
    request: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    large: bool = False
    """Whether the row takes hours, so that it runs only with real pictures or if it is named."""

    @property
    def budgets(self) -> list[dict[str, Any]]:
        """Return budgets: the published sizes plus half a unit of their last digit.

        The published numbers are rounded, so the true sizes can be larger by that much.
        """
        limits = {"macs": 1e9, "params": 1e6}
        return [
            {"metric": metric, "limit": (self.published[metric] + half_unit(self.published[metric])) * unit}
            for metric, unit in limits.items()
            if metric in self.published
        ]


def half_unit(value: float) -> float:
    """Return half a unit of the last digit: 2.66 -> 0.005."""
    return 0.5 * 10.0 ** -len(str(value).partition(".")[2])


SMALL, BASE = "deit_small_patch16_224", "deit_base_patch16_224"
CASES = (
    Case("CP-ViT, DeiT-S", SMALL, "cp-vit", {"macs": 2.66, "top1": 79.08}, True, source="arXiv 2310.07882, table 2"),
    Case(
        "VTP 20 %, DeiT-B", BASE, "vtp", {"macs": 13.8, "params": 67.3, "top1": 81.3}, True,
        source="arXiv 2104.08500",
    ),
    Case(
        "VTP 40 %, DeiT-B", BASE, "vtp", {"macs": 10.0, "params": 48.0, "top1": 80.7}, True,
        source="arXiv 2104.08500",
    ),
    Case(
        "UP-DeiT-T, from DeiT-B", BASE, "up-vit", {"macs": 1.3, "params": 5.7, "top1": 75.79}, True,
        {"target": "deit_tiny_patch16_224"}, "arXiv 2111.15127",
    ),
    Case(
        "UP-DeiT-S, from DeiT-B", BASE, "up-vit", {"macs": 4.6, "params": 22.1, "top1": 81.56}, True,
        {"target": "deit_small_patch16_224"}, "arXiv 2111.15127",
    ),
    Case(
        "UP-PVTv2-B1, from PVTv2-B2", "pvt_v2_b2", "up-vit", {"params": 14.0, "top1": 79.48}, True,
        {"target": "pvt_v2_b1"}, "arXiv 2111.15127",
    ),
    Case("MDC, DeiT-S", SMALL, "mdc", {"macs": 1.863, "top1": 60.69}, False, {"space": "paper"}, "arXiv 2201.00043"),
    Case("MDC, DeiT-B", BASE, "mdc", {"macs": 6.938, "top1": 72.27}, False, {"space": "paper"}, "arXiv 2201.00043"),
    Case("SPViT, DeiT-S", SMALL, "spvit", {"macs": 2.72, "top1": 79.07}, True, source="arXiv 2112.13890"),
    Case("joint, DeiT-S at CP-ViT's MACs", SMALL, "joint", {"macs": 2.66}, False),
    Case("joint, DeiT-B at MDC's MACs", BASE, "joint", {"macs": 6.938}, False),
    # CORP and DiffRate. CORP publishes that 43 to 44 % of the MACs are gone; here it is a share of timm's model.
    Case("joint beside CORP, DeiT-S", SMALL, "joint", {"macs": 2.58, "top1": 58.37}, False, source="arXiv 2602.05243"),
    Case("joint beside CORP, DeiT-B", BASE, "joint", {"macs": 10.01, "top1": 72.0}, False, source="arXiv 2602.05243"),
    Case(
        "joint beside CORP, DeiT-H", "deit3_huge_patch14_224", "joint", {"macs": 95.36, "top1": 83.27}, False,
        source="arXiv 2602.05243", large=True,
    ),
    Case(
        "joint beside DiffRate, DeiT-S", SMALL, "joint", {"macs": 2.7, "top1": 79.38}, False,
        source="arXiv 2305.17997",
    ),
)  # fmt: skip
