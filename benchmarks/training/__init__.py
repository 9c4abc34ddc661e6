"""The embedded model's training: from nothing to a checkpoint in the layout of diffusers, its card and its scores."""
