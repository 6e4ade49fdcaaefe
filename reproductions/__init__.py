"""One script per table or experiment of the paper, the stages of its rows, and the reported numbers."""
