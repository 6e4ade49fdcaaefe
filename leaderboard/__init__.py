"""Results of this project: the record every number is stored in, and the report built from records."""
