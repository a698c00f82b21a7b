"""Former names of modules still import, and say what they are now."""

from __future__ import annotations

import importlib
import sys
import warnings

import pytest

import vistok
from vistok.moved import MOVED


@pytest.mark.parametrize("former", MOVED)
def test_a_former_name_leads_to_the_module_of_today(former):
    for name in [name for name in sys.modules if name == former or name.startswith(former + ".")]:
        del sys.modules[name]
    with pytest.warns(FutureWarning, match=MOVED[former].replace(".", r"\.")):
        module = importlib.import_module(former)
    today = importlib.import_module(MOVED[former])
    assert all(getattr(module, name) is getattr(today, name) for name in dir(today) if not name.startswith("_"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.import_module(former)  # says it once


def test_names_that_never_were_are_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("vistok.projectors.aks")
    assert vistok.__version__
