"""Devices and dtypes by name, memory, and the libraries that a GPU's graphs call."""
