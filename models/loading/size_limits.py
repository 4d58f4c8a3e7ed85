"""Upper limits for the numbers that describe a model. They are checked before any library builds the model.

A file of a few bytes can describe a network that takes all memory, or a million layers that take an hour to build.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from os import sysconf
from typing import Any

from models.errors import InvalidRequest, TooLarge

MOST = 2**20
"""Largest absolute value of a number without a limit of its own."""
MOST_LAYERS = 1_000
LAYERS = re.compile(r"layers?$|blocks$|depths?$|stages$")
"""Ends of the names of numbers of layers, which `RANGES` does not have."""
LABELS = ("id2label", "label2id")
"""Objects of a configuration whose keys are words of the user."""
MOST_WIDTH = 2**16
MOST_SIDE = 8_192
MOST_ENTRIES = 1_000
"""Largest number of values in a list."""
RANGES: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("num_classes", "num_labels"), (0, MOST)),
    **dict.fromkeys(("in_chans", "num_channels", "num_heads", "heads", "num_attention_heads"), (1, 4_096)),
    **dict.fromkeys(
        ("img_size", "image_size", "height", "width", "shortest_edge", "longest_edge", "crop_size"), (1, MOST_SIDE)
    ),
    **dict.fromkeys(("patch_size", "patch_sizes"), (1, 1_024)),
    **dict.fromkeys(("stride", "window_size", "sr_ratios"), (0, 1_024)),
    **dict.fromkeys(("reg_tokens", "num_register_tokens", "pool_include_prefix"), (0, 1_024)),
    **dict.fromkeys(("mlp_ratio", "mlp_ratios"), (0, 256)),
    **dict.fromkeys(
        (
            *("embed_dim", "embed_dims", "base_dims", "hidden_size", "hidden_sizes", "hidden_dim", "intermediate_size"),
            *("projection_dim", "neck_hidden_sizes", "dim", "dims"),
        ),
        (1, MOST_WIDTH),
    ),
    **dict.fromkeys(("depth", "depths", "num_layers", "num_hidden_layers", "num_encoder_blocks"), (0, MOST_LAYERS)),
}
"""Smallest and largest value of sizes, by the names that timm and transformers have for them."""


def check_sizes(sizes: Mapping[str, Any], title: str, are_numbers: bool = False) -> None:
    """Check the numbers of a description, also those in its lists and inner objects.

    title: what the description is, for the message. are_numbers: whether a size in `RANGES` must be a number, or a list
    of numbers.

    Raises: InvalidRequest.
    """
    for path, value in _values(sizes):
        name = next(part for part in reversed(path) if isinstance(part, str))
        shown = ".".join(map(str, path))
        limits = RANGES.get(name) or ((-MOST_LAYERS, MOST_LAYERS) if LAYERS.search(name) else None)
        if isinstance(value, list | tuple):
            _check_list(value, shown, title, limits)
        elif not isinstance(value, Mapping):
            _check(value, shown, title, limits=limits, must_be_number=are_numbers and name in RANGES)


def _check_list(values: Sequence[Any], name: str, title: str, limits: tuple[int, int] | None) -> None:
    most = MOST if limits is None else MOST_ENTRIES
    are_layers = limits is not None and limits[1] == MOST_LAYERS
    total = sum(value for value in values if _is_number(value)) if are_layers else 0
    if len(values) > most:
        raise InvalidRequest(
            f"In {title}, {name!r} has {len(values):,} entries. The limit is {most:,}. Use a shorter list.", field=name
        )
    if not total <= MOST_LAYERS:
        raise InvalidRequest(
            f"In {title}, {name!r} has {total:,} layers together. The limit is {MOST_LAYERS:,}. Use fewer layers.",
            field=name,
        )


def _values(value: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield all values with their places, without recursion: a hostile description can be deep."""
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while waiting:
        place, found = waiting.pop()
        if place:
            yield place, found
        if isinstance(found, Mapping):
            waiting += [((*place, str(key)[:100]), inner) for key, inner in found.items() if key not in LABELS]
        elif isinstance(found, list | tuple):
            waiting += [((*place, number), inner) for number, inner in enumerate(found)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(value: Any, name: str, title: str, *, limits: tuple[int, int] | None, must_be_number: bool) -> None:
    least, most = limits or (-MOST, MOST)
    if _is_number(value):
        is_factor = limits is None and isinstance(value, float) and math.isfinite(value)
        if is_factor or least <= value <= most:  # no number that is not finite is between two others
            return
    elif value is None or isinstance(value, bool) or not must_be_number:
        return
    raise InvalidRequest(
        f"In {title}, {name!r} is {str(value)[:50]}. It must be a finite number from {least:,} to {most:,}. Choose a"
        " number in this range.",
        field=name,
        value=str(value)[:50],
        least=least,
        most=most,
    )


def check_parameters(params: int, title: str) -> None:
    """Check that this machine has the memory for a model. Raises: TooLarge."""
    memory = sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES")
    if 4 * params > memory // 4:  # leaves room for the original, the pruned network and the statistics
        raise TooLarge(
            f"The model {title} has {params:,} parameters, which take {4 * params / 2**30:.0f} GiB. This machine has"
            f" {memory / 2**30:.0f} GiB of memory, and a model may take at most a quarter of it. Use a smaller model"
            " or a machine with more memory.",
            params=params,
        )
