"""From a recipe to artifacts: read it, plan it, run it."""
