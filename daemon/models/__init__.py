"""The model repository: what a model directory must hold, which models there are, and how one is loaded."""
