"""The page: the tabs, ids and JavaScript that an extension leans on, around its own tabs."""

import os

import gradio as gr

from modules import (
    img2img,
    localization,
    paths_internal,
    script_callbacks,
    scripts,
    shared,
    txt2img,
    ui_loadsave,
)
from modules.call_queue import wrap_gradio_gpu_call
from modules.shared import opts

_respond = gr.routes.templates.TemplateResponse
_THEME = gr.themes.Default(font=["ui-sans-serif", "sans-serif"], font_mono=["monospace"])  # nothing fetched
_SUBMIT = "(...args) => ['task(standin)', ...args.slice(1)]"


def _head_and_foot():
    """Every extension's scripts and styles, as the page names them: by the path of their file and its time."""
    own = os.path.join(paths_internal.script_path, "script.js")
    files = [own, *(path for _, path in scripts.list_scripts("javascript", ".js"))]
    links = [f"file={path}?{os.path.getmtime(path)}" for path in files]
    head = f"<script>{localization.localization_js(opts.localization)}</script>\n"
    head += "".join(f'<script type="text/javascript" src="{link}"></script>\n' for link in links)
    styles = [
        path for _, path in scripts.list_scripts("", "style.css") if path.endswith(f"{os.sep}style.css")
    ]
    foot = "".join(f'<link rel="stylesheet" href="file={path}?{os.path.getmtime(path)}">' for path in styles)
    return head, foot


def _serve_javascript():
    head, foot = _head_and_foot()

    def respond(*args, **kwargs):
        response = _respond(*args, **kwargs)
        response.body = response.body.replace(b"</head>", f"{head}</head>".encode())
        response.body = response.body.replace(b"</body>", f"{foot}</body>".encode())
        response.init_headers()
        return response

    gr.routes.templates.TemplateResponse = respond


def _generating(name, function):
    with gr.Blocks(analytics_enabled=False) as interface:
        task = gr.Textbox(visible=False)
        prompt = gr.Textbox(label="Prompt", elem_id=f"{name}_prompt", lines=3, placeholder="Prompt")
        negative = gr.Textbox(label="Negative prompt", elem_id=f"{name}_neg_prompt", lines=3)
        generate = gr.Button("Generate", elem_id=f"{name}_generate", variant="primary")
        gr.Slider(label="Width", minimum=64, maximum=2048, value=512, elem_id=f"{name}_width")
        gr.Slider(label="Height", minimum=64, maximum=2048, value=512, elem_id=f"{name}_height")
        gallery = gr.Gallery(label="Output", show_label=False, elem_id=f"{name}_gallery")
        details = gr.Textbox(visible=False)
        info = gr.HTML(elem_id=f"html_info_{name}")
        log = gr.HTML(elem_id=f"html_log_{name}")
        generate.click(
            wrap_gradio_gpu_call(function, extra_outputs=[None, "", ""]), _js=_SUBMIT,
            inputs=[task, prompt, negative], outputs=[gallery, details, info, log],
        )  # fmt: skip
    return interface


def _component(key):
    row = opts.data_labels[key]
    kinds = {str: gr.Textbox, int: gr.Number, float: gr.Number, bool: gr.Checkbox}
    make = row.component or kinds[type(row.default)]
    arguments = row.component_args() if callable(row.component_args) else row.component_args or {}
    return make(label=row.label, value=opts.data.get(key), elem_id=f"setting_{key}", **arguments)


def _refreshed(key):
    row = opts.data_labels[key]
    arguments = row.component_args() if callable(row.component_args) else {}
    return gr.update(value=getattr(opts, key), **arguments)


def _change(value, key):
    if value is not None and opts.set(key, value):
        opts.save(shared.config_filename)
    return _refreshed(key), opts.dumpjson()


def _settings():
    """The Settings tab, and all components of options but the checkpoint's, which is a quick setting."""
    components = {}
    with gr.Blocks(analytics_enabled=False) as interface:
        apply = gr.Button("Apply settings", variant="primary", elem_id="settings_submit")
        restart = gr.Button("Reload UI", variant="primary", elem_id="settings_restart_gradio")
        result = gr.HTML(elem_id="settings_result")
        sections = {}
        for key, row in opts.data_labels.items():
            if key != "sd_model_checkpoint" and not row.do_not_save and row.section:
                sections.setdefault(row.section, []).append(key)
        with gr.Tabs(elem_id="settings"):
            for (section, title), keys in sections.items():
                with gr.TabItem(title, elem_id=f"settings_{section}"):
                    components.update({key: _component(key) for key in keys})
        text = gr.Textbox(elem_id="settings_json", value=lambda: opts.dumpjson(), visible=False)

        def apply_all(*values):
            changed = [key for key, value in zip(components, values, strict=True) if opts.set(key, value)]
            opts.save(shared.config_filename)
            return opts.dumpjson(), f"{len(changed)} settings changed: {', '.join(changed)}."

        apply.click(apply_all, inputs=list(components.values()), outputs=[text, result])
        restart.click(shared.state.request_restart, _js="restart_reload")
    return interface, text


def _choose_checkpoint(text):
    """The dropdown at the top, its refresh button, and the hidden button behind `selectCheckpoint`."""
    key = "sd_model_checkpoint"
    with gr.Row(elem_id="quicksettings"):
        chosen = _component(key)
        refresh = gr.Button("🔄", elem_id=f"refresh_{key}")
    hidden = gr.Button("Change checkpoint", elem_id="change_checkpoint", visible=False)
    outputs = [chosen, text]

    def list_again():
        opts.data_labels[key].refresh()
        return _refreshed(key)

    refresh.click(list_again, outputs=[chosen])
    chosen.change(lambda value: _change(value, key), inputs=[chosen], outputs=outputs)
    hidden.click(
        lambda value: _change(value, key), inputs=[chosen], outputs=outputs,
        _js="(v) => { const wanted = desiredCheckpointName; desiredCheckpointName = ''; return wanted || v; }",
    )  # fmt: skip


def create_ui():
    _serve_javascript()
    script_callbacks.run("ui_settings")
    loadsave = ui_loadsave.UiLoadsave()
    settings, text = _settings()
    # looked up now, and so as an extension has wrapped them by now
    interfaces = [
        (_generating("txt2img", txt2img.txt2img), "txt2img", "txt2img"),
        (_generating("img2img", img2img.img2img), "img2img", "img2img"),
    ]
    for tabs in script_callbacks.run("ui_tabs"):
        interfaces += tabs or []
    interfaces.append((settings, "Settings", "settings"))
    with gr.Blocks(theme=_THEME, analytics_enabled=False, title="Stable Diffusion") as demo:
        with gr.Tabs(elem_id="tabs"):
            for interface, title, name in interfaces:
                with gr.TabItem(title, id=name, elem_id=f"tab_{name}"):
                    interface.render()
                if name != "settings":
                    loadsave.add_block(interface, name)
        _choose_checkpoint(text)
        gr.HTML('<div class="versions">stand-in</div>', elem_id="footer")
    loadsave.dump()
    return demo
