"""Prompts to token ids: chat template and tokenizer."""
