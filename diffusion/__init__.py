"""Text embedding + noise => latents => image: the networks, the noise process, the samplers and the commands."""
