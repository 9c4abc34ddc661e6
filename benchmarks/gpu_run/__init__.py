"""All that is to be measured on a GPU that is there for fifteen minutes, in the order of its worth; see README.md."""
