"""The offers of a server: the devices and the methods that a job can name."""

from dataclasses import dataclass, field

from vitfit.result import Result


@dataclass(frozen=True, kw_only=True)
class ProfileCheck(Result):
    """A published latency, and the profile's prediction of it. fitted: it was used to fit the profile."""

    model: str
    image_size: int
    published_ms: float
    predicted_ms: float
    fitted: bool
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class ProfileError(Result):
    """Relative error of a profile over the `checked` published latencies that were not used to fit it."""

    checked: int
    median: float
    worst: float


@dataclass(frozen=True, kw_only=True)
class Device(Result):
    """A device: either its latency is measured, or it is a profile from which latency is predicted.

    kind: measured, agent or profile. reachable: whether jobs can measure on it now. version: version of vitfit of its
    agent. providers: execution providers of its ONNX Runtime. silent_s: seconds since its agent last asked for work.
    tables: the fitted latency tables that jobs have made for it. The fields from `date` to `error` are for profiles;
    `network` is the only network that the profile is for.
    """

    name: str
    kind: str = "profile"
    reachable: bool = False
    threads: int | None = None
    precision: str | None = None
    description: str = ""
    source: str | None = None
    machine: str | None = None
    runtime: str | None = None
    version: str | None = None
    providers: tuple[str, ...] = ()
    silent_s: int | None = None
    tables: tuple[str, ...] = ()
    date: str | None = None
    relative_uncertainty: float | None = None
    network: str | None = None
    checks: tuple[ProfileCheck, ...] = ()
    error: ProfileError | None = None


@dataclass(frozen=True, kw_only=True)
class TokenRule(Result):
    """How a method removes tokens.

    reducer: drop, fuse, weighted or merge. at: start or middle of a block. score: what ranks the tokens. depths: which
    part of the blocks removes tokens, as fractions of the depth.
    """

    reducer: str | None = None
    at: str | None = None
    score: str | None = None
    depths: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Method(Result):
    """A compression method.

    axes: what it prunes. criteria: the importance criteria that it supports; the first is the default. training: what
    it trains by itself. space, other_spaces: the search spaces that it supports; `space` is the default. bases: the
    bases of q/k, v and embedding dims that it supports; the first is the default.
    """

    name: str
    title: str = ""
    axes: tuple[str, ...] = ()
    criteria: tuple[str, ...] = ()
    training: str | None = None
    paper: str = ""
    space: str | None = None
    tokens: TokenRule | None = None
    other_spaces: tuple[str, ...] = field(default=())
    bases: tuple[str, ...] = field(default=())
