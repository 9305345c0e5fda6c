"""The WebUI runs this at every start and waits for it: looks at the trainer's environment, has it made in the
background if need be, and returns. It never fails; what is wrong stands in the DreamBooth tab."""

import sys


def main() -> None:
    """Prints a line only where something is to be done or wrong."""
    try:
        from dreambooth import installing

        if installing.start() is not None:
            print(
                "DreamBooth: the trainer's environment is being made in the background; its tab shows the progress."
            )
    except Exception as error:  # noqa: BLE001 -- the WebUI starts, whatever is wrong here
        ours = hasattr(error, "remedy")
        what = str(error) if ours else f"install.py failed: {type(error).__name__}: {error}"
        print(f"DreamBooth: {what if sys.version_info >= (3, 10) else 'it needs Python 3.10 or newer'}")


if __name__ == "__main__":
    main()
