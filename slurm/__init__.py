"""Running a graph of stages on a cluster: submission, requeueing, status. Knows nothing of what the stages do."""

from slurm.profile import redacted
from slurm.stage import SlurmError, Stage

__all__ = ["SlurmError", "Stage", "redacted"]
