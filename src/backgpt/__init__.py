"""Language models that predict the previous token: you give the ending, it finds the beginning.

import backgpt
model = backgpt.load("runs/story")
for story in model.write(ending="The end.", n=3):
    print(story.text)
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["BackgptError", "Model", "Score", "Text", "__version__", "load"]

_HOMES = {
    "BackgptError": "backgpt.errors",
    "Model": "backgpt.api",
    "Score": "backgpt.score",
    "Text": "backgpt.generate",
    "load": "backgpt.api",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that `import backgpt` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'backgpt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
