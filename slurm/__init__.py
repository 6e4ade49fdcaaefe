"""Running a graph of stages on a cluster: submission, requeueing and status. Knows nothing about what the stages do."""

from slurm.profile import redacted
from slurm.stage import SlurmError, Stage

__all__ = ["SlurmError", "Stage", "redacted"]
