"""Caption cleaning, as the published text-to-image models saw their captions.

The cleaner comes from DeepFloyd IF and was taken over by PixArt-alpha and by LlamaGen (arXiv 2406.06525),
which applies it twice. Captions off the web carry links, mark-up, file names and article numbers that a text
encoder should not see. The order of the rules matters, and a few look odd (a domain is cut out of a link but
its file suffix stays): the models were trained behind them, so they are kept to the letter.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from urllib.parse import unquote_plus

_DOMAIN = r"[a-z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_SUFFIX = r"(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_DASHES = (
    r"\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    r"\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_SYMBOLS = r"#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*"


def _compile(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


# The caption is lower case from here on, until a numeric entity is unescaped (before _CODES).
_LINKS = _compile(
    (r"<person>", "person"),  # the one tag that stands for a word
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{_DOMAIN})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{_DOMAIN})", ""),
)
_NOISE = _compile(
    (r"@\w+\b", ""),  # user names
    (r"[\u31c0-\u9fff]+", ""),  # CJK strokes, symbols and ideographs
    (rf"[{_DASHES}]+", "-"),
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # the end of an article id
    (r"\\n", " "),  # a line break that was escaped once too often
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{_SUFFIX}", ""),  # file names
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (rf"[{_SYMBOLS}]+", " "),
    (r"\s+\.\s+", " "),
)
_WORD_JOINERS = re.compile(r"[-_]")
_CODES = _compile(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_SUFFIX}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # 1024x768, with a Latin or a Cyrillic x
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)
_ENDS = _compile(
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def _apply(rules: Iterable[tuple[re.Pattern[str], str]], caption: str) -> str:
    for pattern, replacement in rules:
        caption = pattern.sub(replacement, caption)
    return caption


def _without_markup(caption: str) -> str:
    if "<" not in caption and "&" not in caption:
        return caption
    from bs4 import BeautifulSoup

    return BeautifulSoup(caption, "html.parser").text


def clean_caption_once(caption: str) -> str:
    """Returns a caption after one pass of the cleaner, of which ``clean_caption`` makes two, as the published models
    do.
    """
    import ftfy

    caption = unquote_plus(caption).strip().lower()
    caption = _without_markup(_apply(_LINKS, caption))
    caption = _apply(_NOISE, caption)
    if len(_WORD_JOINERS.findall(caption)) > 3:  # a-name-made-of-words; fewer are real hyphens
        caption = _WORD_JOINERS.sub(" ", caption)
    caption = html.unescape(html.unescape(ftfy.fix_text(caption)))
    caption = _apply(_ENDS, _apply(_CODES, caption))  # the ends are not stripped in between: a space shields a dash
    return caption.strip()


def clean_caption(caption: str) -> str:
    """Returns the caption as LlamaGen's text encoder reads it: cleaned twice, as one pass uncovers new mark-up."""
    return clean_caption_once(clean_caption_once(caption))
