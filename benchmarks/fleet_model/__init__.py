"""A discrete-event model of a fleet: held to a measurement of two replicas, and then asked about large ones."""
