"""Studies: many runs of one recipe with other values, shared by several workers, and what the best of them was."""
