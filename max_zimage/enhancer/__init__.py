"""Short prompts become full ones, by whoever writes text: DiffusionGemma, the checkpoint's own Qwen3, or an address."""
