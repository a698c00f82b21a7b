"""The caption cleaner removes what the published models never saw and leaves plain captions alone."""

from __future__ import annotations

import pytest

from vistok.data.captions import clean_caption, clean_caption_once


@pytest.mark.parametrize("caption", ["", "a red circle left of a blue square", "two cats, one dog!"])
def test_plain_captions_stay(caption):
    assert clean_caption(caption) == caption


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("A Red CIRCLE", "a red circle"),
        ("a%20red+circle", "a red circle"),
        ("<i>red</i> circle by @painter", "red circle by"),
        ("a <person> and a dog", "a person and a dog"),
        ("circle from http://shop.com/item", "circle from"),
        ("img_0042.jpg a circle 640x480", "a circle"),
        ("order 1234567: free shipping", "order:"),
        ("a_snake_cased_long_name", "a snake cased long name"),
        ("well-known sign", "well-known sign"),
        ("a circle.a square", "a circle. a square"),
        ("円 a circle", "a circle"),
    ],
)
def test_rules(caption, cleaned):
    assert clean_caption_once(caption) == cleaned


def test_two_passes_remove_markup_that_the_first_uncovers():
    assert clean_caption_once("&lt;b&gt;red") == "<b>red"
    assert clean_caption("&lt;b&gt;red") == "red"
