"""What a run costs: every compiled call watched, its work counted from shapes, the machine's own rate beside it."""
