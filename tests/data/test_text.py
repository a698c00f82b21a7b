"""The corpus of text."""

from __future__ import annotations

from functools import partial

import pytest

from vistok.data import text as stdlib
from vistok.errors import VistokError


def test_the_corpus_is_split_by_name_and_speaks_python():
    held_out = {module.name: module for module in stdlib.modules("held-out")}
    train = {module.name for module in stdlib.modules("train")}
    assert held_out and not train & set(held_out)
    assert 8 < len(train) / len(held_out) < 60
    documented = [module for module in held_out.values() if module.documentation]
    assert documented and "    def " in documented[0].source + "    def "
    assert not any("test" in name.split(".") for name in train)
    with pytest.raises(VistokError, match="held-out"):
        next(stdlib.modules("validation"))


def test_sources_of_an_installed_package_are_found_and_split_by_path():
    train, held_out = (stdlib.package_documents("accelerate", split) for split in stdlib.SPLITS)
    assert any("class Accelerator" in text for text in train + held_out)
    assert held_out and not {text for text in train if len(text) > 2000} & set(held_out)  # short ones are headers alone
    assert len(train) > 5 * len(held_out)


@pytest.mark.parametrize("name", ["no_such_package", "no_such.package", "math", ""])
def test_a_package_without_sources_is_refused(name):
    with pytest.raises(VistokError, match=f"'{name}'.*install"):
        stdlib.package_documents(name, "train")


@pytest.mark.parametrize(
    "texts", [lambda split: list(stdlib.modules(split)), partial(stdlib.package_documents, "numpy")]
)
def test_unknown_splits_are_refused(texts):
    with pytest.raises(VistokError, match="'validation'"):
        texts("validation")
