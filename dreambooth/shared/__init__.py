"""What the WebUI's process and the trainer's process must agree on: standard library and omegaconf only."""
