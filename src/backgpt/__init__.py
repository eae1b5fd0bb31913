"""Language models that predict the previous token: you give the ending, it finds the beginning.

import backgpt
model = backgpt.load("runs/story")
for story in model.write(ending="The end.", n=3):
    print(story.text)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backgpt.api import Model, load
    from backgpt.errors import BackgptError
    from backgpt.generate import Text
    from backgpt.messages import Message
    from backgpt.sampling import Sampling
    from backgpt.score import Score

__version__ = "0.1.0"
__all__ = [
    "BackgptError",
    "Message",
    "Model",
    "Sampling",
    "Score",
    "Text",
    "__version__",
    "load",
]

_HOMES = {
    "BackgptError": "backgpt.errors",
    "Message": "backgpt.messages",
    "Model": "backgpt.api",
    "Sampling": "backgpt.sampling",
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
