"""ImageNet's classes: whether a dataset is labelled as the released models expect."""

from __future__ import annotations

import re

from imagefolder.errors import InputError

CLASSES = 1000
MOST_OTHER_NAMES = 100  # of the 1000 readable names, which differ a little from one list to the next


def imagenet_labels(classes: list[str], origin: str) -> list[int] | None:
    """ImageNet's index of every class if all names are synsets (n01440764) of ImageNet-1k; otherwise None.

    Raises:
        InputError: naming `origin`: 1000 synsets other than ImageNet's, or in another order, so that labels would be
            wrong from there on.
    """
    if not all(re.fullmatch(r"n\d{8}", name) for name in classes):
        return None
    from timm.data.imagenet_info import ImageNetInfo  # a slow import that only synsets need

    known = ImageNetInfo("imagenet-1k").label_names()
    if len(classes) == CLASSES:
        for label, (found, right) in enumerate(zip(classes, known, strict=True)):
            if found != right:
                raise InputError(
                    f"{origin}: class {label} is {found}, but ImageNet's is {right}; 1000 synsets must be ImageNet's, "
                    "in its order"
                )
    index = {name: label for label, name in enumerate(known)}
    return [index[name] for name in classes] if set(classes) <= set(known) else None


def synsets_of(names: list[str]) -> list[str] | None:
    """ImageNet's synsets in order if `names` are its 1000 readable names ("tench, Tinca tinca", ...); else None."""
    if len(names) != CLASSES:
        return None
    from timm.data.imagenet_info import ImageNetInfo  # a slow import that only so many classes need

    info = ImageNetInfo("imagenet-1k")
    known = (info.index_to_description(label) for label in range(CLASSES))
    other = sum(_first(name) != _first(right) for name, right in zip(names, known, strict=True))
    return info.label_names() if other <= MOST_OTHER_NAMES else None


def _first(name: str) -> str:
    return name.partition(",")[0].strip().casefold()
