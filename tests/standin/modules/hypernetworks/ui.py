"""What the Train tab calls for hypernetworks."""

import modules.hypernetworks.hypernetwork
from modules import shared


def train_hypernetwork(*args):
    try:
        hypernetwork, filename = modules.hypernetworks.hypernetwork.train_hypernetwork(*args)
        return f"Training finished at {hypernetwork.step} steps. Hypernetwork saved to {filename}", ""
    finally:
        shared.sd_model.to(shared.sd_model.device)
