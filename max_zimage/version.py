"""The name and version that pictures, reports and the server's answers carry."""

PROGRAM = "max_zimage"
"""The mark that tells the parameters in a picture from those of other programs."""

__version__ = "0.1.0"
