"""Fuzzers: many inputs that people, editors, disks and networks may produce, each tried on the real thing."""
