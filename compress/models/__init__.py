"""Built-in networks, the user's own, and weights that are brought."""
