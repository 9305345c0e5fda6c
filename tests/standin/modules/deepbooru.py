"""What is in a picture, as tags."""

from modules import devices


class DeepDanbooru:
    def tag(self, pil_image):
        devices.card.visits += 1
        return "cat, mat"


model = DeepDanbooru()
