"""`python -m imagefolder.generator`: images of a trained generator into a folder; a second run continues the first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from tyro.conf import arg

from imagefolder.cli import command_line
from imagefolder.config import SamplingConfig
from imagefolder.errors import InputError
from imagefolder.validation import shown
from imagefolder.zoo import GENERATORS, TOKENIZER_OF, TOKENIZERS, find

if TYPE_CHECKING:
    import torch

    from imagefolder.generator.model import Generator

MOST_IMAGES = 10_000_000


@dataclass(frozen=True)
class SampleOptions:
    """Generate images into a folder. Running it again continues where it stopped."""

    output: Path
    """folder for the images"""
    generator: str | None = None
    """name of the generator, e.g. VAR-d17-MSVR10P2-4096 (imagefolder.list_models() lists all); not needed if both
    weights are native folders, which say what they are"""
    generator_weights: str | None = None
    """checkpoint: native folder, the authors' .pth, .safetensors, or hf://owner/repo[/file]"""
    tokenizer: str | None = None
    """name of the tokenizer (default: the one the generator was made for)"""
    tokenizer_weights: str | None = None
    """checkpoint, as for the generator"""
    num_classes: int | None = None
    """number of classes the generator was trained with, if not that of the named one"""
    classes: Annotated[tuple[int, ...], arg(metavar="CLASS ...")] = ()
    """classes to generate, one image of each in turn (default: all)"""
    per_class: int | None = None
    """images of every class"""
    number: int | None = None
    """total number of images, instead of --per-class"""
    class_free: bool = False
    """generate without a class"""
    format: Literal["png", "npz"] = "png"
    """png: one file per image; npz: one file in the layout of ADM's evaluation suite"""
    seed: int = 0
    """seed of the run; an image depends on it and on the image's number and class"""
    guidance: float | None = None
    """classifier-free guidance reached at the last scale; 0: none (default: as stored with the generator, else 3.25)"""
    top_k: int | None = None
    """tokens kept; 0: all (default: as stored with the generator, else 750)"""
    top_p: float | None = None
    """nucleus probability; 0 or 1: all (default: as stored with the generator, else 0.95)"""
    temperature: Annotated[tuple[float, ...], arg(metavar="T ...")] = ()
    """one value, or one per scale (default: as stored with the generator, else 1)"""
    joint: bool = False
    """draw the tokens of all branches of a position from the product of their distributions"""
    batch_size: int | None = None
    """images per batch (default: as many as fit in memory)"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda if available"""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """auto: bfloat16 if the layers of the models are measured to be faster in it"""


def main() -> NoReturn:
    """Entry point."""
    command_line(run, prog="python -m imagefolder.generator")


def run(options: SampleOptions) -> None:
    """Generate the images; the options are checked as far as possible before torch is imported."""
    if options.generator is not None:
        config = find(GENERATORS, options.generator)
        find(TOKENIZERS, options.tokenizer or TOKENIZER_OF[config.name])
        choose_labels(options, options.num_classes or config.num_classes)
    elif options.tokenizer is not None or options.num_classes is not None:
        raise InputError("--tokenizer and --num-classes go with --generator")
    given = {name: getattr(options, name) for name in ("guidance", "top_k", "top_p")}
    given = {name: value for name, value in given.items() if value is not None}
    SamplingConfig(**given)
    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, not {options.batch_size}")
    missing = [name for name in ("generator_weights", "tokenizer_weights") if getattr(options, name) is None]
    if missing:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise InputError(f"{names} missing: without trained weights the images would be noise")
    if options.temperature:
        given["temperature"] = options.temperature[0] if len(options.temperature) == 1 else options.temperature
    from imagefolder.environment import tune_allocator
    from imagefolder.progress import console

    tune_allocator()
    try:
        path = _generate(options, given)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise InputError(f"out of memory; lower --batch-size (now {options.batch_size or 'auto'})") from None
    console.print(f"samples: {path}")


def choose_labels(options: SampleOptions, num_classes: int) -> list[int | None]:
    """Labels of all images: the classes in turn, so that any number of images is as balanced as possible."""
    if options.class_free:
        if options.classes or options.per_class is not None:
            raise InputError("--class-free goes with --number, not with --classes or --per-class")
        classes: tuple[int | None, ...] = (None,)
    else:
        classes = options.classes or tuple(range(num_classes))
    if (options.number is None) == (options.per_class is None):
        raise InputError("set the number of images by either --number or --per-class")
    number = options.number if options.number is not None else (options.per_class or 0) * len(classes)
    if not 1 <= number <= MOST_IMAGES:
        raise InputError(f"the number of images must be at least 1 and at most {MOST_IMAGES:,}, not {shown(number)}")
    return [classes[index % len(classes)] for index in range(number)]


def _generate(options: SampleOptions, given: dict[str, Any]) -> Path:
    """`given`: the sampling settings that replace the model's own."""
    from imagefolder.generator.export import export_samples
    from imagefolder.generator.sampling import check_sampling, check_seed
    from imagefolder.memory import fitting_batch
    from imagefolder.progress import console

    check_seed(options.seed)
    generator = _load(options)
    labels = choose_labels(options, generator.config.num_classes)
    settings = generator.settings(**given)
    check_sampling(generator.config, **settings, joint=options.joint)
    console.print("sampling with " + ", ".join(f"{name} {value}" for name, value in settings.items()))
    batch = options.batch_size or fitting_batch(generator, settings["top_k"])
    settings |= {"joint": options.joint, "seed": options.seed, "batch_size": batch}
    return export_samples(generator, labels, options.output, options.format, **settings)


def _load(options: SampleOptions) -> Generator:
    """The generator with its tokenizer."""
    import torch

    from imagefolder.generator.model import Generator
    from imagefolder.loading import load, load_generator, load_tokenizer

    dtypes: dict[str, Any] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": "auto"}
    where: dict[str, Any] = {"device": _device(options.device), "dtype": dtypes[options.dtype]}
    if options.generator is None:
        assert options.generator_weights is not None, "checked before"
        model = load(options.generator_weights, options.tokenizer_weights, **where)
        assert isinstance(model, Generator), "a tokenizer takes no tokenizer, so it was refused"
        return model
    name = options.tokenizer or TOKENIZER_OF[options.generator]
    tokenizer = load_tokenizer(name, options.tokenizer_weights, **where)
    overrides: dict[str, Any] = {} if options.num_classes is None else {"num_classes": options.num_classes}
    return load_generator(options.generator, tokenizer, options.generator_weights, **where, **overrides)


def _is_out_of_memory(error: Exception) -> bool:
    """Of either kind of memory; on a CPU, torch raises a plain RuntimeError."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _device(name: str) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


if __name__ == "__main__":
    main()
