"""Check that errors cross process borders completely, and that they suggest similar names."""

import pytest

from models import errors
from models.errors import UnknownName, VitfitError, error_from_json

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, VitfitError)]


def test_every_code_belongs_to_one_class() -> None:
    codes = [cls.code for cls in CLASSES]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_comes_back_as_itself(cls: type[VitfitError]) -> None:
    document = {"code": cls.code, "detail": "what happened", "facts": {"limit": 3, "noun": "x"}}
    error = error_from_json(document)
    assert type(error) is cls
    assert error.to_json() == document and str(error) == "what happened"


def test_an_unknown_code_keeps_its_words() -> None:
    error = error_from_json({"code": "from-the-future", "detail": "what happened"})
    assert type(error) is VitfitError and str(error) == "what happened"


def test_an_unknown_name_lists_a_few_known_ones() -> None:
    error = UnknownName("device", "cpo", ["generic-mobile", "cpu"])
    assert error.detail == "The device 'cpo' does not exist. Use one of these names: cpu, generic-mobile."
    assert error.facts == {"noun": "device", "name": "cpo", "nearest": ["cpu"]}


def test_of_many_names_the_nearest_are_listed() -> None:
    error = UnknownName("model", "deit_smal", [*(f"resnet{i}" for i in range(20)), "deit_small"])
    assert "The model 'deit_smal' does not exist. The nearest of the 21 known names are: deit_small." in error.detail
    far = UnknownName("model", "?", [f"vit_{i}" for i in range(20)])
    assert far.detail == "The model '?' does not exist. None of the 20 known names is similar. Use a known name."
