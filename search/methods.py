"""The methods and criteria that a job can name. Standard library only: the web process lists them."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from models.errors import InvalidRequest, UnknownName
from models.record import Record
from models.structure import Structure
from search.token_rule import TokenRule

CRITERION_TITLES = {
    "reconstruction": "output lost after closed-form re-fitting (optimal brain surgeon over columns)",
    "variance": "variance of activations",
    "hsic": "dependence on the dense outputs (HSIC, MDC)",
    "cumulative": "attention gathered over the layers so far (CP-ViT); heads only, the rest by variance",
    "magnitude": "norm of the weights; needs no images",
    "taylor": "change of the task's loss, to first order (Taylor)",
    "kl": "divergence of the answers without a member, estimated from gradients (UP-ViTs)",
    "kl-exact": "divergence of the answers without a member, by deleting each (UP-ViTs); small models only",
    "gates": "learned gates: what training with an L1 penalty left of each input (VTP)",
}


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

    @property
    def spaces(self) -> tuple[str, ...]:
        return (self.space, *self.other_spaces)


METHODS = {
    method.name: method
    for method in (
        Method(
            "joint",
            "heads, dims, neurons, embedding width, tokens and halves of blocks together",
            ("heads", "qk", "v", "neurons", "tokens", "embed", "halves"),
            ("reconstruction", "variance", "hsic", "magnitude"),
            "none",
            "",
        ),
        Method(
            "mdc",
            "multi-dimensional compression: heads, neurons and tokens by HSIC",
            ("heads", "neurons", "tokens"),
            ("hsic",),
            "none",
            "arXiv 2201.00043",
            other_spaces=("paper",),
        ),
        Method(
            "cp-vit",
            "cascade of tokens and heads by attention accumulated over the layers",
            ("heads", "tokens"),
            ("cumulative",),
            "none",
            "arXiv 2203.04570",
            "cascade",
            TokenRule("drop", "start", "cumulative", depths=(1 / 3, 1.0)),
        ),
        Method(
            "up-vit",
            "unified pruning: embedding, attention and MLP dims, and halves of blocks, by divergence",
            ("embed", "qk", "v", "neurons", "halves"),
            ("kl", "kl-exact", "taylor"),
            "distillation",
            "arXiv 2111.15127",
        ),
        Method(
            "vtp",
            "vision transformer pruning: each layer's inputs and neurons by gates learned with an L1 penalty",
            ("inputs", "neurons"),
            ("gates",),
            "gates",
            "arXiv 2104.08500",
            space="gates",
        ),
        Method(
            "spvit",
            "learned token selectors with a package token; keep rates from the device's latencies",
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
            f"keep_spatial keeps all tokens, which method {name!r} is there to remove. "
            "Leave it out, or take method 'joint'."
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
        raise InvalidRequest(f"Method {method.name!r} allows criteria {', '.join(method.criteria)}, not {wanted!r}")
    return wanted


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
        raise InvalidRequest(f"Method {method.name!r} searches in {', '.join(method.spaces)}, not in {wanted!r}")
    return wanted


def check_suits(method: Method, structure: Structure) -> None:
    """Check that the method can prune this network.

    Raises: InvalidRequest when the method has nothing to remove from it, or when the method's token rule does not fit a
        network that was read from its graph.
    """
    needs_tokens = method.space == "cascade" or method.axes == ("tokens",)
    if needs_tokens and not any(s.free_tokens and len(s.blocks) > 1 for s in structure.stages):
        raise InvalidRequest(
            f"Method {method.name!r} removes tokens from the second block of a stage on, "
            f"but {structure.name} has no stage of two blocks "
            "whose token grid may shrink. Take method 'joint', which removes heads, dims and neurons too."
        )
    rule = method.tokens
    if (
        needs_tokens
        and any(s.in_graph for s in structure.stages)
        and (rule.at != "middle" or rule.score != "attention")
    ):
        raise InvalidRequest(
            f"Method {method.name!r} removes tokens at the {rule.at} of blocks by {rule.score}; "
            f"those of {structure.name}, whose attention and MLPs were found in its graph, "
            "leave in the middle of a block by its attention. Take method 'joint' or 'mdc'."
        )


def describe_methods() -> list[dict[str, Any]]:
    """JSON for `GET /v1/methods`."""
    return [method.to_json() for method in METHODS.values()]
