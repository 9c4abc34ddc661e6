"""A checkpoint's files: found, read strictly, and brought into the names and layouts of the graphs."""
