"""The `imagefolder` command: every command of the suite as a subcommand, each importing only what it needs."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NoReturn

from imagefolder.cli import COMMAND, choose, guarded

COMMANDS = {
    "table2": ("reproductions.table2:main", "Train and compare ImageFolder and its baselines (the paper's Table 2)."),
    "ablation": ("reproductions.ablation:main", "Measure each of the authors' eight steps."),
    "token-length": ("reproductions.token_length:main", "Measure the effect of sequence length."),
    "branches": ("reproductions.branches:main", "Compare 1, 2 and 4 branches at equal bits."),
    "folding": ("reproductions.folding:main", "Compare folded, unfolded and single-branch generators."),
    "guidance": ("reproductions.guidance:main", "Sweep the sampling settings of Table 2's generators."),
    "linear-probe": ("reproductions.linear_probe:main", "Probe the tokens with a linear classifier."),
    "zoo": ("reproductions.zoo:main", "Train every kind of released tokenizer."),
    "evaluators": ("reproductions.evaluators:main", "Measure the same images with every evaluator."),
    "leaderboard": ("leaderboard.__main__:command", "Build the report; add rows, check records, write model cards."),
    "speed": ("leaderboard.speed:main", "Store or compare benchmark results."),
    "sample": ("imagefolder.generator.__main__:main", "Generate images with a trained generator."),
    "demo": ("imagefolder.demo.__main__:main", "Show trained models in the browser."),
    "evaluate": ("imagefolder.evaluation.__main__:main", "Measure sample files of any tool."),
    "inspect": ("imagefolder.checkpoints.__main__:main", "Print what a weight file holds and which model it fits."),
    "convert": ("imagefolder.checkpoints.__main__:main", "Convert a weight file of the authors."),
    "weights": ("imagefolder.weights:main", "Check which published weight files are present."),
    "models": ("reproductions.cards:main", "Write the model cards."),
    "status": ("slurm.__main__:main", "Show the jobs of a submitted run."),
    "logs": ("slurm.__main__:main", "Show the output of a job."),
    "cancel": ("slurm.__main__:main", "Cancel the jobs of a run."),
    "resubmit": ("slurm.__main__:main", "Resubmit failed jobs and those that depend on them."),
}
"""Where each command is (module:function), and a summary."""

PARTS = ("inspect", "convert", "status", "logs", "cancel", "resubmit")
"""These are subcommands of the command in their module."""


def main() -> NoReturn:
    """Run the command that the first argument names."""
    with guarded():
        about = "Train, evaluate and compare ImageFolder (arXiv 2410.01756) and its baselines."
        name = choose({name: summary for name, (_, summary) in COMMANDS.items()}, prog=COMMAND, description=about)
        if name in PARTS:
            sys.argv[:1] = [COMMAND, name]
        else:
            sys.argv[0] = f"{COMMAND} {name}"
        module, function = COMMANDS[name][0].split(":")
        sys.exit(getattr(import_module(module), function)())


if __name__ == "__main__":
    main()
