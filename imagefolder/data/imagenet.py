"""ImageNet's classes: is a data set labelled as the released models are?"""

from __future__ import annotations

import re

from imagefolder.errors import InputError

CLASSES = 1000


def imagenet_labels(classes: list[str], origin: str) -> list[int] | None:
    """ImageNet's index of every class, if all names are synsets (n01440764) of ImageNet's 1000; otherwise None.

    Raises:
        InputError: 1000 synsets that are not ImageNet's, in its order: every label after the wrong one would be off.
    """
    if not all(re.fullmatch(r"n\d{8}", name) for name in classes):
        return None
    from timm.data import ImageNetInfo  # takes seconds to import, and only synsets need it

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
