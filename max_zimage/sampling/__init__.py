"""Plans of a request, as pure numpy: noise, schedule, positions, which steps a step cache computes."""
