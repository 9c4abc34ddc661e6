"""What the process and its machine offer: folders, temporary files, children that end with their parent."""
