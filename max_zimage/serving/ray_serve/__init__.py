"""A fleet on Ray Serve: replicas of the server behind one address, from the optional extra `ray`."""
