"""One training loop, its objectives, and the checkpoints it leaves behind."""
