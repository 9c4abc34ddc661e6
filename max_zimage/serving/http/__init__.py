"""The HTTP side of the server: routes, schemas, answers, and what keeps callers within bounds."""
