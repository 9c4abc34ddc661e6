"""What step caches cost and what they are worth: pictures skipped, seconds saved, and how far pictures move."""
