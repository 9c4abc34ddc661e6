"""The worker of the server: requests share denoising steps in MAX's worker process."""
