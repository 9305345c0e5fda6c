"""Somebody else's error never ends the WebUI: it is printed, and kept here for a test to look at."""

import sys
import traceback

reported = []


def report(message, *, exc_info=False):
    reported.append(f"{message}\n{traceback.format_exc()}" if exc_info else message)
    print("***", reported[-1], file=sys.stderr, flush=True)


def display(error, task, *, full_traceback=False):
    report(f"{task}: {type(error).__name__}: {error}", exc_info=full_traceback)
