"""A small stand-in for the WebUI's `modules`: what an extension meets of AUTOMATIC1111's v1.10.1, with its traps.

Written from what was recorded of its behaviour, not from its code. A "model" here is a few attributes: where it is,
which file's bytes it holds, whether it is whole. What the WebUI would hang on raises here (`call_queue.Deadlock`).
"""
