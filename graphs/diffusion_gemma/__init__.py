"""DiffusionGemma: one Gemma 4 stack that reads causally and looks at a canvas in both directions."""
