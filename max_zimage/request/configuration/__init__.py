"""The configuration file: its sections and keys, its profiles, and what the environment says in their place.

Reference: reference/generation.md section 11 for the names, reference/api.md for what comes before what.
"""
