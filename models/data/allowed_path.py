"""The rule for paths that users name: a path must lie below a folder that the operator allows.

Standard library only.
"""

from collections.abc import Sequence
from pathlib import Path


def below_allowed(text: str, allowed: Sequence[Path]) -> Path | None:
    """Return the real path that `text` names, or None if it is not below one of the allowed folders.

    Links are resolved before the comparison, so no link can lead out of an allowed folder. This function does not check
    whether the path exists, so a refusal reveals nothing about other folders.
    """
    if "\0" in text or not Path(text).is_absolute():
        return None
    real = Path(text).resolve()
    return real if any(real.is_relative_to(root.resolve()) for root in allowed) else None
