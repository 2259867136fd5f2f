"""What one does before a run: each trial looks at a recipe, or runs a small one derived from it, on the engine's own parts."""
