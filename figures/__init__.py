"""Pictures and pages: every function returns the bytes of a PNG, GIF or HTML file.

A model is in eval mode and follows the project's contract (latent_dim, encode, decode, sample,
span, and optionally information).
"""
