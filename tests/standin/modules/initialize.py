"""The start, and the second half of it again at each "Reload UI"."""

import threading

from modules import call_queue, script_callbacks, scripts, sd_models, sd_vae, shared


def initialize():
    onchange = call_queue.wrap_queued_call(lambda: sd_models.reload_model_weights())
    shared.opts.onchange("sd_model_checkpoint", onchange, call=False)
    onchange = call_queue.wrap_queued_call(lambda: sd_vae.reload_vae_weights())
    shared.opts.onchange("sd_vae", onchange, call=False)
    initialize_rest()


def initialize_rest():
    sd_models.list_models()
    sd_vae.refresh_vae_list()
    scripts.load_scripts()
    if not shared.cmd_opts.skip_load_model_at_start:
        threading.Thread(target=lambda: shared.sd_model, daemon=True).start()


def before_reload():
    script_callbacks.run("before_reload")
    script_callbacks.run("script_unloaded")
    script_callbacks.clear_callbacks()
