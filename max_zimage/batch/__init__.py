"""Jobs: a file of requests in, a row and a picture for each out, on one machine or on a Ray cluster."""
