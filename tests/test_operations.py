"""Check that the page for operators names every setting."""

from pathlib import Path

from service.core.settings import PREFIX, Settings


def test_every_setting_is_explained() -> None:
    text = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()
    missing = [name for name in Settings.model_fields if f"`{PREFIX}{name.upper()}`" not in text]
    assert not missing
