"""The methods and criteria that a job can name. Standard library only: the web process lists them."""

from dataclasses import dataclass, field
from typing import Any

from models.errors import InvalidRequest, UnknownName
from models.record import Record
from search.token_rule import TokenRule

CRITERION_TITLES = {
    "reconstruction": "output lost after closed-form re-fitting (optimal brain surgeon over columns)",
    "variance": "variance of activations",
    "hsic": "dependence on the dense outputs (HSIC, MDC)",
    "magnitude": "norm of the weights; needs no images",
}


@dataclass(frozen=True)
class Method(Record):
    """A named preset over shared parts: which axes may shrink, which criterion ranks them, how it trains."""

    name: str
    title: str
    axes: tuple[str, ...]
    criteria: tuple[str, ...]
    """Allowed ones; the first is the default."""
    training: str
    paper: str
    space: str = "compact"
    tokens: TokenRule = field(default_factory=TokenRule)


METHODS = {
    method.name: method
    for method in (
        Method(
            "joint", "heads, dims, neurons and tokens together", ("heads", "qk", "v", "neurons", "tokens"),
            ("reconstruction", "variance", "hsic", "magnitude"), "none", "",
        ),
        Method(
            "mdc", "multi-dimensional compression: heads, neurons and tokens by HSIC", ("heads", "neurons", "tokens"),
            ("hsic",), "none", "arXiv 2201.00043",
        ),
        Method(
            "spvit", "learned token selectors with a package token; keep rates from the device's latencies", ("tokens",),
            ("magnitude",), "selectors", "arXiv 2112.13890",
            tokens=TokenRule(reducer="weighted", at="start", score="selector"),
        ),
    )
}  # fmt: skip


def method_named(name: str) -> Method:
    """Raises: UnknownName."""
    if name not in METHODS:
        raise UnknownName("method", name, METHODS)
    return METHODS[name]


def check_criterion(name: str) -> None:
    """Raises: UnknownName."""
    if name not in CRITERION_TITLES:
        raise UnknownName("criterion", name, CRITERION_TITLES)


def criterion_of(method: Method, wanted: str | None) -> str:
    """The criterion of a job. Raises: UnknownName; InvalidRequest when the method does not allow it."""
    if wanted is None:
        return method.criteria[0]
    check_criterion(wanted)
    if wanted not in method.criteria:
        raise InvalidRequest(f"Method {method.name!r} allows criteria {', '.join(method.criteria)}, not {wanted!r}")
    return wanted


def describe_methods() -> list[dict[str, Any]]:
    """JSON for `GET /v1/methods`."""
    return [method.to_json() for method in METHODS.values()]
