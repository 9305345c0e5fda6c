"""What the other Generate button calls."""

from modules.txt2img import txt2img


def img2img(id_task, prompt, negative_prompt, *args):
    return txt2img(id_task, prompt, negative_prompt, *args)
