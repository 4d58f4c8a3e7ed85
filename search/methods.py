"""The methods and criteria that a job can name. Standard library only: the web process lists them."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from models.errors import InvalidRequest, UnknownName
from models.record import Record
from models.structure import Structure
from search.token_rule import TokenRule

CRITERION_TITLES = {
    "reconstruction": "output error that remains after recovery (optimal brain surgeon on the columns of the weights)",
    "variance": "variance of a member's activations",
    "hsic": "how much the outputs of the original network depend on a member (HSIC, as in MDC)",
    "cumulative": "attention summed over the layers up to this one for heads (CP-ViT); variance for other members",
    "magnitude": "norm of a member's weights; needs no images",
    "taylor": "first-order estimate of how much the task loss changes without a member (Taylor)",
    "kl": "KL divergence of the outputs when a member is removed, estimated from gradients (UP-ViTs)",
    "kl-exact": "KL divergence of the outputs when a member is removed, by leave-one-out (UP-ViTs); small models only",
    "gates": "values of learned gates after training with an L1 penalty (VTP)",
}


Basis = Literal["rotated", "chosen"]
"""rotated: q/k dims, v dims and embedding dims are directions of a basis that is computed for the network, and the
first ones stay. chosen: they are the members that the network has, and a criterion chooses among them."""


@dataclass(frozen=True)
class Method(Record):
    """A named preset: which axes may shrink, which criterion ranks their members, and how the network is trained."""

    name: str
    title: str
    axes: tuple[str, ...]
    criteria: tuple[str, ...]
    """Allowed criteria; the first is the default."""
    training: str
    paper: str
    space: str = "compact"
    tokens: TokenRule = field(default_factory=TokenRule)
    other_spaces: tuple[str, ...] = ()
    """Spaces that a job may choose instead of `space`."""
    bases: tuple[Basis, ...] = ("chosen",)
    """Bases of the axes qk, v and embed; the first is the default. The methods of the papers choose members."""

    local_search: bool = False
    """Whether the last trials move members between the blocks (search/loop/local_search.py)."""

    @property
    def spaces(self) -> tuple[str, ...]:
        return (self.space, *self.other_spaces)


METHODS = {
    method.name: method
    for method in (
        Method(
            "joint",
            "joint pruning: removes heads, dims, neurons, embedding width, tokens and sublayers together",
            ("heads", "qk", "v", "neurons", "tokens", "embed", "halves"),
            ("reconstruction", "variance", "hsic", "magnitude"),
            "none",
            "",
            bases=("rotated", "chosen"),
            local_search=True,
        ),
        Method(
            "mdc",
            "multi-dimensional compression: removes heads, neurons and tokens, ranked by HSIC",
            ("heads", "neurons", "tokens"),
            ("hsic",),
            "none",
            "arXiv 2201.00043",
            other_spaces=("paper",),
        ),
        Method(
            "cp-vit",
            "cascade pruning: removes tokens and heads, ranked by the attention summed over the layers",
            ("heads", "tokens"),
            ("cumulative",),
            "none",
            "arXiv 2203.04570",
            "cascade",
            TokenRule("drop", "start", "cumulative", depths=(1 / 3, 1.0)),
        ),
        Method(
            "up-vit",
            "unified pruning: removes embedding width, attention dims, neurons and sublayers, ranked by KL divergence",
            ("embed", "qk", "v", "neurons", "halves"),
            ("kl", "kl-exact", "taylor"),
            "distillation",
            "arXiv 2111.15127",
        ),
        Method(
            "vtp",
            "vision transformer pruning: removes inputs of layers and neurons, ranked by gates learned with an L1"
            " penalty",
            ("inputs", "neurons"),
            ("gates",),
            "gates",
            "arXiv 2104.08500",
            space="gates",
        ),
        Method(
            "spvit",
            "token pruning: learned token selectors remove tokens and keep a fused token; device latencies set the"
            " keep ratios",
            ("tokens",),
            ("magnitude",),
            "selectors",
            "arXiv 2112.13890",
            tokens=TokenRule(reducer="weighted", at="start", score="selector"),
        ),
    )
}


def method_named(name: str) -> Method:
    """Look up a method. Raises: UnknownName."""
    if name not in METHODS:
        raise UnknownName("method", name, METHODS)
    return METHODS[name]


def method_for(name: str, keep_spatial: bool) -> Method:
    """Look up the method of a job. keep_spatial: all tokens stay, so the axis "tokens" is taken out of the method.

    Raises: UnknownName; InvalidRequest with keep_spatial for a method that is built on removing tokens.
    """
    method = method_named(name)
    if not keep_spatial or "tokens" not in method.axes:
        return method
    if method.space == "cascade" or method.axes == ("tokens",):
        raise InvalidRequest(
            f"The request sets keep_spatial, which keeps all tokens, but method {name!r} removes tokens. Leave"
            " keep_spatial out, or use method 'joint'."
        )
    axes = tuple(axis for axis in method.axes if axis != "tokens")
    return dataclasses.replace(method, axes=axes, other_spaces=())


def check_criterion(name: str) -> None:
    """Check that there is a criterion of this name. Raises: UnknownName."""
    if name not in CRITERION_TITLES:
        raise UnknownName("criterion", name, CRITERION_TITLES)


def criterion_of(method: Method, wanted: str | None) -> str:
    """The criterion of a job: `wanted`, or the method's default.

    Raises: UnknownName; InvalidRequest when the method does not allow it.
    """
    if wanted is None:
        return method.criteria[0]
    check_criterion(wanted)
    if wanted not in method.criteria:
        raise InvalidRequest(
            f"Method {method.name!r} does not allow criterion {wanted!r}. Use one of these criteria:"
            f" {', '.join(method.criteria)}."
        )
    return wanted


def basis_for(method: Method, wanted: str | None) -> Basis:
    """The basis of a job: `wanted`, or the method's default.

    Raises: UnknownName; InvalidRequest when the method does not allow it.
    """
    if wanted is None:
        return method.bases[0]
    if wanted not in get_args(Basis):
        raise UnknownName("basis", wanted, get_args(Basis))
    found = next((basis for basis in method.bases if basis == wanted), None)
    if found is None:
        raise InvalidRequest(
            f"Method {method.name!r} does not allow basis {wanted!r}, because its paper chooses members. Use basis"
            f" {' or '.join(method.bases)}, or use method 'joint'."
        )
    return found


def space_for(method: Method, wanted: str | None) -> str:
    """The name of a job's space: `wanted`, or the method's default.

    Raises: UnknownName; InvalidRequest when the method does not search there.
    """
    if wanted is None:
        return method.space
    known = sorted({name for other in METHODS.values() for name in other.spaces})
    if wanted not in known:
        raise UnknownName("space", wanted, known)
    if wanted not in method.spaces:
        raise InvalidRequest(
            f"Method {method.name!r} does not search in space {wanted!r}. Use one of these spaces:"
            f" {', '.join(method.spaces)}."
        )
    return wanted


def check_suits(method: Method, structure: Structure) -> None:
    """Check that the method can prune this network.

    Raises: InvalidRequest when the method has nothing to remove from it, or when the method's token rule does not fit a
        network that was read from its graph.
    """
    needs_tokens = method.space == "cascade" or method.axes == ("tokens",)
    if needs_tokens and not any(s.free_tokens and len(s.blocks) > 1 for s in structure.stages):
        raise InvalidRequest(
            f"Method {method.name!r} removes tokens from the second block of a stage on. {structure.name} has no stage"
            " of at least two blocks whose token grid may shrink. Use method 'joint', which also removes heads, dims"
            " and neurons."
        )
    rule = method.tokens
    if (
        needs_tokens
        and any(s.in_graph for s in structure.stages)
        and (rule.at != "middle" or rule.score != "attention")
    ):
        raise InvalidRequest(
            f"Method {method.name!r} removes tokens at the {rule.at} of blocks with score {rule.score!r}."
            f" {structure.name} is a graph model. A graph model allows token reduction only in the middle of a block"
            " with score 'attention'. Use method 'joint' or 'mdc'."
        )


def describe_methods() -> list[dict[str, Any]]:
    """JSON for `GET /v1/methods`."""
    return [method.to_json() for method in METHODS.values()]
