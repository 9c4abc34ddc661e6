"""Picture files: reading them to pixels, and saving pixels with what they were drawn with."""
