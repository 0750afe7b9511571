"""Shadow-FT in JAX: tune the Base model, graft what it learned onto the Instruct model."""

__version__ = "0.1.0"
