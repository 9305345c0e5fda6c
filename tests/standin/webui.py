"""Starts the stand-in as the WebUI starts: `python tests/standin/webui.py --data-dir FOLDER --port N [flags]`.

First each extension's install.py (unless `--skip-install`), then the modules, the page, and the extensions' callbacks,
again and again with each "Reload UI".
"""

import os
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.realpath(__file__))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)


def run_installers():
    """One after the other, with no time limit; the output is printed when it ends; what fails is reported."""
    from modules import errors, extensions

    for folder in extensions.folders():
        script = os.path.join(folder, "install.py")
        if os.path.isfile(script):
            environ = os.environ | {"PYTHONPATH": ROOT}
            done = subprocess.run([sys.executable, script], env=environ, capture_output=True, text=True)
            print(done.stdout, end="", flush=True)
            if done.returncode:
                errors.report(f"Error running install.py for extension {folder}.\n{done.stderr}")


def serve():
    from modules import initialize, shared, ui
    from modules.api import create_api
    from starlette.middleware.gzip import GZipMiddleware

    flags = shared.cmd_opts
    initialize.initialize()
    while True:
        from modules import script_callbacks

        script_callbacks.run("before_ui")
        demo = shared.demo = ui.create_ui()
        demo.queue(64)
        people = [tuple(pair.split(":", 1)) for pair in (flags.gradio_auth or "").split(",") if pair]
        app, _, _ = demo.launch(
            server_name=flags.server_name or ("0.0.0.0" if flags.listen else None), server_port=flags.port,
            auth=people or None, prevent_thread_lock=True, allowed_paths=flags.gradio_allowed_path,
            app_kwargs={"docs_url": "/docs"}, root_path=f"/{flags.subpath}" if flags.subpath else "", quiet=True,
        )  # fmt: skip
        app.user_middleware = [one for one in app.user_middleware if one.cls.__name__ != "CORSMiddleware"]
        app.middleware_stack = None
        app.add_middleware(GZipMiddleware, minimum_size=1000)
        app.build_middleware_stack()
        app.add_api_route("/internal/ping", lambda: {}, methods=["GET"])
        if flags.api:
            create_api(app)
        script_callbacks.run("app_started", demo, app)
        print(f"Running on {demo.local_url}", flush=True)
        while shared.state.wait_for_server_command(timeout=5) != "restart":
            continue
        print("Restarting UI...", flush=True)
        demo.close()
        time.sleep(0.5)
        initialize.before_reload()
        initialize.initialize_rest()


def serve_api_only():
    import uvicorn
    from fastapi import FastAPI
    from modules import initialize, script_callbacks, shared
    from modules.api import create_api

    initialize.initialize()
    app = FastAPI()
    create_api(app)
    script_callbacks.run("before_ui")
    script_callbacks.run("app_started", None, app)
    print("Running", flush=True)
    uvicorn.run(app, host=shared.cmd_opts.server_name or "127.0.0.1", port=shared.cmd_opts.port or 7861)


def main():
    from modules.shared_cmd_options import cmd_opts

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    if not cmd_opts.skip_install:
        run_installers()
    (serve_api_only if cmd_opts.nowebui else serve)()


if __name__ == "__main__":
    main()
