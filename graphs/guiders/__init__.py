"""Guides: the velocities of a picture's branches to one prediction, a file for each way that is not linear."""
