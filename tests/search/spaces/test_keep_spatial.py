"""Tests of keep_spatial: the features keep their grid."""

import pytest

from models.errors import InvalidRequest
from search.methods import METHODS, method_for


@pytest.mark.parametrize("name", ["joint", "mdc"])
def test_all_tokens_stay_and_all_else_may_go(name: str) -> None:
    method = method_for(name, keep_spatial=True)
    assert set(METHODS[name].axes) - set(method.axes) == {"tokens"}
    assert method_for(name, keep_spatial=False) == METHODS[name]


@pytest.mark.parametrize("name", ["cp-vit", "spvit"])
def test_methods_that_are_about_tokens_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="keep_spatial"):
        method_for(name, keep_spatial=True)
