"""What is wrong with a picture's file."""


class ImageFileError(ValueError):
    """A picture cannot be written where asked, or cannot be read, or holds no parameters."""
