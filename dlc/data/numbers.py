"""0 to 9,999 in English and in French words: 9,000 pairs to train, 500 to validate and 500 to test."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dlc.data._dataset import Parallel
from dlc.data._published import Published

PUBLISHED = Published("numbers")
SOURCE = "0 to 9,999 in words, by rule"

_ENGLISH = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_ENGLISH_TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
_FRENCH = "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize".split()
_FRENCH_TENS = "- dix vingt trente quarante cinquante soixante".split()


def parse(paths: Sequence[Path] = ()) -> Parallel:
    """All pairs in an order drawn once."""
    order = np.random.default_rng(0).permutation(10_000).tolist()
    pairs = [(english(n), french(n)) for n in order]
    return Parallel("numbers", pairs[:9000], pairs[9000:9500], pairs[9500:], SOURCE)


def english(n: int) -> str:
    """0 <= n < 10,000 in English words, with the British `and`: 2080 is two thousand and eighty."""
    if n < 20:
        return _ENGLISH[n]
    if n < 100:
        ten, unit = divmod(n, 10)
        return _ENGLISH_TENS[ten] + (f"-{_ENGLISH[unit]}" if unit else "")
    many, rest = divmod(n, 1000 if n >= 1000 else 100)
    words = f"{english(many)} {'thousand' if n >= 1000 else 'hundred'}"
    return words + (" and " if 0 < rest < 100 else " " if rest else "") + (english(rest) if rest else "")


def french(n: int) -> str:
    """0 <= n < 10,000 in French words, in the traditional spelling: 2080 is deux mille quatre-vingts.

    The rules are those before the rectifications in the Journal officiel of 6 December 1990: hyphens join the words
    below one hundred, except beside `et`; `et` precedes un and onze after vingt to soixante, not after quatre-vingt;
    vingt and cent take an s if they are multiplied and end the number; mille never changes, and un precedes neither
    mille nor cent.
    """
    if n <= 16:
        return _FRENCH[n]
    if n >= 100:
        many, rest = divmod(n, 1000 if n >= 1000 else 100)
        words = "mille" if n >= 1000 else "cent"
        if many > 1:
            words = f"{_FRENCH[many]} {words}" + ("s" if n < 1000 and not rest else "")
        return f"{words} {french(rest)}" if rest else words
    ten, unit = divmod(n, 10)
    if ten in (7, 9):  # soixante-dix, quatre-vingt-dix: counted on from the ten before
        ten, unit = ten - 1, unit + 10
    if ten == 8:
        return f"quatre-vingt-{french(unit)}" if unit else "quatre-vingts"
    if not unit:
        return _FRENCH_TENS[ten]
    return _FRENCH_TENS[ten] + (" et " if unit in (1, 11) else "-") + french(unit)
