"""Whether an installation and a checkpoint do what they should, asked on the machine of whoever wants to know."""
