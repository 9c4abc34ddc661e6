"""DiffusionGemma: text by block diffusion, as compiled graphs."""
