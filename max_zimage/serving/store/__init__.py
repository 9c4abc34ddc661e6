"""What a server remembers of its requests, where other servers behind the same balancer find it too."""
