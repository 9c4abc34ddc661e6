"""What is compiled: one Module a graph, with its input types right below its `forward`."""
