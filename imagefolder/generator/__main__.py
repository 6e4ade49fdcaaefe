"""`python -m imagefolder.generator`: images of a trained generator into a folder; a second run continues the first."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

import imagefolder
from imagefolder.environment import keep_freed_memory
from imagefolder.errors import InputError, one_line
from imagefolder.generator.export import FORMATS, export_samples
from imagefolder.generator.model import Generator
from imagefolder.generator.sampling import check_sampling, check_seed
from imagefolder.memory import fitting_batch
from imagefolder.progress import console, display
from imagefolder.validation import shown
from imagefolder.zoo import GENERATORS, TOKENIZER_OF, find

MOST_IMAGES = 10_000_000


@dataclass(frozen=True)
class Options:
    """Generate images into a folder. Running it again continues where it stopped."""

    generator: str
    """name of the generator, e.g. VAR-d17-MSVR10P2-4096 (imagefolder.list_models() lists all)"""
    output: Path
    """folder for the images"""
    generator_weights: str | None = None
    """checkpoint: native folder, the authors' .pth, .safetensors, or hf://owner/repo[/file]"""
    tokenizer: str | None = None
    """name of the tokenizer (default: the one the generator was made for)"""
    tokenizer_weights: str | None = None
    """checkpoint, as for the generator"""
    num_classes: int | None = None
    """number of classes the generator was trained with, where it is not that of the named one"""
    classes: Annotated[tuple[int, ...], tyro.conf.arg(metavar="CLASS ...")] = ()
    """classes to generate, one image of each in turn (default: all)"""
    per_class: int | None = None
    """images of every class"""
    number: int | None = None
    """images in all, instead of --per-class"""
    class_free: bool = False
    """generate without a class"""
    format: str = "png"
    """png: one file per image; npz: one file in the layout of ADM's evaluation suite"""
    seed: int = 0
    """seed of the run; an image depends on it, on the image's number and class"""
    guidance: float = 3.25
    """classifier-free guidance reached at the last scale; 0: none"""
    top_k: int = 750
    """tokens kept; 0: all"""
    top_p: float = 0.95
    """nucleus probability; 0 or 1: all"""
    temperature: Annotated[tuple[float, ...], tyro.conf.arg(metavar="T ...")] = (1.0,)
    """one value, or one per scale"""
    joint: bool = False
    """draw the tokens of all branches of a position from the product of their distributions"""
    batch_size: int | None = None
    """images made at a time (default: as many as the memory allows)"""
    device: str = "auto"
    """cpu or cuda; auto: cuda if there is one"""
    dtype: str = "float32"
    """float32, bfloat16, or auto: what the device is fast at"""


def main() -> int:
    """Exit code 0, 2 after a line on what is wrong, or 130 (interrupted)."""
    options = tyro.cli(Options, prog="python -m imagefolder.generator", description=Options.__doc__)
    keep_freed_memory()
    try:
        run(options)
    except (InputError, OSError) as error:
        display.close()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        display.close()
        print(f"error: out of memory; lower --batch-size (now {options.batch_size or 'auto'})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        display.close()
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


def run(options: Options) -> None:
    """Do what the options say."""
    temperature = options.temperature[0] if len(options.temperature) == 1 else options.temperature
    device = _device(options.device)
    check_seed(options.seed)
    if options.format not in FORMATS:
        raise InputError(f"--format {options.format} is not {' or '.join(FORMATS)}")
    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, not {options.batch_size}")
    missing = [name for name in ("generator_weights", "tokenizer_weights") if getattr(options, name) is None]
    if missing:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise InputError(f"{names} missing: without trained weights the images would be noise")
    generator = load(options, device)
    check_sampling(generator.config, options.guidance, options.top_k, options.top_p, temperature, options.joint)
    path = export_samples(
        generator,
        choose_labels(options, generator.config.num_classes),
        options.output,
        options.format,
        options.batch_size or fitting_batch(generator, options.top_k),
        options.seed,
        options.guidance,
        options.top_k,
        options.top_p,
        temperature,
        options.joint,
    )
    console.print(f"samples: {path}")


def load(options: Options, device: torch.device) -> Generator:
    """The generator with its tokenizer."""
    name = options.tokenizer or TOKENIZER_OF[find(GENERATORS, options.generator).name]
    dtype = _dtype(options.dtype)
    tokenizer = imagefolder.load_tokenizer(name, options.tokenizer_weights, device, dtype)
    overrides: dict[str, Any] = {} if options.num_classes is None else {"num_classes": options.num_classes}
    return imagefolder.load_generator(
        options.generator, tokenizer, options.generator_weights, device, dtype, **overrides
    )


def choose_labels(options: Options, num_classes: int) -> list[int | None]:
    """Labels of all images: the classes in turn, so that any number up to ten million is as balanced as it can be."""
    if options.class_free:
        if options.classes or options.per_class is not None:
            raise InputError("--class-free goes with --number, not with --classes or --per-class")
        classes: tuple[int | None, ...] = (None,)
    else:
        classes = options.classes or tuple(range(num_classes))
    if (options.number is None) == (options.per_class is None):
        raise InputError("say how many images: either --number or --per-class")
    number = options.number if options.per_class is None else options.per_class * len(classes)
    if not 1 <= number <= MOST_IMAGES:
        raise InputError(f"the number of images must be at least 1 and at most {MOST_IMAGES:,}, not {shown(number)}")
    return [classes[index % len(classes)] for index in range(number)]


def _is_out_of_memory(error: Exception) -> bool:
    """Of either kind of memory; that of a CPU is a plain error to torch."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _dtype(name: str) -> Any:
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": "auto"}
    if name not in names:
        raise InputError(f"--dtype {name} is not {', '.join(names)}")
    return names[name]


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {name} is not auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


if __name__ == "__main__":
    sys.exit(main())
