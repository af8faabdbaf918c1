"""Pictures from plain values: `latents` (pages of sprites), `motion` (GIFs), `charts` (numbers).

Every function that draws takes an output path, writes it atomically and returns it; the same input
gives the same bytes. A model obeys the project's contract (latent_dim, encode, decode, sample,
span, trained_span, information_name), is in eval mode, and is called on its own device.
References are a dict: name -> image (C, H, W) in [0, 1], or code (D,) where there is no image.
"""
