"""What the Train tab calls for embeddings."""

import modules.textual_inversion.textual_inversion


def train_embedding(*args):
    embedding, filename = modules.textual_inversion.textual_inversion.train_embedding(*args)
    return f"Training finished at {embedding.step} steps. Embedding saved to {filename}", ""
