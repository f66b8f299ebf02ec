"""Multi30k: descriptions of photographs in English and French, 29,000 pairs to train, 1,014 to validate, 1,000 to test.

References:
    Elliott et al. 2016, "Multi30K: multilingual English-German image descriptions".
    Elliott et al. 2017, "Findings of the second shared task on multimodal machine translation"; the French side.
"""

from collections.abc import Sequence
from pathlib import Path

from dlc.data._dataset import Corpus, Pairs, Parallel
from dlc.data._errors import DataDamaged
from dlc.data._published import File, Published, content


def parse(paths: Sequence[Path]) -> Parallel:
    """A file for each split and language, in the order of `PUBLISHED`. Raises DataDamaged if two sides differ."""
    sides = [lines(content(path).decode()) for path in paths]
    splits: list[Pairs] = []
    for file, source, target in zip(PUBLISHED.files[::2], sides[::2], sides[1::2], strict=True):
        if len(source) != len(target):
            raise DataDamaged(f"{file.name} of multi30k has {len(source):,} lines and its translation "
                              f"{len(target):,}: fetch both files again")  # fmt: skip
        splits.append(list(zip(source, target, strict=True)))
    train, validation, test = splits
    return Parallel("multi30k", train, validation, test, "original files in sources/multi30k")


def captions(paths: Sequence[Path]) -> Corpus:
    """The English descriptions as a text, one a line, in the published parts to train and to validate."""
    found = parse(paths)
    train, validation = ("".join(f"{english}\n" for english, _ in split) for split in (found.train, found.validation))
    return Corpus(found.name, train, validation, found.source)


def lines(text: str) -> list[str]:
    """The lines of a text, stripped. Unlike str.splitlines, this does not cut at U+2028 and its like in sentences."""
    return [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []


def _file(name: str, *rest: int | str) -> File:
    return File(name, f"https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/{name}", *rest)  # type: ignore[arg-type]


PUBLISHED = Published(  # as in github.com/multi30k/dataset at a3d2e0d
    "multi30k",
    (
        _file("train.en.gz", 568929, "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
              "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6"),
        _file("train.fr.gz", 604242, "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c",
              "5925a3c18f1587b6b54b87743106e6e8ab93618edb6f65d19eac0621f853a10d"),
        _file("val.en.gz", 21650, "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
              "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227"),
        _file("val.fr.gz", 23001, "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9",
              "5304e444d842e962b2dda4d816b70b22a1765b15401642b7ca37a67477e708dc"),
        _file("test_2016_flickr.en.gz", 21077, "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
              "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182"),
        _file("test_2016_flickr.fr.gz", 22310, "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90",
              "cb3160d69b002bb638e66cc7612fcd56cb0af82eadc9c142dedc438afb885ef6"),
    ),
    instead="`numbers` is a set of translations that needs no download",
)  # fmt: skip
