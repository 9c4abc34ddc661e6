"""How checkpoints are written: layouts, types of numbers, files that appear when they are complete."""
