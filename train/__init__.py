"""Images and captions => weights: the data, the training loop, a module for each network that is trained."""
