"""What the page's Generate button calls."""

import html
import json

from modules import processing


def txt2img(id_task, prompt, negative_prompt, *args):
    done = processing.process_images(processing.StableDiffusionProcessing(prompt, negative_prompt))
    details = json.dumps({"prompt": prompt, "infotexts": [done.info]})
    return done.images, details, f"<p>{html.escape(done.info)}</p>", ""


def txt2img_upscale(id_task, gallery, *args):
    return txt2img(id_task, *args)
