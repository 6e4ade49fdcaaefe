"""One script per table or figure of the paper; each row a recipe, its reported numbers beside it."""
