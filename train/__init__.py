"""Images and captions => weights: the data, the training loop, and one module for each network that is trained."""
