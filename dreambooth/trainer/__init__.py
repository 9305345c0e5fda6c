"""The trainer: a process of its own in an environment of its own; never imports gradio or the WebUI's modules."""
