"""The embedded text-diffusion model's training: short prompts in, full captions out, by a tiny DiffusionGemma."""
