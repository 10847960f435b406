"""Text embedding + noise => latents => image: networks, noise process, samplers and commands."""
