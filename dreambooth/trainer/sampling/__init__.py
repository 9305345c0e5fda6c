"""Pictures: of the class before training, on the way, and at the end."""
