"""A DreamBooth trainer for Stable Diffusion checkpoints: a WebUI tab and a command line over one engine."""

__version__ = "0.1.0"
